"""How long the work of a codec takes on this machine, by doing a little of it: steps, reading and encoding of rows."""

import time
from dataclasses import dataclass, replace

import numpy as np

from stage1_vqvae.data.loading import LoadedRows, load_rows
from stage1_vqvae.data.sources import Data
from stage1_vqvae.passes import passes
from stage1_vqvae.perceptual import Making, Perceptual, kind_of
from stage1_vqvae.run import Training, prepare
from stage1_vqvae.settings import TrainVQVAE, resolve, trained_form
from stage1_vqvae.train import fitted_to_machine, making_of, new_codec, set_rates, start_codebook, update
from vq_prior.core.modality import Form, Modality
from vq_prior.core.processes.collectives import mean_over_processes
from vq_prior.core.processes.runtime import Runtime, start_runtime
from vq_prior.core.processes.threads import using_threads
from vq_prior.core.spec import Codec, CodeSpec

FITTED = (3, 9)  # steps of two short fits, whose difference tells a step
UNTIMED, FEWEST = 2, 4  # steps: the first ones pay for what begins, and fewer tell nothing
ROWS_READ, ROWS_CODED = 512, 128


@dataclass(frozen=True)
class RowRates:
    """Seconds that a row takes a process.

    Attributes:
        read: From disk into the codec's form.
        encode: To codes.
        decode: From codes.
    """

    read: float
    encode: float
    decode: float


@dataclass(frozen=True)
class CodecRates:
    """What was measured of a codec that is to be trained.

    Attributes:
        settings: Of its training, resolved for the data and the machine.
        spec: Of its codes.
        step: Seconds of an optimiser step, all processes together: the mean over the training, since a perceptual term
            is part of some of them.
        begin: Seconds of what is done before the first step: a perceptual term that is fitted.
        rows: Of a row.
    """

    settings: TrainVQVAE
    spec: CodeSpec
    step: float
    begin: float
    rows: RowRates


@using_threads()
def codec_rates(settings: TrainVQVAE, data: Data, *, seconds: float) -> CodecRates:
    """Return what real steps on some of the rows took, optimiser and codebook included; nothing is written or kept.

    Every process must call it.

    Args:
        settings: As typed.
        data: What they name, already opened.
        seconds: That the timed steps take about.

    Raises:
        UsageError: If a setting does not fit the data or the machine.
        NumericError: If a loss is not finite.
    """
    runtime = start_runtime(settings.precision, reproducible=settings.reproducible, threads=settings.threads)
    settings = resolve(settings, data.facts(), runtime.device.type, modality=data.modality)
    runtime, settings = fitted_to_machine(runtime, settings)
    model, form = new_codec(settings), trained_form(settings)
    some, rows, read = _some_rows(data, *form, num_workers=settings.num_workers)
    making = making_of(settings, model, some, runtime)
    term = None if making is None else kind_of(making.name)(making)
    training = prepare(settings, runtime, model, rows, rows, perceptual=term)
    training.perceptual = None  # at first
    start_codebook(training)
    for _ in range(UNTIMED):
        _step(training)
    first = mean_over_processes(_seconds_of(training, 1), runtime.device)
    step = mean_over_processes(_seconds_of(training, max(FEWEST, int(seconds / first))), runtime.device)
    begin = 0.0
    if term is not None and making is not None:
        begin = mean_over_processes(_fit_seconds(term, replace(making, say=lambda _: None), rows), runtime.device)
        training.perceptual = term.to(runtime.device)
        training.settings = replace(settings, loss=replace(settings.loss, perceptual_start=0.0))
        _seconds_of(training, 1)
        more = mean_over_processes(_seconds_of(training, FEWEST), runtime.device)
        step += (1 - settings.loss.perceptual_start) * max(0.0, more - step)
    return CodecRates(settings, model.spec, step, begin, _row_rates(model.eval(), rows, read, runtime))


def _fit_seconds(term: Perceptual, making: Making, rows: LoadedRows) -> float:
    """Return the seconds of fitting a perceptual term, from two short fits."""
    if not term.fit_steps:
        return 0.0
    ends = [time.monotonic()]
    for steps in FITTED:
        term.fit(making, rows, steps=steps)
        ends.append(time.monotonic())
    few, many = ends[1] - ends[0], ends[2] - ends[1]
    return max(0.0, many - few) / (FITTED[1] - FITTED[0]) * term.fit_steps


@using_threads()
def row_rates(codec: Codec, data: Data, *, num_workers: int | None) -> RowRates:
    """Return what reading, encoding and decoding took for some of the rows; every process must call it.

    Args:
        codec: It; on the device of this process afterwards.
        data: Rows of its kind.
        num_workers: Threads that read; None is as many as speed it up.
    """
    runtime = start_runtime("fp32")
    _, rows, read = _some_rows(data, codec.modality, codec.transform, num_workers=num_workers)
    codec.to(runtime.device)
    return _row_rates(codec, rows, read, runtime)


def _some_rows(
    data: Data, modality: Modality, form: Form, *, num_workers: int | None
) -> tuple[Data, LoadedRows, float]:
    """Return data of some rows spread over those to train on, these read, and the seconds that each took."""
    count = min(len(data.train), ROWS_READ)
    some = data.train.subset(np.arange(count, dtype=np.int64) * len(data.train) // count)
    began = time.monotonic()
    rows = load_rows(some, modality, form, num_workers=num_workers)
    return replace(data, train=some), rows, (time.monotonic() - began) / count


def _row_rates(codec: Codec, rows: LoadedRows, read: float, runtime: Runtime) -> RowRates:
    values = rows.batch(range(min(len(rows), ROWS_CODED)), runtime.device)
    codec.decode(codec.encode(values))  # the first call pays for what begins
    began = time.monotonic()
    codes = codec.encode(values)
    int(codes[0].sum())  # which waits for a GPU
    encoded = time.monotonic()
    float(codec.decode(codes).sum())
    ended = time.monotonic()
    seconds = (read, (encoded - began) / len(values), (ended - encoded) / len(values))
    return RowRates(*(mean_over_processes(each, runtime.device) for each in seconds))


def _seconds_of(t: Training, steps: int) -> float:
    began = time.monotonic()
    for _ in range(steps):
        _step(t)
    return (time.monotonic() - began) / steps


def _step(t: Training) -> None:
    share = t.runtime.share(t.batch_size)
    values = t.train.to_values(t.train.stored(t.rows(t.step)[share]), t.runtime.device)
    learning_rate, (_, total, _) = set_rates(t), passes(t, values)
    update(t, learning_rate)
    float(total)  # which waits for a GPU
