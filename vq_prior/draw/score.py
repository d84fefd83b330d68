"""`vq-prior score`: how likely a MODEL finds the codes of given images, in numbers and as pictures.

What is said of an image is a function of it, its label and the model: any number of processes share the images, and a
rerun continues; see `picture_folder`.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from stage1_vqvae.codecs import modality_of
from stage1_vqvae.data.loading import stored_ahead
from stage1_vqvae.data.rows import DataRows
from stage1_vqvae.data.sources import Data, open_data_of, rows_called
from stage1_vqvae.modalities.sheets import grid_of_files, save_png, sheet_bytes, to_picture
from stage2_prior.layout import SequenceLayout
from stage2_prior.likelihood import Scores, chance_nats, score_codes
from vq_prior.core.config import pretty_json, read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.components import WEIGHTS, find_component
from vq_prior.core.disk.locks import releasing
from vq_prior.core.disk.sheet_beside import SheetPlace, sheet_place
from vq_prior.core.errors import UsageError
from vq_prior.core.hub.repository import local
from vq_prior.core.identity import file_sha256
from vq_prior.core.labels import MOST_NAMED, label_index, one_form
from vq_prior.core.processes.runtime import Runtime, start_runtime
from vq_prior.draw.sample_folder import (
    MAX_REQUEST_BYTES,
    already_done,
    holds_samples,
    open_staging,
    publish_without_notes,
    read_notes,
    require_whole,
    sample_name,
    share_of_missing,
    write_note,
)
from vq_prior.model.index import read_index
from vq_prior.model.pipeline import VQPriorPipeline
from vq_prior.model.request import require_null_prompt
from vq_prior.settings import Score

SCORES = "scores.json"
ROWS_AT_ONCE = 256
MAX_SHOWN = 64


@releasing
def score(settings: Score) -> Path:
    """Score every image of DATA and return the folder: `scores.json`, `000000.png` ..., and beside it a sheet.

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
    sheet = sheet_place(settings.out, settings.sheet)
    runtime = start_runtime("fp32")
    runtime.say(runtime.describe())
    data = open_data_of(settings, say=runtime.say, modality=modality_of(model))
    request = {**known, "data_id": data.data_id}
    done = already_done(settings.out, SCORES, request, kind="scores", overwrite=settings.overwrite)
    if done and holds_samples(settings.out, len(data.train) + len(data.validation)):
        runtime.say(f"{settings.out} already holds these scores")
        if runtime.is_main and sheet.is_missing:
            rows = read_json(settings.out / SCORES, max_bytes=MAX_REQUEST_BYTES)["images"]
            sheet.write(_least_likely(rows, settings.out))
            print(f"wrote a sheet of the least likely to {sheet.path}")
        return settings.out
    if sheet.note:
        runtime.say(sheet.note)
    pipeline = VQPriorPipeline.from_pretrained(model)
    classes = _classes(pipeline, data, unconditional=settings.unconditional, say=runtime.say)
    pipeline.to(runtime.device)
    for note in data.told_of(pipeline.codec.transform):
        runtime.say(note)
    staging = open_staging(settings.out, SCORES, request, runtime)
    _score_missing(pipeline, data, classes, runtime, staging, settings.num_workers)
    runtime.barrier()
    if runtime.is_main:
        _publish(staging, settings.out, request, data, pipeline.prior.layout, sheet)
    runtime.barrier()
    return settings.out


def _classes(pipeline: VQPriorPipeline, data: Data, *, unconditional: bool, say: Callable[[str], object]) -> list[int]:
    """Return the model's class of each class of the data; none where images are scored without a class.

    Raises:
        UsageError: If the model lacks a class of the data, or images without a class have no trained prompt.
    """
    layout = pipeline.prior.layout
    if layout.num_classes and data.label_names and not unconditional:
        try:
            names = pipeline.index.label_names
            classes = [label_index(name, names, layout.num_classes) for name in data.label_names]
        except UsageError as error:
            raise UsageError(f"{error}; --unconditional scores without classes") from error
        pairs = zip(data.label_names, (names[number] for number in classes), strict=True)
        if by_place := [f"{own} -> {of_model}" for own, of_model in pairs if one_form(own) != one_form(of_model)]:
            say(f"classes of the data by their place in the model: {', '.join(by_place[:MOST_NAMED])}")
        return classes
    require_null_prompt(pipeline.prior.unconditional)
    return []


def _score_missing(
    pipeline: VQPriorPipeline,
    data: Data,
    classes: list[int],
    runtime: Runtime,
    staging: Path,
    num_workers: int | None,
) -> None:
    """Write the picture and the note of this process's images, those of training first."""
    prior, codec, modality = pipeline.prior.packed(), pipeline.codec, pipeline.codec.modality
    mine = share_of_missing(staging, len(data.train) + len(data.validation), runtime, noted=True)
    bar = tqdm(total=len(mine), unit="image", disable=None if runtime.is_main else True, file=sys.stderr, leave=False)
    for _, rows, numbers in _splits(data):
        todo = [number for number in mine if number in numbers]
        left = rows.subset(np.array(todo, dtype=np.int64) - numbers.start)
        first = 0
        for stored in stored_ahead(left, modality, codec.transform, ROWS_AT_ONCE, num_workers=num_workers):
            here = slice(first, first + len(stored))
            labels = torch.full((len(stored),), prior.null_label)
            if classes and left.labels is not None:
                labels = torch.tensor([classes[label] for label in left.labels[here]])
            values = modality.values.to_values(torch.from_numpy(stored)).to(pipeline.device)
            scores = score_codes(prior, codec.encode(values), labels)
            pictures = modality.show.heat(values, scores.maps, chance_nats(prior.layout))
            for number, picture, note in zip(todo[here], pictures, _notes(scores, prior.layout), strict=True):
                save_png(staging / sample_name(number), to_picture(picture), durable=False)
                write_note(staging, number, note)
            first += len(stored)
            bar.update(len(stored))
    bar.close()


def _splits(data: Data) -> list[tuple[str, DataRows, range]]:
    """Return each split: its name, its rows, and their numbers among all images."""
    count, total = len(data.train), len(data.train) + len(data.validation)
    return [("train", data.train, range(count)), ("validation", data.validation, range(count, total))]


def _notes(scores: Scores, layout: SequenceLayout) -> list[dict[str, Any]]:
    """Return what `scores.json` says of the likelihood of each image."""
    limits = zip(scores.maps, chance_nats(layout), strict=True)
    beyond = torch.stack([(nats > 2 * chance).flatten(1).sum(dim=1) for nats, chance in limits]).sum(dim=0)
    return [
        {
            "nats_per_token": nats if math.isfinite(nats) else None,
            "bits_per_dimension": bits if math.isfinite(nats) else None,
            "cells_beyond_red": cells,
        }
        for nats, bits, cells in zip(
            scores.nats_per_token.tolist(), scores.bits_per_dimension.tolist(), beyond.tolist(), strict=True
        )
    ]


def _publish(
    staging: Path, out: Path, request: dict[str, Any], data: Data, layout: SequenceLayout, sheet: SheetPlace
) -> None:
    """Write `scores.json` and the sheet, make the folder visible and say what it holds (main process)."""
    count = len(data.train) + len(data.validation)
    require_whole(staging, count, noted=True)
    notes = read_notes(staging, count)
    images = [
        {
            "file": sample_name(number),
            "split": split,
            "row": int(rows.source_index[row]),
            "name": rows.name(row),
            "label": None if rows.labels is None else data.label_names[rows.labels[row]],
            **notes[number],
        }
        for split, rows, numbers in _splits(data)
        for row, number in enumerate(numbers)
    ]
    if sheet.path is not None:
        sheet.write(_least_likely(images, staging))
    scale = [{"blue": 0.0, "white": nats, "red": 2 * nats} for nats in chance_nats(layout)]
    means = {split: _mean(images, split) for split in ("train", "validation")}
    result = {**request, "map_nats": scale, "mean_nats_per_token": means, "images": images}
    write_atomic(staging / SCORES, pretty_json(result))
    publish_without_notes(staging, out)
    for split, mean in means.items():
        if mean is not None:
            print(f"{split} nats per token {mean:.4f}")
    unseen = sum(image["nats_per_token"] is None for image in images)
    if unseen:
        print(f"{unseen} images hold codes that this prior has no token for: infinitely unlikely, null in {SCORES}")
    sheet_note = "" if sheet.path is None else f", a sheet of the least likely to {sheet.path}"
    print(f"wrote {count} {rows_called(data.modality)} beside their maps and {SCORES} to {out}{sheet_note}")


def _least_likely(rows: list[dict[str, Any]], folder: Path) -> bytes:
    """Return the sheet of the images of the most nats, the most first, a PNG file."""

    def nats(row: dict[str, Any]) -> float:
        return math.inf if row["nats_per_token"] is None else float(row["nats_per_token"])

    shown = sorted(rows, key=nats, reverse=True)[:MAX_SHOWN]
    return sheet_bytes(grid_of_files(folder / row["file"] for row in shown))


def _mean(rows: list[dict[str, Any]], split: str) -> float | None:
    """Return the mean nats per token of a split's images; None where one of them is infinite."""
    nats = [row["nats_per_token"] for row in rows if row["split"] == split]
    return None if None in nats else math.fsum(nats) / len(nats)
