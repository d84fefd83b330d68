"""Training rows that are made of their first levels alone, so that these can be decoded without the others.

Zeghidour et al. 2021, "SoundStream", section III-C. Letters: B rows, D code dimension, L levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq_prior.core.training.randomness import keyed_generator, sample_uniforms


def drawn_levels(rows: slice, num_levels: int, share: float | None, *, seed: int, step: int) -> Tensor | None:
    """Return of how many levels each row of a piece of a batch is made, [B] int64; None if all are made of all.

    A row's number is a function of seed, step and its place in the batch.

    Args:
        rows: The piece's places in the global batch.
        num_levels: L.
        share: Probability that a row is made of its first levels alone, of 1 to L - 1; n and fewer of them with the
            probability sqrt(n / (L - 1)), so that the first level, which is the hardest alone, gets most.
        seed: Of the training.
        step: Optimiser steps done.
    """
    if not share or num_levels == 1:
        return None
    key = int(keyed_generator(seed, step, "level dropout").integers(2**63))
    whether, which = sample_uniforms(key, np.arange(rows.start, rows.stop), 2).T
    some = 1 + np.floor(which**2 * (num_levels - 1)).astype(np.int64)
    return torch.from_numpy(np.where(whether < share, some, num_levels))


def of_first_levels(
    quantizer: Any, vectors: Tensor, codes: Sequence[Tensor], first_levels: Tensor | None, start: int
) -> Tensor:
    """Return the vectors [B, ..., D] of one grid as the decoder gets them; the gradient is that of `vectors`.

    Args:
        quantizer: Of the grid.
        vectors: Of all its levels.
        codes: Of each of its levels, [B, ...].
        first_levels: Of how many levels of all grids each row is made, [B]; None is all.
        start: Number of the grid's first level among all.
    """
    if first_levels is None:
        return vectors
    with torch.no_grad():
        count, total = len(codes), torch.zeros_like(vectors)
        first = first_levels.to(vectors.device).view(-1, *[1] * (vectors.ndim - 1))
        for number, chosen in enumerate(codes):
            alone = [chosen if number == n else None for n in range(count)]
            part = vectors if count == 1 else quantizer.embed(alone)
            total += part * (first > start + number)
    return vectors + (total - vectors).detach()
