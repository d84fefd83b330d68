"""The rates that `vq-prior train --minutes` chooses by, measured by doing a little of each part of the work."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stage1_vqvae.data.sources import Data
from stage1_vqvae.modalities.pictures.classifier import (
    MAX_FITTED,
    STEPS,
    FittedNetwork,
    Pixels,
    SmallNetwork,
    fit_network,
    gather_small,
)
from stage1_vqvae.settings import TrainVQVAE, resolve, trained_form
from stage1_vqvae.timing import RowRates, codec_rates, row_rates
from stage2_prior.settings import TrainPrior, filled
from stage2_prior.timing import PriorRates, prior_rates
from vq_prior.cli.choices import Candidate, Rates, Recipe, Sizes
from vq_prior.core.config import from_json, to_json
from vq_prior.core.disk.artifacts import remove, write_atomic
from vq_prior.core.disk.code_store import (
    ROWS_PER_SHARD,
    SPLITS,
    CodeIndex,
    Shard,
    Source,
    shard_bytes,
    shard_file,
    shard_ranges,
    store_columns,
    write_index,
)
from vq_prior.core.identity import file_sha256
from vq_prior.core.modality import Form, Modality
from vq_prior.core.processes.collectives import mean_over_processes
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.settings import given_names
from vq_prior.core.spec import Codec, CodeSpec

MOST_RANDOM_ROWS = (5 * ROWS_PER_SHARD, 1000)  # as many as change a default; more would only take longer
TIMED_SHARE, MOST_TIMED = 0.012, 6.0  # of the minutes, and seconds, for the steps of one training
UNTIMED, TIMED, JUDGED = 3, 8, 160  # steps of the evaluation's network, and pictures that it sees


def sizes_of(data: Data) -> Sizes:
    """Return how much work the data make."""
    return Sizes(
        num_train=len(data.train),
        num_held_out=len(data.validation),
        labelled=len(data.label_names) > 1,
        num_fitted=min(len(data.train), MAX_FITTED),
        fit_steps=STEPS,
    )


def timed_seconds(minutes: float | None) -> float:
    """Return the seconds that timing the steps of one training may take."""
    return MOST_TIMED / 6 if minutes is None else min(MOST_TIMED, TIMED_SHARE * 60 * minutes)


def form_of(settings: TrainVQVAE, data: Data) -> tuple[Modality, Form]:
    """Return the kind of the data and the form in which a codec with these settings would see them."""
    device = start_runtime("fp32").device.type
    return trained_form(resolve(settings, data.facts(), device, modality=data.modality))


def with_more(settings: Any, more: Mapping[str, Any]) -> Any:
    """Return settings (a dataclass) with others, JSON values by name, put in; those count as given."""
    given = {name.partition(".")[0] for name in given_names(settings)}
    mine = {name: value for name, value in to_json(settings).items() if name in given}
    return from_json(type(settings), {**mine, **more}, "settings")


def candidate(
    recipe: Recipe, settings: TrainVQVAE, data: Data, open_seconds: float, folder: Path, *, seconds: float
) -> Candidate:
    """Return a recipe with all its rates; its prior is timed on random codes, which are written and removed.

    Every process must call it.

    Args:
        recipe: It.
        settings: Of train-vqvae without it.
        data: The data.
        open_seconds: That opening them took.
        folder: For the random codes; the same one for every process.
        seconds: That the timed steps of a training take about.
    """
    codec = codec_rates(with_more(settings, recipe.codec), data, seconds=seconds)
    runtime = start_runtime("fp32")
    if runtime.is_main:
        write_random_codes(folder, codec.spec, data)
    runtime.barrier()
    asked = with_more(TrainPrior(codes=folder, out=folder / "none"), recipe.prior)
    prior = prior_rates(asked, seconds=seconds, whole=False)
    runtime.barrier()
    if runtime.is_main:
        remove(folder)
    pixels = _random_pixels(trained_form(codec.settings)[0], codec.spec)
    rates = rates_of(open_seconds, codec.rows, (codec.begin, codec.step), prior, pixels)
    steps, batch = filled(prior.settings.steps), filled(prior.settings.batch_size)
    return Candidate(recipe, rates, filled(codec.settings.steps), steps, batch)


def measured_on_codes(
    settings: TrainPrior, codec: Codec, data: Data, open_seconds: float, *, seconds: float
) -> tuple[Rates, PriorRates]:
    """Return the rates of what is left when the codes are there; every process must call it.

    Args:
        settings: Of train-prior; their codes are there.
        codec: Of the codes.
        data: That the codes are of.
        open_seconds: That opening them took.
        seconds: That the timed steps take about.
    """
    prior = prior_rates(settings, seconds=seconds)
    rows = row_rates(codec, data, num_workers=None)
    return rates_of(open_seconds, rows, (0.0, 0.0), prior, _random_pixels(codec.modality, codec.spec)), prior


def _random_pixels(modality: Modality, spec: CodeSpec) -> Pixels:
    """Return pictures of random values, [n, height, width, C]."""
    return modality.show.pictures(torch.rand(JUDGED, spec.channels, *spec.shape) * 2 - 1)


def rates_of(
    open_seconds: float, rows: RowRates, codec: tuple[float, float], prior: PriorRates, pixels: Pixels
) -> Rates:
    """Return all rates, those of the evaluation's network measured on some pixels [n, height, width, C].

    `codec` is what its training takes to begin, and a step of it.
    """
    fit_step, judge = _evaluation_rates(pixels)
    device = start_runtime("fp32").device
    mine = Rates(
        open=open_seconds,
        **asdict(rows),
        codec_begin=codec[0],
        codec_step=codec[1],
        prior_begin=prior.begin,
        prior_step=prior.step,
        measure=prior.measure,
        choose=prior.choose,
        draw=prior.draw,
        fit_step=fit_step,
        judge=judge,
    )
    return Rates(**{name: mean_over_processes(each, device) for name, each in asdict(mine).items()})


class _EnoughError(Exception):
    """Ends the fit of a network that is only timed."""


def _evaluation_rates(pixels: Pixels) -> tuple[float, float]:
    """Return the seconds of a step of the evaluation's network, and those in which it sees a row."""
    images = gather_small([pixels])
    ends: list[float] = []

    def progress(_steps: int) -> None:
        ends.append(time.monotonic())
        if len(ends) == UNTIMED + TIMED:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        fit_network(images, np.zeros(len(images), dtype=np.int64), 2, seed=0, progress=progress)
    network = FittedNetwork(SmallNetwork(images.shape[1], images.shape[2], 2).eval(), 0, 0, True)
    network.features(pixels)
    began = time.monotonic()
    network.features(pixels)
    return (ends[-1] - ends[UNTIMED - 1]) / (len(ends) - UNTIMED), (time.monotonic() - began) / len(pixels)


def write_random_codes(folder: Path, spec: CodeSpec, data: Data) -> None:
    """Write a code store of random codes, such as a codec of this spec would make of the data, in fewer rows."""
    rng = np.random.default_rng(0)
    columns = store_columns(spec, labelled=bool(data.label_names))
    shards = []
    for split, rows, most in zip(SPLITS, (data.train, data.validation), MOST_RANDOM_ROWS, strict=True):
        for number, some in enumerate(shard_ranges(min(len(rows), most))):
            count = len(some)
            values: dict[str, Any] = {
                f"codes.{n}": rng.integers(0, level.num_codes, (count, *level.grid))
                for n, level in enumerate(spec.levels)
            }
            if data.label_names:
                values["label"] = rng.integers(0, len(data.label_names), count)
            values |= {"source_index": np.asarray(some), "view": np.zeros(count, dtype=np.uint8)}
            path = folder / shard_file(split, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, shard_bytes(columns, values), durable=False)
            shards.append(Shard(split, shard_file(split, number), some.start, count, file_sha256(path)))
    source = Source("random", "0" * 64)
    index = CodeIndex(1, source, spec, source, {}, data.label_names, columns, ROWS_PER_SHARD, tuple(shards))
    write_index(folder, index)
