"""Nearest-code lookup and k-means. Letters: D code dimension, K number of codes, N vectors."""

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vq_prior.core.fast.products import linear

CHUNK_ELEMENTS = 1 << 19  # of the table of similarities that exists at a time, float32
TABLE_ELEMENTS = 1 << 23  # the same elsewhere than on a CPU, where no kernel does without
CHUNK_VECTORS, MAX_ELEMENTS = 64, 1 << 21  # so many vectors at a time at least, while the table stays within so many
BLOCK = 64


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest codebook row of each vector, [N] int64; ties go to the lowest index.

    Squared Euclidean distance in float32, as the largest 2 z.e - |e|^2 (|z|^2 does not
    change the order), in chunks, so that the K x N table never exists whole; on a GPU, up to 64 numbers a
    vector, by a kernel of our own without any table, where Triton works.

    Args:
        vectors: [N, D]; N may be 0.
        codebook: [K, D].
    """
    vectors, codebook = vectors.detach().float(), codebook.detach().float()
    doubled, less = 2 * codebook, -codebook.square().sum(1)
    with torch.autocast(vectors.device.type, enabled=False):
        if torch.compiler.is_exporting():  # in operations that other programs have
            return torch.addmm(less, vectors, doubled.t()).argmax(1)
        if vectors.device.type == "cpu":
            return _on_cpu(vectors, doubled, less)
        if (kernel := _kernel()) is not None and vectors.is_cuda and vectors.shape[1] <= kernel.LARGEST_DIM:
            return kernel.nearest_codes(vectors.contiguous(), doubled.contiguous(), less)
        chunk = max(1, TABLE_ELEMENTS // len(codebook))
        return torch.cat([torch.addmm(less, part, doubled.t()).argmax(1) for part in vectors.split(chunk)])


def _on_cpu(vectors: Tensor, doubled: Tensor, less: Tensor) -> Tensor:
    """Return the row of the first largest 2 z.e - |e|^2 for each vector z, [N] int64."""
    N, K = vectors.shape[0], doubled.shape[0]
    chunk = min(N, max(1, CHUNK_ELEMENTS // K, min(CHUNK_VECTORS, MAX_ELEMENTS // K)))
    codes, rows = torch.empty(N, dtype=torch.int64), torch.cat([doubled, less[:, None]], dim=1)
    # 2 z.e - |e|^2 is the product of (z, 1) and (2 e, -|e|^2), whose bits are the same for any number of vectors but 1.
    parts = vectors.new_ones((max(2, chunk), vectors.shape[1] + 1))
    for first in range(0, N, chunk or 1):
        n = min(chunk, N - first)
        parts[:n, :-1] = vectors[first : first + n]
        codes[first : first + n] = _first_largest(linear(rows, parts[: max(2, n)]))[:n]
    return codes


@functools.cache
def _kernel() -> Any:
    """Return the module whose kernel does it all on a GPU of NVIDIA, None where it cannot be compiled."""
    if not torch.cuda.is_available() or torch.version.hip or torch.cuda.get_device_capability() < (8, 0):
        return None
    try:
        from stage1_vqvae.fast import lookup_triton

        tried = torch.eye(2, device="cuda")
        lookup_triton.nearest_codes(tried, 2 * tried, -tried.sum(1))
    except Exception:  # no Triton, no C compiler, a driver it does not know: whatever it says, the table is there
        return None
    return lookup_triton


def _first_largest(table: Tensor) -> Tensor:
    """Return the row of the first largest number of each column of a table [K, n] on the host, [n] int64.

    `argmax` looks at one number at a time there, while pooling of channels that are
    innermost compares a vector of them: columns as channels, blocks of rows for its threads.
    """
    K, n = table.shape
    pixels = table.view(1, 1, K, n).permute(0, 3, 1, 2)
    largest, rows = F.max_pool2d(pixels, (1, BLOCK), ceil_mode=True, return_indices=True)
    block = F.max_pool2d(largest, (1, largest.shape[3]), return_indices=True)[1]
    return rows.gather(3, block).view(n)


def sums_by_code(vectors: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """Return, for each code, how many vectors it has and their sum, as one table [K, 1 + D].

    On a CPU it is float64, so that its float32 does not depend on the order of the vectors; elsewhere float32.
    """
    exact = torch.float64 if vectors.device.type == "cpu" else torch.float32
    rows = torch.cat([vectors.new_ones((vectors.shape[0], 1)), vectors], dim=1).to(exact)
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
        centres = (table[:, 1:] / table[:, :1].clamp_min(1)).float()
        centres[empty] = vectors[drawn(len(vectors), int(empty.sum()), rng)]
    return centres
