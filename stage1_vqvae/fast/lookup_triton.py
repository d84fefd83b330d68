"""Nearest-code lookup on a GPU in one kernel: similarities never leave the chip.

Products are three of TF32 parts each, which leave an error near that of float32 (Ootomo and Yokota 2022, "Recovering
single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance").
Letters: D code dimension, K number of codes, N vectors.

Plain twin: `nearest_codes` of quantizers/lookup.py, by tables of similarities.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SMALLEST_DIM, LARGEST_DIM = 16, 64  # of vectors in one product; of 128, smaller cards have no room on the chip
ROWS, CODES, WARPS = 64, 64, 4  # vectors of one program, codes it looks at together


@triton.jit
def _nearest(  # type: ignore[no-untyped-def]
    z, codebook, less, codes, N, K, D: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    vectors = tl.load(z + rows[:, None] * D + d[None, :], mask=(rows[:, None] < N) & (d[None, :] < D), other=0.0)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    nearest = tl.zeros([ROWS], tl.int32)
    for first in range(0, K, CODES):
        k = first + tl.arange(0, CODES)
        block = tl.load(codebook + k[None, :] * D + d[:, None], mask=(k[None, :] < K) & (d[:, None] < D), other=0.0)
        table = tl.dot(vectors, block, input_precision="tf32x3") + tl.load(less + k, mask=k < K, other=float("-inf"))
        best, where = tl.max(table, 1, return_indices=True, return_indices_tie_break_left=True)
        nearer = best > largest
        largest = tl.where(nearer, best, largest)
        nearest = tl.where(nearer, first + where, nearest)
    tl.store(codes + rows, nearest.to(tl.int64), mask=rows < N)


def nearest_codes(vectors: Tensor, doubled: Tensor, less: Tensor) -> Tensor:
    """Return the row of the first largest 2 z.e - |e|^2 for each vector, [N] int64.

    Args:
        vectors: [N, D] float32, contiguous, on a GPU; D at most `LARGEST_DIM`.
        doubled: 2 e, [K, D] float32, contiguous.
        less: -|e|^2, [K] float32.
    """
    (N, D), K = vectors.shape, doubled.shape[0]
    codes = torch.empty(N, dtype=torch.int64, device=vectors.device)
    if N:
        padded = max(SMALLEST_DIM, triton.next_power_of_2(D))
        grid = (triton.cdiv(N, ROWS),)
        with torch.cuda.device(vectors.device):
            _nearest[grid](vectors, doubled, less, codes, N, K, D, padded, ROWS, CODES, num_warps=WARPS)
    return codes
