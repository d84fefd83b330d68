"""Sums whose bits do not depend on who adds what.

A floating-point sum depends on its order. Where training is reproducible, a batch is cut into `NUM_SHARDS` logical
shards, whichever process computes them, and what they give is added in the order of one binary tree. A process of 1,
2, 4 or 8 holds a whole branch of it.
"""

import torch
from torch import Tensor

NUM_SHARDS = 8


class TreeSum:
    """The sum of tensors in the order of a binary tree: ((a + b) + (c + d)) + ((e + f) + (g + h)).

    It holds one tensor a level of the tree. A sum of sums is that of all if each is of the same power of two.
    """

    def __init__(self) -> None:
        self._branches: list[tuple[int, Tensor]] = []  # (number of tensors, their sum), sizes falling

    def __bool__(self) -> bool:
        """Return whether anything was added."""
        return bool(self._branches)

    def add(self, tensor: Tensor) -> None:
        """Add one more tensor, of the shape of the others; it is kept, not copied."""
        size = 1
        while self._branches and self._branches[-1][0] == size:
            tensor, size = self._branches.pop()[1] + tensor, 2 * size
        self._branches.append((size, tensor))

    def total(self) -> Tensor | None:
        """Return the sum of what was added, None of nothing."""
        total = None
        for _, branch in reversed(self._branches):
            total = branch if total is None else branch + total
        return total


def tree_sum(parts: Tensor) -> Tensor:
    """Return the sum of parts [n, ...] over the first axis, n at least 1: the bits of a `TreeSum` of each in turn."""
    while len(parts) > 1:
        even = len(parts) // 2 * 2
        sums = parts[:even:2] + parts[1:even:2]
        parts = sums if even == len(parts) else torch.cat([sums, parts[even:]])
    return parts[0]
