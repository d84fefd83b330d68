"""How a codec uses its codes.

Letters: K number of codes.
"""

import torch
from torch import Tensor

from vq_prior.core.processes.collectives import sum_over_processes


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of the code distribution with these counts [K]: 1 to K, 0 without any count."""
    total = counts.sum()
    if total == 0:
        return 0.0
    p = counts.double() / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def usage(counts: Tensor) -> float:
    """Return the share of codes that occur at all, in [0, 1]."""
    return float((counts > 0).double().mean())


class CodeCounts:
    """How often each code of each level occurred, summed over processes when read.

    Perplexity depends on how many codes were counted, so it is read over a window
    of training or over a whole set, never over one batch.
    """

    def __init__(self, num_codes: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self._counts = [torch.zeros(K, dtype=torch.int64, device=device) for K in num_codes]

    def add(self, codes: tuple[Tensor, ...]) -> None:
        """Count one batch of codes, a tensor of integers a level."""
        for counts, level in zip(self._counts, codes, strict=True):
            flat = level.reshape(-1).to(torch.int64)
            counts.index_add_(0, flat, torch.ones_like(flat))  # bincount would wait for a GPU

    def state(self) -> list[list[int]]:
        """Return the counts of each level over all processes; every process must call it."""
        return [sum_over_processes(counts).tolist() for counts in self._counts]

    def load(self, state: list[list[int]], *, mine: bool) -> None:
        """Start from saved counts of all processes (`mine`), or from zero, so that a sum over processes counts them
        once.

        Raises:
            ValueError: If they are of other levels.
        """
        for counts, saved in zip(self._counts, state, strict=True):
            values = torch.tensor(saved, dtype=torch.int64, device=counts.device)
            if values.shape != counts.shape:
                raise ValueError(f"counts of {len(saved)} codes, not of {counts.numel()}")
            counts.copy_(values if mine else torch.zeros_like(values))

    def read(self, *, reset: bool = False) -> list[dict[str, float]]:
        """Return `usage`, `perplexity` and `num_dead` of each level over all processes."""
        totals = [sum_over_processes(counts) for counts in self._counts]
        read = [{"usage": usage(n), "perplexity": perplexity(n), "num_dead": float((n == 0).sum())} for n in totals]
        if reset:
            for counts in self._counts:
                counts.zero_()
        return read
