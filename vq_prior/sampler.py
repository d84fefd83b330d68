"""Images to a folder, drawn by one or many processes: `DIR/000000.png` ..., `grid.png`, `samples.json`.

Image i is a function of (model, labels, seed, i, sampling settings). The work
happens in a hidden sibling that a rerun continues and one rename publishes.
"""

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from stage2_prior.prior import read_prior_config
from vq_prior.core.artifacts import publish, remove, require_replaceable, staging_path, write_atomic
from vq_prior.core.components import WEIGHTS, find_component
from vq_prior.core.config import pretty_json, read_json
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError
from vq_prior.core.identity import file_sha256
from vq_prior.core.media import picture_grid, save_png, to_picture, to_pixels
from vq_prior.core.repository import local
from vq_prior.core.runtime import Runtime, start_runtime
from vq_prior.model_folder import read_index
from vq_prior.pipeline import (
    VQPriorPipeline,
    check_request,
    class_of_each,
    default_batch_size,
    require_null_prompt,
    resolve_sampling,
)
from vq_prior.settings import Generate

REQUEST = "samples.json"
MAX_GRID_IMAGES = 256


def generate(settings: Generate) -> Path:
    """Draw the images that `settings` ask for and return their folder.

    Raises:
        UsageError: If a setting is out of range, a label unknown, or OUT holds something else.
        ArtifactError: If the model is damaged.
    """
    with local(settings.model) as model:  # a damaged copy of the Hub's files leaves the cache
        return _generate(replace(settings, model=model))


def _generate(settings: Generate) -> Path:
    index = read_index(settings.model)
    prior_folder = find_component(settings.model, "prior")
    names = ("temperature", "guidance_scale", "top_k", "top_p", "min_p")
    asked = {name: getattr(settings, name) for name in names}
    sampling = resolve_sampling(index, asked, unconditional=settings.unconditional)
    check_request(index, num_images=settings.num_images, seed=settings.seed, batch_size=settings.batch_size, **sampling)
    given = None if settings.labels is None else [part.strip() for part in settings.labels.split(",")]
    cycle = class_of_each(given, len(index.label_names), index.label_names, unconditional=settings.unconditional)
    if settings.unconditional:
        require_null_prompt(read_prior_config(settings.model / "prior").unconditional)
    named = [index.label_names[c] for c in cycle] if index.label_names and not settings.unconditional else None
    request = {
        "format_version": 1,
        "codec_id": index.codec_id,
        "prior_id": file_sha256(prior_folder / WEIGHTS),
        "num_images": settings.num_images,
        "seed": settings.seed,
        "labels": named,
        "unconditional": settings.unconditional,
        "sampling": sampling,
    }
    if _finished(settings.out, request, overwrite=settings.overwrite):
        print(f"{settings.out} already holds these {settings.num_images} images")
        return settings.out
    pipeline = VQPriorPipeline.from_pretrained(settings.model)
    runtime = start_runtime()
    runtime.say(runtime.describe())
    pipeline.to(runtime.device)
    staging = _open_staging(settings.out, request, runtime)
    _draw_missing(pipeline, runtime, staging, settings, cycle, sampling)
    runtime.barrier()
    if runtime.is_main:
        _publish(staging, settings)
        print(f"wrote {settings.num_images} images, grid.png and {REQUEST} to {settings.out}")
    runtime.barrier()
    return settings.out


def _finished(out: Path, request: dict[str, Any], *, overwrite: bool) -> bool:
    """Return whether `out` holds the images of this request; refuse to touch anything else."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out must be a folder to write, {out} is a file")
    require_replaceable(out, REQUEST, "samples of vq-prior")
    if overwrite or not (out / REQUEST).is_file():
        return False
    try:
        done = read_json(out / REQUEST)
    except ArtifactError:
        done = {}
    changed = [f"{key} {done.get(key)} -> {value}" for key, value in request.items() if done.get(key) != value]
    if changed:
        raise UsageError(f"{out} holds other samples ({'; '.join(changed)}); choose another --out or pass --overwrite")
    return all((out / _name(i)).is_file() for i in range(request["num_images"]))


def _open_staging(out: Path, request: dict[str, Any], runtime: Runtime) -> Path:
    """Return the folder of the work in progress: that of a run with the same request, or a new one."""
    staging = staging_path(out)
    if runtime.is_main:
        path = staging / REQUEST
        if not (path.is_file() and path.read_bytes() == pretty_json(request)):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            write_atomic(path, pretty_json(request))
    runtime.barrier()
    return staging


def _draw_missing(
    pipeline: VQPriorPipeline,
    runtime: Runtime,
    staging: Path,
    settings: Generate,
    cycle: list[int],
    sampling: dict[str, Any],
) -> None:
    missing = [i for i in range(settings.num_images) if not _is_drawn(staging / _name(i))]
    runtime.barrier()
    size = settings.batch_size or default_batch_size(runtime.device)
    mine = missing[runtime.share(len(missing))]
    started = time.monotonic()
    bar = tqdm(total=len(mine), unit="image", disable=None if runtime.is_main else True, file=sys.stderr, leave=False)
    for first in range(0, len(mine), size):
        indices = mine[first : first + size]
        classes = [cycle[i % len(cycle)] for i in indices]
        images, _ = pipeline.draw(classes, seed=settings.seed, indices=indices, **sampling)
        for i, pixels in zip(indices, to_pixels(images), strict=True):
            save_png(staging / _name(i), to_picture(pixels), durable=False)
        bar.update(len(indices))
    bar.close()
    seconds = time.monotonic() - started
    if mine:
        runtime.say(f"drew {len(mine)} images in {seconds:.1f} s ({len(mine) / seconds:.1f} images/s a process)")


def _publish(staging: Path, settings: Generate) -> None:
    names = [_name(i) for i in range(settings.num_images)]
    lost = [name for name in names if not _is_drawn(staging / name)]
    if lost:
        raise EnvironmentFault(f"{len(lost)} images are missing, {lost[0]} first; run the same command to continue")
    shown = []
    for name in names[:MAX_GRID_IMAGES]:
        with Image.open(staging / name) as picture:
            pixels = np.asarray(picture)
        shown.append(pixels if pixels.ndim == 3 else pixels[..., None])
    save_png(staging / "grid.png", picture_grid(np.stack(shown)))
    for leftover in staging.glob(".*"):
        remove(leftover)
    publish(staging, settings.out)


def _is_drawn(path: Path) -> bool:
    """Return whether a picture is there; a power cut may leave an empty file behind."""
    return path.is_file() and path.stat().st_size > 0


def _name(index: int) -> str:
    return f"{index:06d}.png"
