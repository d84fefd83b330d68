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


@torch.no_grad()
def held_out_nats(
    prior: CausalPrior, tokens: Tensor, labels: Tensor | Conditioned, settings: Sequence[SamplingDefaults]
) -> list[float]:
    """Return mean nats per token of the held-out rows under each setting, with teacher forcing.

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
    totals = torch.zeros(len(settings), dtype=torch.float64)
    guided = any(setting.guidance_scale != 1 for setting in settings)
    for first in range(0, len(tokens), ROWS_PER_CALL):
        rows = tokens[first : first + ROWS_PER_CALL].to(device)
        classes = conditioned[first : first + ROWS_PER_CALL].to(device)
        conditional = prior.token_logits(rows, classes)
        both = (conditional, prior.token_logits(rows, classes.null(layout)) if guided else conditional)
        for level in layout.drawn_levels_at():
            with_label, without = (part[:, level.positions, level.low : level.high] for part in both)
            wanted = (rows[:, level.positions] - level.low).flatten()
            for number, setting in enumerate(settings):
                logits = without + setting.guidance_scale * (with_label - without)
                flat = (logits / setting.temperature).flatten(0, 1)
                totals[number] += F.cross_entropy(flat, wanted, reduction="sum").double().cpu()
    return [float(total) / (len(tokens) * layout.num_drawn) for total in totals]


def calibrate(
    prior: CausalPrior, tokens: Tensor, labels: Tensor | Conditioned, measure: Measure = held_out_nats
) -> Calibration:
    """Return sampling settings for a prior, chosen by `measure` on held-out rows [B, T] with labels [B].

    Likelihood is flat around its best and hardly sees what the eye sees first, a sample of no clear class. So
    among the candidates within `TOLERANCE` of the best score, the strongest guidance is taken, and
    of these the lowest temperature.
    """
    settings = candidates(prior)
    scores = measure(prior, tokens, labels, settings)
    limit = min(scores) + TOLERANCE * abs(min(scores))
    good = [setting for setting, score in zip(settings, scores, strict=True) if score <= limit]
    best = max(good, key=lambda setting: (setting.guidance_scale, -setting.temperature))
    return Calibration(best, tuple(zip(settings, scores, strict=True)))
