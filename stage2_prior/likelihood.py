"""How likely a model finds given images: nats per token, bits per dimension, and a map over the grid.

Letters: B images, T tokens of a sequence, K codes, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stage2_prior.baselines import bits_per_dimension
from stage2_prior.layout import SequenceLayout
from stage2_prior.prior import CausalPrior
from vq_prior.core.processes.fixed_calls import map_rows

LOGITS_AT_ONCE = 1 << 26
MAX_ROWS = 64


@dataclass(frozen=True)
class Scores:
    """What a model says of given images.

    Attributes:
        nats_per_token: Mean -log p of the tokens of each image, [B] float64; infinite if a code has no token.
        bits_per_dimension: The same as bits of the codes per value of the data, [B] float64.
        maps: -log p in nats of each cell given those before it, one tensor [B, *grid] float32 a level; 0 throughout in
            a level that is given. A code that the vocabulary left out has probability 0: it and the cells after it are
            infinite.
    """

    nats_per_token: Tensor
    bits_per_dimension: Tensor
    maps: tuple[Tensor, ...]


def rows_at_once(layout: SequenceLayout) -> int:
    """Return the row count of every scoring call, a power of two: a function of the layout alone."""
    most = LOGITS_AT_ONCE // (layout.num_tokens * layout.vocab_size)
    return min(MAX_ROWS, 1 << max(0, most.bit_length() - 1))


@torch.inference_mode()
def score_codes(prior: CausalPrior, codes: tuple[Tensor, ...], labels: Tensor) -> Scores:
    """Return the scores of images whose codes are given; a row does not depend on the other rows or their number.

    Args:
        prior: A trained prior.
        codes: Of each level, [B, *grid] integers.
        labels: Class of each image, [B] int64; the null label for unconditional.
    """
    prior, layout = prior.packed(), prior.layout
    parts = [
        layout.level_tokens(number, grid) - level.low
        for number, (grid, level) in enumerate(zip(codes, layout.levels_at(), strict=True))
    ]
    from_low = layout.in_order(parts)
    low_ids = torch.tensor([low for low, _ in layout.legal_ids], device=prior.device)
    unseen = (from_low < 0).cumsum(dim=1) > 0

    def log_probs(relative: Tensor, classes: Tensor) -> Tensor:
        return prior.log_probs(relative + low_ids, classes)  # rows of zeros are the padding, and legal

    nats = -map_rows(log_probs, rows_at_once(layout), from_low.clamp(min=0), labels.to(prior.device))
    nats = nats.masked_fill(unseen, math.inf).cpu()
    maps = tuple(
        nats[:, level.positions].reshape(-1, *spec.grid)
        for spec, level in zip(layout.levels, layout.levels_at(), strict=True)
    )
    mean = nats[:, layout.drawn_positions].double().mean(dim=1)
    bits = [bits_per_dimension(value, prior.spec, layout.num_drawn) for value in mean.tolist()]
    return Scores(mean, torch.tensor(bits, dtype=torch.float64), maps)


def chance_nats(layout: SequenceLayout) -> list[float]:
    """Return -log p of a cell of each level if all its codes were alike: ln K; 1 where there is one code."""
    return [math.log(size) or 1.0 for size in layout.level_sizes]
