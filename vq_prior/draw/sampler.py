"""Images to a folder, drawn by one or many processes: `DIR/000000.png` ..., `DIR/samples.json`, and a sheet, `DIR.png`.

Image i is a function of (model, labels, seed, i, sampling settings), and of the picture it completes or the classifier
that chose it, where there is one. See `picture_folder` for how a rerun continues.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stage1_vqvae.codecs import modality_of
from stage1_vqvae.data.loading import stored_row
from stage1_vqvae.data.rows import FileRows
from stage1_vqvae.data.sources import rows_called
from stage1_vqvae.modalities.sheets import sheet_bytes
from stage2_prior.conditions import conditions_of
from stage2_prior.folder import PriorConfig, read_prior_config
from stage2_prior.sampling_settings import Sampling
from vq_prior.core.config import canonical_json, pretty_json, read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.components import WEIGHTS, find_component
from vq_prior.core.disk.locks import releasing
from vq_prior.core.disk.names import readable
from vq_prior.core.disk.sheet_beside import SheetPlace, sheet_place
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.hub.repository import local
from vq_prior.core.identity import file_sha256
from vq_prior.core.labels import split_labels
from vq_prior.core.modality import Modality
from vq_prior.core.processes.runtime import Runtime, start_runtime
from vq_prior.core.spec import Codec
from vq_prior.draw.given_codes import GivenCodes, open_given
from vq_prior.draw.rejection import Classifier, ClassifierFiles, Kept, best_of, candidates_of, find_classifier
from vq_prior.draw.sample_folder import (
    JOINED,
    already_done,
    array_bytes,
    holds_samples,
    join_samples,
    open_staging,
    publish_without_notes,
    read_notes,
    require_whole,
    sample_name,
    share_of_missing,
    write_note,
)
from vq_prior.model.conditions import condition_values, read_conditions
from vq_prior.model.given_images import kept_rows, told_of_file
from vq_prior.model.index import ModelIndex, read_index
from vq_prior.model.pipeline import VQPriorPipeline, default_batch_size
from vq_prior.model.request import check_request, class_of_each, require_null_prompt, resolve_sampling
from vq_prior.settings import Complete, Drawing, Generate

REQUEST = "samples.json"
MAX_SHOWN = 256

DrawImages = Callable[[list[int]], tuple[Tensor, list[Kept] | None]]


@releasing
def generate(settings: Generate) -> Path:
    """Draw the images that `settings` ask for and return their folder.

    Raises:
        UsageError: If a setting is out of range, a label unknown, or OUT holds something else.
        ArtifactError: If the model or the classifier is damaged.
    """
    with local(settings.model) as model:  # a damaged copy of the Hub's files leaves the cache
        index = read_index(model)
        classifier = _find_classifier(settings, index)
        chosen = None
        if classifier is not None and settings.keep is not None:
            chosen = {"classifier_id": classifier.classifier_id, "candidates": candidates_of(settings.keep)}
        return _draw_set(replace(settings, model=model), index, {"rejection": chosen, "completion": None}, classifier)


@releasing
def complete(settings: Complete) -> Path:
    """Draw images that begin as a picture does and return their folder.

    Raises:
        UsageError: If a setting is out of range, a label unknown, or OUT holds something else.
        ArtifactError: If the model is damaged, or the picture missing or none.
    """
    with local(settings.model) as model:
        index = read_index(model)
        rows = kept_rows(settings.keep, index.spec.levels[0].grid[0])
        if not settings.image.is_file():
            what = "is not a file" if settings.image.exists() else "does not exist"
            raise ArtifactError(f"{settings.image} {what}; give a picture")
        begun = {"image_sha256": file_sha256(settings.image), "rows": rows}
        return _draw_set(replace(settings, model=model), index, {"rejection": None, "completion": begun}, None)


def _find_classifier(settings: Generate, index: ModelIndex) -> ClassifierFiles | None:
    if settings.reject_with is None and settings.keep is None:
        return None
    if settings.reject_with is None or settings.keep is None:
        present, other = ("keep", "reject-with") if settings.reject_with is None else ("reject-with", "keep")
        raise UsageError(f"--{present} goes with --{other}; give both or neither")
    candidates_of(settings.keep)
    if settings.unconditional:
        raise UsageError("--reject-with cannot go with --unconditional: it judges how well an image shows its class")
    return find_classifier(Path(settings.reject_with), index.label_names)


def _draw_set(settings: Drawing, index: ModelIndex, more: dict[str, Any], classifier: ClassifierFiles | None) -> Path:
    prior_folder = find_component(settings.model, "prior")
    config = read_prior_config(prior_folder)
    given = open_given(settings.given if isinstance(settings, Generate) else None, index, config.given_levels)
    sheet = sheet_place(settings.out, settings.sheet)
    sampling = resolve_sampling(index, Sampling.of(settings), unconditional=settings.unconditional)
    check_request(
        index,
        sampling,
        num_images=settings.num_images,
        seed=settings.seed,
        batch_size=settings.batch_size,
        conditioned=bool(config.conditions),
    )
    labels = None if settings.labels is None else split_labels(readable(settings.labels), index.label_names)
    cycle = class_of_each(labels, len(index.label_names), index.label_names, unconditional=settings.unconditional)
    if given is not None:
        if labels is None and not settings.unconditional:
            cycle = given.classes(index) or cycle
        more = {**more, "given": given.store.store_id}
    conditions = _read_conditions(settings, config)
    if conditions:
        more = {**more, "conditions_sha256": sha256(canonical_json(conditions)).hexdigest()}
    if settings.unconditional:
        require_null_prompt(config.unconditional)
    named = [index.label_names[c] for c in cycle] if index.label_names and not settings.unconditional else None
    request = {
        "format_version": 1,
        "codec_id": index.codec_id,
        "prior_id": file_sha256(prior_folder / WEIGHTS),
        "num_images": settings.num_images,
        "seed": settings.seed,
        "labels": named,
        "unconditional": settings.unconditional,
        "sampling": sampling.words(),
        **more,
    }
    done = already_done(settings.out, REQUEST, request, kind="samples", overwrite=settings.overwrite)
    modality = modality_of(settings.model)
    called = f"{settings.num_images} {rows_called(modality)}"
    if done and holds_samples(settings.out, settings.num_images, modality.files.extension):
        _add_sheet(start_runtime(), settings, sheet, called)
        return settings.out
    pipeline = VQPriorPipeline.from_pretrained(settings.model)
    runtime = start_runtime()
    runtime.say(runtime.describe())
    if sheet.note:
        runtime.say(sheet.note)
    pipeline.to(runtime.device)
    values = _condition_values(pipeline, settings, conditions, runtime)
    draw = _drawing(pipeline, runtime, settings, cycle, sampling, classifier, given, values)
    staging = open_staging(settings.out, REQUEST, request, runtime)
    _draw_missing(draw, runtime, staging, settings, pipeline.codec.modality)
    runtime.barrier()
    if runtime.is_main:
        _publish(staging, settings, pipeline.codec, sheet)
        notes = getattr(pipeline.codec.modality.files, "notes", ())
        print("\n".join([f"wrote {called} and {REQUEST} to {settings.out}{sheet.in_words}", *notes]))
    runtime.barrier()
    return settings.out


def _read_conditions(settings: Drawing, config: PriorConfig) -> dict[str, Any]:
    """Return what --condition holds, by name; raises `UsageError` if it cannot go with the rest."""
    path = settings.condition if isinstance(settings, Generate) else None
    if path is None:
        return {}
    if settings.unconditional:
        raise UsageError(f"--condition {path} cannot go with --unconditional; leave out one of them")
    return read_conditions(path, [each.column.name for each in config.conditions])


def _condition_values(
    pipeline: VQPriorPipeline, settings: Drawing, conditions: dict[str, Any], runtime: Runtime
) -> Mapping[str, Tensor]:
    if not settings.unconditional:
        for condition in conditions_of(pipeline.prior.model):
            if condition.column.name not in conditions:
                runtime.say(f"condition {condition.column.name} is not given: every sample is drawn without it")
    count = settings.num_images * (_candidates(settings) or 1)
    return condition_values(pipeline.prior, conditions, count, each=_candidates(settings) or 1)


def _drawing(
    pipeline: VQPriorPipeline,
    runtime: Runtime,
    settings: Drawing,
    cycle: list[int],
    sampling: Sampling,
    files: ClassifierFiles | None,
    codes: GivenCodes | None,
    values: Mapping[str, Tensor],
) -> DrawImages:
    """Return what draws the images of some indices: as they come, as completions, or the best of candidates."""
    known = None
    if isinstance(settings, Complete):
        for note in told_of_file(settings.image, pipeline.codec):
            runtime.say(note)
        known = pipeline.given_of(settings.image, settings.keep)

    def samples(indices: list[int], classes: list[int]) -> Tensor:
        given = None if known is None else known.expand(len(indices), -1)
        if codes is not None:
            given = codes.tokens(pipeline.prior.layout, indices)
        rows = {name: each[torch.tensor(indices) % len(each)] for name, each in values.items()}
        more = {"given": given, "condition": rows, **sampling.words()}
        return pipeline.draw(classes, seed=settings.seed, indices=indices, **more)[0]

    def of_class(indices: list[int]) -> list[int]:
        return [cycle[i % len(cycle)] for i in indices]

    if files is None or not isinstance(settings, Generate) or settings.keep is None:
        return lambda indices: (samples(indices, of_class(indices)), None)
    spec = pipeline.index.spec
    judge = Classifier(files, (spec.channels, *spec.shape), runtime.device)
    runtime.say(files.note)
    at_once = settings.batch_size or default_batch_size(runtime.device)
    choose = partial(best_of, samples, judge, candidates=candidates_of(settings.keep), at_once=at_once)
    return lambda indices: choose(indices, of_class(indices))


def _draw_missing(draw: DrawImages, runtime: Runtime, staging: Path, settings: Drawing, modality: Modality) -> None:
    candidates, extension = _candidates(settings), modality.files.extension
    noted, called = candidates is not None, rows_called(modality)
    mine = share_of_missing(staging, settings.num_images, runtime, noted=noted, extension=extension)
    size = max(1, (settings.batch_size or default_batch_size(runtime.device)) // (candidates or 1))
    started = time.monotonic()
    bar = tqdm(
        total=len(mine), unit=called[:-1], disable=None if runtime.is_main else True, file=sys.stderr, leave=False
    )
    for first in range(0, len(mine), size):
        indices = mine[first : first + size]
        images, kept = draw(indices)
        for i, stored in zip(indices, modality.values.to_stored(images), strict=True):
            file = array_bytes(stored) if extension is None else modality.files.encode(stored)
            write_atomic(staging / sample_name(i, extension), file, durable=False)
        for i, note in zip(indices, kept or (), strict=False):
            write_note(staging, i, note)
        bar.update(len(indices))
    bar.close()
    seconds = time.monotonic() - started
    if mine:
        runtime.say(f"drew {len(mine)} {called} in {seconds:.1f} s ({len(mine) / seconds:.1f} {called}/s a process)")


def _publish(staging: Path, settings: Drawing, codec: Codec, sheet: SheetPlace) -> None:
    noted, extension = _candidates(settings) is not None, codec.modality.files.extension
    require_whole(staging, settings.num_images, noted=noted, extension=extension)
    if extension is None:
        join_samples(staging, settings.num_images, codec.modality.name)
    if sheet.path is not None:  # before the folder is visible, so that none is seen without its sheet
        sheet.write(_sheet_of(staging, settings.num_images, codec))
    if noted:
        request = {**read_json(staging / REQUEST), "kept": read_notes(staging, settings.num_images)}
        write_atomic(staging / REQUEST, pretty_json(request))
    publish_without_notes(staging, settings.out)


def _sheet_of(folder: Path, count: int, codec: Codec) -> bytes:
    """Return the sheet of the first samples of a folder, a PNG file."""
    modality, shown = codec.modality, range(min(count, MAX_SHOWN))
    extension = modality.files.extension
    if extension is None:
        with np.load(folder / JOINED, allow_pickle=False) as arrays:
            stored = arrays[modality.name][: len(shown)]
    else:
        files = FileRows([folder / sample_name(i, extension) for i in shown])
        stored = np.stack([stored_row(files, i, modality, codec.transform) for i in shown])
    values = modality.values.to_values(torch.from_numpy(stored))
    return sheet_bytes(modality.show.sheet(values))


def _add_sheet(runtime: Runtime, settings: Drawing, sheet: SheetPlace, called: str) -> None:
    """Say that the samples are there, and write their sheet if it is not (main process)."""
    runtime.say(f"{settings.out} already holds these {called}")
    if runtime.is_main and sheet.is_missing:
        codec = VQPriorPipeline.from_pretrained(settings.model).codec
        sheet.write(_sheet_of(settings.out, settings.num_images, codec))
        print(f"wrote a sheet of them to {sheet.path}")


def _candidates(settings: Drawing) -> int | None:
    """Return how many candidates a classifier chooses each image from; None without one."""
    return candidates_of(settings.keep) if isinstance(settings, Generate) and settings.keep else None
