"""Nearest-code lookup and k-means. Letters: D code dimension, K number of codes, N vectors."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 23}  # of the table of distances that exists at a time, float32
BLOCK = 64


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest codebook row of each vector, [N] int64; ties go to the lowest index.

    Squared Euclidean distance in float32, as |e|^2 - 2 z.e (|z|^2 does not change the
    order), in chunks, so that the N x K table never exists whole. A minimum is found by
    vector instructions where its index is not, so each row's search is in two steps: the
    first block of codes that holds the minimum, then the first code of the block.

    Args:
        vectors: [N, D]; N may be 0.
        codebook: [K, D].
    """
    vectors, codebook = vectors.detach().float(), codebook.detach().float()
    N, K, device = vectors.shape[0], codebook.shape[0], vectors.device
    num_blocks = -(-K // BLOCK)
    padding = (0, num_blocks * BLOCK - K)
    squares = F.pad(codebook.square().sum(1), padding, value=float("inf"))
    scaled = F.pad((-2 * codebook).t(), padding)
    rows = min(N, max(1, CHUNK_ELEMENTS.get(device.type, 1 << 20) // squares.shape[0]))
    table = torch.empty((rows, squares.shape[0]), device=device)
    first_blocks = torch.arange(rows, device=device) * num_blocks
    codes = torch.empty(N, dtype=torch.int64, device=device)
    with torch.autocast(device.type, enabled=False):
        for first in range(0, N, rows or 1):
            part = vectors[first : first + rows]
            n = part.shape[0]
            blocks = torch.addmm(squares, part, scaled, out=table[:n]).view(n, num_blocks, BLOCK)
            block = blocks.amin(2).argmin(1)
            chosen = blocks.view(-1, BLOCK).index_select(0, first_blocks[:n] + block)
            torch.add(chosen.argmin(1), block, alpha=BLOCK, out=codes[first : first + n])
    return codes


def sums_by_code(vectors: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """Return, for each code, how many vectors it has and their sum, as one table [K, 1 + D] float32."""
    rows = torch.cat([vectors.new_ones((vectors.shape[0], 1)), vectors], dim=1).float()
    return rows.new_zeros((num_codes, rows.shape[1])).index_add_(0, codes, rows)


def draw_rows(vectors: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return `count` rows of vectors [N, D] drawn by `rng`, without repetition while N allows it."""
    N = vectors.shape[0]
    chosen = rng.choice(N, size=count, replace=count > N)
    return vectors[torch.from_numpy(chosen).to(vectors.device)]


@torch.no_grad()
def kmeans(
    vectors: Tensor, num_codes: int, rng: np.random.Generator, *, iterations: int = 10, start: Tensor | None = None
) -> Tensor:
    """Return k-means centres [K, D] of vectors [N, D] (Lloyd 1982), computed on the host.

    Starts on `start` [K, D], or on drawn vectors; a centre that loses all its vectors moves onto a drawn one.
    The same vectors and generator give the same bits on every process.
    """
    vectors = vectors.detach().float().cpu()
    centres = draw_rows(vectors, num_codes, rng) if start is None else start.detach().float().cpu()
    for _ in range(iterations):
        table = sums_by_code(vectors, nearest_codes(vectors, centres), num_codes)
        empty = table[:, 0] == 0
        centres = table[:, 1:] / table[:, :1].clamp_min(1)
        centres[empty] = draw_rows(vectors, int(empty.sum()), rng)
    return centres
