"""How long the work of a prior takes on this machine, by doing a little of it: steps, measurements, drawing."""

import time
from dataclasses import dataclass

import numpy as np

from stage2_prior.calibrate import ROWS_PER_CALL, calibrate
from stage2_prior.opening import begin
from stage2_prior.prior import CausalPrior
from stage2_prior.run import Training
from stage2_prior.sampling import sample_tokens
from stage2_prior.settings import TrainPrior, filled
from stage2_prior.train import evaluate, update
from vq_prior.core.processes.collectives import mean_over_processes
from vq_prior.core.processes.threads import using_threads

UNTIMED, FEWEST = 2, 4  # steps: the first ones pay for what begins, and fewer tell nothing
DRAWN, GUIDED = (16, 96), 1.5  # samples drawn at once, first to warm up; and the guidance that doubles their passes
USUAL = (0.3, 1.6, 2.5)  # of a row of a step: measuring a row, choosing by it, drawing one


@dataclass(frozen=True)
class PriorRates:
    """What was measured of a prior that is to be trained.

    Attributes:
        settings: Of its training, resolved for the codes and the machine.
        num_rows: Training rows.
        num_measured: Held-out rows that a measurement sees.
        tokens: Of a row.
        begin: Seconds until the first step.
        step: Seconds of an optimiser step, all processes together.
        measure: Seconds of a measurement on the held-out rows.
        choose: Seconds to choose the sampling settings at the end.
        draw: Seconds to draw a row with guidance, one process.
    """

    settings: TrainPrior
    num_rows: int
    num_measured: int
    tokens: int
    begin: float
    step: float
    measure: float
    choose: float
    draw: float


@using_threads()
def prior_rates(
    settings: TrainPrior, base: CausalPrior | None = None, *, seconds: float, whole: bool = True
) -> PriorRates:
    """Return what real steps, a measurement and some drawing took; nothing is written or kept.

    Every process must call it.

    Args:
        settings: As typed; their codes are there.
        base: The prior that `settings.from_model` names, already loaded; None loads it from there.
        seconds: That the timed steps take about.
        whole: Whether to measure more than the steps; else the rest is told from these, by what is usual.

    Raises:
        UsageError: If a setting does not fit the codes or the machine.
        NumericError: If a loss is not finite.
    """
    began = time.monotonic()
    training = begin(settings, base=base, aloud=False).training
    beginning, device = time.monotonic() - began, training.runtime.device
    for _ in range(UNTIMED):
        _step(training)
    first = mean_over_processes(_seconds_of_step(training, 1), device)
    step = _seconds_of_step(training, max(FEWEST, int(seconds / first)))
    of_row = step / filled(training.settings.batch_size)
    measure, choose, draw = (share * of_row for share in USUAL)
    times = (measure * len(training.held_out), choose * len(training.held_out), draw)
    if whole:
        times = (*_seconds_of_looking(training), _seconds_of_row(training))
    same = [mean_over_processes(each, device) for each in (beginning, step, *times)]
    held_out, layout = len(training.held_out), training.prior.layout
    return PriorRates(training.settings, len(training.train), held_out, layout.num_drawn, *same)


def _seconds_of_looking(t: Training) -> tuple[float, float]:
    """Return the seconds of a measurement, and of choosing the sampling settings."""
    began = time.monotonic()
    evaluate(t)
    measured = time.monotonic()
    rows = min(len(t.held_out), ROWS_PER_CALL)
    calibrate(t.prior, *t.held_out.conditioned(slice(0, rows)))
    return measured - began, (time.monotonic() - measured) * len(t.held_out) / rows


def _seconds_of_step(t: Training, steps: int) -> float:
    began = time.monotonic()
    for _ in range(steps):
        _step(t)
    return (time.monotonic() - began) / steps


def _step(t: Training) -> None:
    float(update(t)["train_nats"])  # which waits for a GPU


def _seconds_of_row(t: Training) -> float:
    """Return the seconds of a row among some that are drawn at once; given levels are those of held-out rows."""
    prior, layout = t.prior, t.prior.layout
    guided = prior.unconditional and (layout.num_classes > 1 or prior.num_vectors > 0)
    seconds = 0.0
    for count in DRAWN:  # the first call finds out what the machine can
        tokens, conditioned = t.held_out.conditioned(np.arange(count) % len(t.held_out))
        given = None
        if layout.given_levels:
            given = tokens.clone()
            given[:, layout.drawn_positions] = -1
        began = time.monotonic()
        sample_tokens(
            prior, conditioned, seed=0, indices=range(count), given=given, guidance_scale=GUIDED if guided else 1.0
        )
        seconds = (time.monotonic() - began) / count
    return seconds
