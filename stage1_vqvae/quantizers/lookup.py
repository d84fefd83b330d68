"""Nearest-code lookup and k-means. Letters: D code dimension, K number of codes, N vectors."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 23}  # of the table of similarities that exists at a time, float32
CHUNK_VECTORS, MAX_ELEMENTS = 32, 1 << 21  # so many vectors at a time at least, while the table stays within so many
BLOCK = 64


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest codebook row of each vector, [N] int64; ties go to the lowest index.

    Squared Euclidean distance in float32, as the largest 2 z.e - |e|^2 (|z|^2 does not
    change the order), in chunks, so that the K x N table never exists whole.

    Args:
        vectors: [N, D]; N may be 0.
        codebook: [K, D].
    """
    vectors, codebook = vectors.detach().float(), codebook.detach().float()
    N, K, device = vectors.shape[0], codebook.shape[0], vectors.device
    elements = CHUNK_ELEMENTS.get(device.type, 1 << 19)
    chunk = min(N, max(1, elements // K, min(CHUNK_VECTORS, MAX_ELEMENTS // K)))
    doubled, less = 2 * codebook, -codebook.square().sum(1, keepdim=True)
    memory = torch.empty(K * chunk, device=device)
    codes = torch.empty(N, dtype=torch.int64, device=device)
    with torch.autocast(device.type, enabled=False):
        for first in range(0, N, chunk or 1):
            part = vectors[first : first + chunk]
            n = part.shape[0]
            table = torch.addmm(less, doubled, part.t(), out=memory[: K * n].view(K, n))
            codes[first : first + n] = _first_largest(table)
    return codes


def _first_largest(table: Tensor) -> Tensor:
    """Return the row of the first largest number of each column of a table [K, n], [n] int64.

    On a CPU `argmax` looks at one number at a time, while pooling of channels that are
    innermost compares a vector of them: columns as channels, blocks of rows for its threads.
    """
    if table.device.type != "cpu":
        return table.argmax(0)
    K, n = table.shape
    pixels = table.view(1, 1, K, n).permute(0, 3, 1, 2)
    largest, rows = F.max_pool2d(pixels, (1, BLOCK), ceil_mode=True, return_indices=True)
    block = F.max_pool2d(largest, (1, largest.shape[3]), return_indices=True)[1]
    return rows.gather(3, block).view(n)


def sums_by_code(vectors: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """Return, for each code, how many vectors it has and their sum, as one table [K, 1 + D] float32."""
    rows = torch.cat([vectors.new_ones((vectors.shape[0], 1)), vectors], dim=1).float()
    return rows.new_zeros((num_codes, rows.shape[1])).index_add_(0, codes, rows)


def drawn(total: int, count: int, rng: np.random.Generator) -> Tensor:
    """Return the indices [count] int64 of some of `total` rows drawn by `rng`, none twice while there are enough."""
    return torch.from_numpy(rng.choice(total, size=count, replace=count > total))


@torch.no_grad()
def kmeans(
    vectors: Tensor, num_codes: int, rng: np.random.Generator, *, iterations: int = 10, start: Tensor | None = None
) -> Tensor:
    """Return k-means centres [K, D] of vectors [N, D] (Lloyd 1982), computed on the host.

    Starts on `start` [K, D], or on drawn vectors; a centre that loses all its vectors moves onto a drawn one.
    The same vectors and generator give the same bits on every process.
    """
    vectors = vectors.detach().float().cpu()
    centres = vectors[drawn(len(vectors), num_codes, rng)] if start is None else start.detach().float().cpu()
    for _ in range(iterations):
        table = sums_by_code(vectors, nearest_codes(vectors, centres), num_codes)
        empty = table[:, 0] == 0
        centres = table[:, 1:] / table[:, :1].clamp_min(1)
        centres[empty] = vectors[drawn(len(vectors), int(empty.sum()), rng)]
    return centres
