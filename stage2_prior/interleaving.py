"""The order in which the cells of several grids follow each other when they are interleaved.

Letters: N cells of a grid, T of all grids together.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor


def nest(grids: Sequence[tuple[int, ...]]) -> bool:
    """Return whether each grid has, along every axis, a whole number of times the cells of the one before it."""
    pairs = list(pairwise(grids))
    return all(len(a) == len(b) and not any(j % i for i, j in zip(a, b, strict=True)) for a, b in pairs)


def interleaved(grids: Sequence[tuple[int, ...]]) -> Tensor:
    """Return the raster place of the cell at each position, [T] int64: a cell, then all that lies in it.

    Args:
        grids: Coarse to fine; along every axis each has a whole number of times the cells of the one before it.

    >>> interleaved([(1, 2), (2, 2)]).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    starts = accumulate(map(prod, grids), initial=0)
    # Each cell has a path: where it lies in the coarsest grid, where within that cell, and so on; then its place.
    paths, cells = torch.zeros((1, 0), dtype=torch.int64), []
    for number, (grid, start) in enumerate(zip(grids, starts, strict=False)):
        before = grids[number - 1] if number else (1,) * len(grid)
        axes = torch.cartesian_prod(*map(torch.arange, grid)).view(prod(grid), -1)
        times = torch.tensor([own // coarse for own, coarse in zip(grid, before, strict=True)])
        parent, within = _raster(axes // times, before), _raster(axes % times, tuple(times.tolist()))
        paths = torch.cat([paths[parent], within[:, None]], dim=1)
        ends = torch.full((len(paths), len(grids) - number - 1), -1)  # before what lies in the cell
        cells.append(torch.cat([paths, ends, torch.arange(start, start + len(paths))[:, None]], dim=1))
    return torch.tensor([row[-1] for row in sorted(torch.cat(cells).tolist())])


def _raster(axes: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the raster place of cells, [N] int64, whose coordinates in a grid are given, [N, rank]."""
    place = torch.zeros(len(axes), dtype=torch.int64)
    for axis, size in enumerate(grid):
        place = place * size + axes[:, axis]
    return place
