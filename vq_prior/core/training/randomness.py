"""Randomness as a function of keys, never as state.

Sampling draws from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"), training from numpy generators keyed by (seed, step, purpose).
All of it is computed on the host, so it does not depend on the device, on the
number of processes or on what was drawn before.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

MAX_SEED = 2**63 - 1


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return Philox4x32-10 blocks, [n, 4] uint32, for counters [n, 4] and keys [2] or [n, 2]."""
    c0, c1, c2, c3 = (counter[:, word].astype(np.uint32) for word in range(4))
    k0, k1 = (np.broadcast_to(key[..., word], c0.shape).astype(np.uint32) for word in range(2))
    with np.errstate(over="ignore"):
        for _ in range(10):
            first = c0.astype(np.uint64) * _MULTIPLIERS[0]
            second = c2.astype(np.uint64) * _MULTIPLIERS[1]
            c0, c1, c2, c3 = (
                (second >> _SHIFT).astype(np.uint32) ^ c1 ^ k0,
                (second & _LOW).astype(np.uint32),
                (first >> _SHIFT).astype(np.uint32) ^ c3 ^ k1,
                (first & _LOW).astype(np.uint32),
            )
            k0, k1 = k0 + _KEY_STEPS[0], k1 + _KEY_STEPS[1]
    return np.stack([c0, c1, c2, c3], axis=1)


def sample_uniforms(seed: int, indices: Sequence[int] | NDArray[np.int64], num_positions: int) -> NDArray[np.float32]:
    """Return one uniform number a sample and position, [B, T] float32 in [0, 1).

    Entry (b, t) is a function of (seed, indices[b], t) alone: the top 24 bits of
    the first word of Philox4x32-10 with key = seed and counter = (t, 0, index).

    Args:
        seed: Seed of the whole set of samples, in [0, 2**63).
        indices: B sample indices, each in [0, 2**63).
        num_positions: T.
    """
    samples = np.asarray(indices, dtype=np.uint64)
    rows, positions = samples.size, np.arange(num_positions, dtype=np.uint32)
    counter = np.zeros((rows, num_positions, 4), dtype=np.uint32)
    counter[:, :, 0] = positions
    counter[:, :, 2] = (samples & _LOW).astype(np.uint32)[:, None]
    counter[:, :, 3] = (samples >> _SHIFT).astype(np.uint32)[:, None]
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    words = philox4x32(counter.reshape(-1, 4), key)[:, 0].reshape(rows, num_positions)
    return ((words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)).astype(np.float32)


def keyed_generator(seed: int, step: int, purpose: str) -> np.random.Generator:
    """Return the numpy generator of one purpose ("label dropout", say) at one step of a run."""
    digest = sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


@lru_cache(maxsize=4)
def _epoch_order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return keyed_generator(seed, epoch, "epoch order").permutation(num_rows).astype(np.int64)


def batch_rows(num_rows: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Return the rows of the batch of one step, [batch_size] int64.

    The data is an endless chain of epochs, each a permutation of all rows keyed by
    (seed, epoch); step s reads positions [s * batch_size, (s + 1) * batch_size) of
    it. No row is dropped and none repeats within an epoch.
    """
    start, rows = step * batch_size, []
    position = start
    while position < start + batch_size:
        epoch, offset = divmod(position, num_rows)
        take = min(num_rows - offset, start + batch_size - position)
        rows.append(_epoch_order(num_rows, seed, epoch)[offset : offset + take])
        position += take
    return np.concatenate(rows)


def in_equal_parts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows [n] of which every class has as many: those of small classes again and again, in their order.

    >>> in_equal_parts(np.array([0, 1, 0, 0, 2])).tolist()
    [0, 2, 3, 1, 1, 1, 4, 4, 4]
    """
    order = np.argsort(labels, kind="stable").astype(np.int64)
    _, counts = np.unique(labels, return_counts=True)
    return np.concatenate([np.resize(rows, counts.max()) for rows in np.split(order, np.cumsum(counts)[:-1])])
