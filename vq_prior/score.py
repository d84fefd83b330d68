"""`vq-prior score`: how likely a MODEL finds the codes of given images, in numbers and as pictures."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from stage1_vqvae.evaluate import transform_of
from stage1_vqvae.pixels import decoded_ahead
from stage1_vqvae.rows import ImageRows
from stage1_vqvae.sources import ImageData, open_data_of
from stage2_prior.layout import SequenceLayout
from vq_prior.core.artifacts import new_folder, write_atomic
from vq_prior.core.components import WEIGHTS, find_component, label_index
from vq_prior.core.config import pretty_json
from vq_prior.core.errors import UsageError
from vq_prior.core.identity import file_sha256
from vq_prior.core.media import picture_grid, save_png, to_picture, to_unit_range
from vq_prior.core.repository import local
from vq_prior.core.runtime import start_runtime
from vq_prior.likelihood import Scores, chance_nats, heat, score_codes
from vq_prior.model_folder import read_index
from vq_prior.pipeline import VQPriorPipeline, require_null_prompt
from vq_prior.sampler import already_done, picture_name
from vq_prior.settings import Score

SCORES = "scores.json"
ROWS_AT_ONCE = 256
MAX_GRID_IMAGES = 64


def score(settings: Score) -> Path:
    """Score every image of DATA and return the folder: `scores.json`, `000000.png` ... and `maps.png`.

    Raises:
        UsageError: If a label is no class of the model, or OUT holds something else.
        ArtifactError: If the model or the data is missing or damaged.
    """
    with local(settings.model) as model:
        return _score(settings, model)


def _score(settings: Score, model: Path) -> Path:
    index = read_index(model)
    prior_id = file_sha256(find_component(model, "prior") / WEIGHTS)
    known = {"format_version": 1, "codec_id": index.codec_id, "prior_id": prior_id}
    known |= {"unconditional": settings.unconditional}
    already_done(settings.out, SCORES, known, kind="scores", overwrite=settings.overwrite)  # before the data is read
    data = open_data_of(settings, say=print)
    request = {**known, "data_id": data.data_id}
    if already_done(settings.out, SCORES, request, kind="scores", overwrite=settings.overwrite):
        print(f"{settings.out} already holds these scores")
        return settings.out
    pipeline = VQPriorPipeline.from_pretrained(model)
    classes = _classes(pipeline, data, unconditional=settings.unconditional)
    transform_of(pipeline.codec)
    runtime = start_runtime("fp32")
    print(runtime.describe(), flush=True)
    pipeline.to(runtime.device)
    with new_folder(settings.out, manifest=False) as staging:
        rows = _score_rows(pipeline, data, classes, staging, settings.num_workers)
        _save_least_likely(rows, staging)
        scale = [{"blue": 0.0, "white": nats, "red": 2 * nats} for nats in chance_nats(pipeline.prior.layout)]
        means = {split: _mean(rows, split) for split in ("train", "validation")}
        result = {**request, "map_nats": scale, "mean_nats_per_token": means}
        write_atomic(staging / SCORES, pretty_json({**result, "images": rows}))
    for split, mean in means.items():
        if mean is not None:
            print(f"{split} nats per token {mean:.4f}")
    unseen = sum(row["nats_per_token"] is None for row in rows)
    if unseen:
        print(f"{unseen} images hold codes that this prior has no token for: infinitely unlikely, null in {SCORES}")
    print(f"wrote {len(rows)} images beside their maps, maps.png and {SCORES} to {settings.out}")
    return settings.out


def _classes(pipeline: VQPriorPipeline, data: ImageData, *, unconditional: bool) -> list[int]:
    """Return the model's class of each class of the data; none where images are scored without a class.

    Raises:
        UsageError: If the model lacks a class of the data, or images without a class have no trained prompt.
    """
    layout = pipeline.prior.layout
    if layout.num_classes and data.label_names and not unconditional:
        try:
            names = pipeline.index.label_names
            return [label_index(name, names, layout.num_classes) for name in data.label_names]
        except UsageError as error:
            raise UsageError(f"{error}; --unconditional scores without classes") from error
    require_null_prompt(pipeline.prior.unconditional)
    return []


def _score_rows(
    pipeline: VQPriorPipeline, data: ImageData, classes: list[int], staging: Path, num_workers: int | None
) -> list[dict[str, Any]]:
    """Write the picture of each image and return what `scores.json` says of it."""
    results: list[dict[str, Any]] = []
    bar = tqdm(total=len(data.train) + len(data.validation), unit="image", disable=None, file=sys.stderr, leave=False)
    for split, rows in (("train", data.train), ("validation", data.validation)):
        first = 0
        for pixels in decoded_ahead(rows, transform_of(pipeline.codec), ROWS_AT_ONCE, num_workers=num_workers):
            here = rows.subset(range(first, first + len(pixels)))
            labels = torch.full((len(pixels),), pipeline.prior.null_label)
            if classes and here.labels is not None:
                labels = torch.tensor([classes[label] for label in here.labels])
            codes = pipeline.codec.encode(to_unit_range(torch.from_numpy(pixels)).to(pipeline.device))
            scores = score_codes(pipeline.prior, codes, labels)
            pictures = _beside(pixels, scores, pipeline.prior.layout)
            for picture, entry in zip(pictures, _entries(here, data, scores, pipeline.prior.layout), strict=True):
                file = picture_name(len(results))
                save_png(staging / file, to_picture(picture), durable=False)
                results.append({"file": file, "split": split, **entry})
            first += len(pixels)
            bar.update(len(pixels))
    bar.close()
    return results


def _entries(rows: ImageRows, data: ImageData, scores: Scores, layout: SequenceLayout) -> list[dict[str, Any]]:
    limits = zip(scores.maps, chance_nats(layout), strict=True)
    beyond = torch.stack([(nats > 2 * chance).flatten(1).sum(dim=1) for nats, chance in limits]).sum(dim=0)
    return [
        {
            "row": int(rows.source_index[number]),
            "name": rows.name(number),
            "label": None if rows.labels is None else data.label_names[rows.labels[number]],
            "nats_per_token": nats if math.isfinite(nats) else None,
            "bits_per_dimension": bits if math.isfinite(nats) else None,
            "cells_beyond_red": int(beyond[number]),
        }
        for number, (nats, bits) in enumerate(
            zip(scores.nats_per_token.tolist(), scores.bits_per_dimension.tolist(), strict=True)
        )
    ]


def _beside(pixels: NDArray[np.uint8], scores: Scores, layout: SequenceLayout) -> NDArray[np.uint8]:
    """Return each image beside its map of each level, [n, height, width * (1 + levels), 3] uint8."""
    shape = pixels.shape[1:3]
    maps = [heat(nats, shape, chance) for nats, chance in zip(scores.maps, chance_nats(layout), strict=True)]
    coloured = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    return np.concatenate([coloured, *maps], axis=2)


def _save_least_likely(rows: list[dict[str, Any]], staging: Path) -> None:
    """Write `maps.png`: the pictures of the images of the most nats, the most first."""

    def nats(row: dict[str, Any]) -> float:
        return math.inf if row["nats_per_token"] is None else float(row["nats_per_token"])

    shown = []
    for row in sorted(rows, key=nats, reverse=True)[:MAX_GRID_IMAGES]:
        with Image.open(staging / row["file"]) as picture:
            shown.append(np.asarray(picture))
    save_png(staging / "maps.png", picture_grid(np.stack(shown)))


def _mean(rows: list[dict[str, Any]], split: str) -> float | None:
    """Return the mean nats per token of a split's images; None where one of them is infinite."""
    nats = [row["nats_per_token"] for row in rows if row["split"] == split]
    return None if None in nats else math.fsum(nats) / len(nats)
