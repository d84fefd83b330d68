"""Temperature and guidance chosen on held-out rows, by measurement.

A measure gives one number for each candidate, smaller is better; another measure
can take the place of the default. Letters: B batch, T tokens, K legal ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_prior.conditions import Conditioned
from stage2_prior.folder import SamplingDefaults
from stage2_prior.prior import CausalPrior
from stage2_prior.sampling_settings import Sampling

TEMPERATURES = (0.8, 0.85, 0.9, 0.95, 1.0)
GUIDANCE_SCALES = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0)
ROWS_PER_CALL = 64
TOLERANCE = 0.02

Measure = Callable[[CausalPrior, Tensor, Tensor | Conditioned, Sequence[SamplingDefaults]], list[float]]


@dataclass(frozen=True)
class Calibration:
    """What was measured: the candidate chosen, and every candidate with its score (smaller is better)."""

    best: SamplingDefaults
    scores: tuple[tuple[SamplingDefaults, float], ...]


def candidates(prior: CausalPrior) -> list[SamplingDefaults]:
    """Return the grid of settings to try; guidance needs conditions that differ, and an unconditional prompt."""
    something = prior.layout.num_classes > 1 or prior.num_vectors > 0
    scales = GUIDANCE_SCALES if something and prior.unconditional else (1.0,)
    return [SamplingDefaults(temperature, scale) for scale in scales for temperature in TEMPERATURES]


def held_out_nats(
    prior: CausalPrior, tokens: Tensor, labels: Tensor | Conditioned, settings: Sequence[SamplingDefaults]
) -> list[float]:
    """Return mean nats per token of the held-out rows under each setting; see `level_nats`."""
    totals = level_nats(prior, tokens, labels, settings).sum(1)
    return [float(total) / (len(tokens) * prior.layout.num_drawn) for total in totals]


@torch.no_grad()
def level_nats(
    prior: CausalPrior, tokens: Tensor, labels: Tensor | Conditioned, settings: Sequence[SamplingDefaults]
) -> Tensor:
    """Return the nats of the held-out rows under each setting, a column a drawn level, float64, with teacher forcing.

    The distribution measured is the one that is sampled: softmax((l_null + scale * (l_label - l_null)) / temperature)
    over the legal ids.

    Args:
        prior: A trained prior.
        tokens: Held-out rows, [B, T] int64.
        labels: [B] int64, or all conditions of the rows.
        settings: What to measure.
    """
    prior, layout, device = prior.packed(), prior.layout, prior.device
    conditioned = Conditioned.of(labels)
    drawn = [number for number in range(len(layout.levels)) if number not in layout.given_levels]
    temperatures = [Sampling(temperature=each.temperature).temperatures(len(layout.levels)) for each in settings]
    totals = torch.zeros((len(settings), len(layout.drawn_levels_at())), dtype=torch.float64)
    guided = any(setting.guidance_scale != 1 for setting in settings)
    for first in range(0, len(tokens), ROWS_PER_CALL):
        rows = tokens[first : first + ROWS_PER_CALL].to(device)
        classes = conditioned[first : first + ROWS_PER_CALL].to(device)
        conditional = prior.token_logits(rows, classes)
        both = (conditional, prior.token_logits(rows, classes.null(layout)) if guided else conditional)
        for column, level in enumerate(layout.drawn_levels_at()):
            with_label, without = (part[:, level.positions, level.low : level.high] for part in both)
            wanted = (rows[:, level.positions] - level.low).flatten()
            for number, setting in enumerate(settings):
                logits = without + setting.guidance_scale * (with_label - without)
                flat = (logits / temperatures[number][drawn[column]]).flatten(0, 1)
                totals[number, column] += F.cross_entropy(flat, wanted, reduction="sum").double().cpu()
    return totals


def calibrate(
    prior: CausalPrior, tokens: Tensor, labels: Tensor | Conditioned, measure: Measure = held_out_nats
) -> Calibration:
    """Return sampling settings for a prior, chosen by `measure` on held-out rows [B, T] with labels [B].

    Likelihood is flat around its best and hardly sees what the eye sees first, a sample of no clear class. So
    among the candidates within `TOLERANCE` of the best score, the strongest guidance is taken, and
    of these the lowest temperature. Where several levels are drawn, each has its own: the strongest guidance is that at
    which every level has a candidate within the tolerance of its best score, and each takes its best temperature there,
    since low ones cost the variety of samples more the longer the sequence is (docs/log/2026-11-29-levels.md).
    """
    settings = candidates(prior)
    if measure is held_out_nats and len(prior.layout.drawn_levels_at()) > 1:
        return _by_level(prior, settings, level_nats(prior, tokens, labels, settings) / len(tokens))
    scores = measure(prior, tokens, labels, settings)
    limit = min(scores) + TOLERANCE * abs(min(scores))
    good = [setting for setting, score in zip(settings, scores, strict=True) if score <= limit]
    best = max(good, key=lambda setting: (setting.guidance_scale, -_one(setting)))
    return Calibration(best, tuple(zip(settings, scores, strict=True)))


def _one(setting: SamplingDefaults) -> float:
    """Return the temperature of a candidate, which has one for all levels."""
    return Sampling(temperature=setting.temperature).temperatures(1)[0]


def _by_level(prior: CausalPrior, settings: Sequence[SamplingDefaults], nats: Tensor) -> Calibration:
    """Return a temperature for each level, from the nats of a row under each setting, a column a drawn level."""
    layout = prior.layout
    limit = nats.amin(0) * (1 + TOLERANCE)
    scales = sorted({each.guidance_scale for each in settings})
    rows_of = {scale: [n for n, each in enumerate(settings) if each.guidance_scale == scale] for scale in scales}
    fits = [scale for scale, rows in rows_of.items() if bool((nats[rows].amin(0) <= limit).all())]
    # Where no guidance suits all levels, that of the best sum.
    scale = max(fits) if fits else settings[int(nats.sum(1).argmin())].guidance_scale
    rows = rows_of[scale]
    best = iter(_one(settings[rows[int(column.argmin())]]) for column in nats[rows].T)
    numbers = range(len(layout.levels))
    temperatures = tuple(1.0 if number in layout.given_levels else next(best) for number in numbers)
    scores = (nats.sum(1) / layout.num_drawn).tolist()
    return Calibration(SamplingDefaults(temperatures, scale), tuple(zip(settings, scores, strict=True)))
