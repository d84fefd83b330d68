"""Rows of a source as a codec takes them: read ahead by threads, kept in memory where they fit.

Letters: B batch, C channels, n rows, V views.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from math import prod
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vq_prior.core.modality import Encoded, Form, Modality, Stored

MAX_CACHE_BYTES = 4 << 30
ROWS_PER_TASK, BYTES_PER_TASK = 64, 4 << 20
WORTH = {1: 30e-6, 4: 1e-3}  # threads -> seconds of a row below which more would be slower

Rows = Sequence[int] | NDArray[np.int64]
S = TypeVar("S")
T = TypeVar("T")


class EncodedRows(Protocol):
    """Rows as a source holds them."""

    def __len__(self) -> int: ...

    def encoded(self, row: int) -> Encoded:
        """Return the file's bytes, or an array."""
        ...

    def name(self, row: int) -> str:
        """Return what to call the row in a message."""
        ...


def stored_row(rows: EncodedRows, row: int, modality: Modality, transform: Form) -> Stored:
    """Return a row in the transform's form; raises `ArtifactError` that names it if it is damaged."""
    return modality.files.read(rows.encoded(row), transform, partial(rows.name, row))


def stored_views(rows: EncodedRows, row: int, modality: Modality, transform: Form, views: str) -> Stored:
    """Return the views of a row, [V, ...], the row as it is first; raises what `stored_row` does."""
    if views == "none":
        return stored_row(rows, row, modality, transform)[None]
    encoded = rows.encoded(row)
    read = partial(modality.files.read, encoded, name=partial(rows.name, row))
    return modality.values.read_views(read, transform, views)


def ahead(
    function: Callable[[S], T], items: Iterable[S], workers: int, *, prepare: Callable[[], object] | None = None
) -> Iterator[T]:
    """Yield `function(item)` in order, computed by threads that run a bounded way ahead of what was asked for.

    Args:
        function: Called in one of the threads.
        items: Taken as there is room.
        workers: Threads.
        prepare: Called once in each thread before anything else.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, initializer=prepare) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_threads(
    function: Callable[[int], T], rows: Iterable[int], num_workers: int | None, *, rows_per_task: int = ROWS_PER_TASK
) -> Iterator[T]:
    """Yield `function(row)` in order, computed ahead by threads; pictures decode without the interpreter's lock."""
    workers = num_workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(function, rows)
        return

    def some(chunk: Sequence[int]) -> list[T]:
        return [function(row) for row in chunk]

    for results in ahead(some, batched(rows, rows_per_task), workers):
        yield from results


def workers_for(function: Callable[[int], object], num_rows: int) -> int:
    """Return how many threads `function(row)` is worth, timed on the first rows; at most one a core.

    Between two pictures threads wait for the interpreter's lock. On 16 cores one thread was the fastest for pictures
    of 32 px, 4 were within a third of the fastest from 64 to 256 px.
    """
    seconds = []
    for row in range(min(3, num_rows)):
        started = time.perf_counter()
        function(row)
        seconds.append(time.perf_counter() - started)
    quickest = min(seconds, default=0.0)
    return min(os.cpu_count() or 1, next((n for n, most in WORTH.items() if quickest < most), 1024))


def batched(items: Iterable[S], size: int) -> Iterator[list[S]]:
    """Yield lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def stored_ahead(
    rows: EncodedRows,
    modality: Modality,
    transform: Form,
    batch_size: int,
    *,
    num_workers: int | None,
    views: str = "none",
) -> Iterator[Stored]:
    """Yield all rows in the transform's form in batches [n, ...]; threads read some of what follows.

    Args:
        rows: As the source holds them.
        modality: What they are.
        transform: Their form.
        batch_size: Rows of a batch.
        num_workers: Threads; None is as many as speed it up.
        views: Of each row, which follow each other: n is batch_size times as many.
    """

    def read(row: int) -> Stored:
        return stored_views(rows, row, modality, transform, views)

    def read_all(some: Sequence[int]) -> Stored:
        return np.concatenate([read(row) for row in some])

    workers = num_workers or workers_for(read, len(rows))
    if workers == 1 and num_workers is None:
        yield from ahead(read_all, batched(range(len(rows)), batch_size), 1)
        return
    task = max(1, min(ROWS_PER_TASK, BYTES_PER_TASK // bytes_of(modality, transform)))
    for read_rows in batched(in_threads(read, range(len(rows)), workers, rows_per_task=task), batch_size):
        yield np.concatenate(read_rows)


def bytes_of(modality: Modality, transform: Form) -> int:
    """Return the bytes of one stored row."""
    shape, dtype = modality.values.stored_like(transform)
    return prod(shape) * dtype.itemsize


class LoadedRows:
    """Rows in a codec's form: read once into memory, or at every call.

    Attributes:
        modality: What they are.
        transform: Their form.
    """

    def __init__(
        self,
        rows: EncodedRows,
        modality: Modality,
        transform: Form,
        *,
        num_workers: int | None = None,
        cache: Stored | None = None,
    ) -> None:
        self.modality, self.transform = modality, transform
        self._rows, self._num_workers, self._cache = rows, num_workers, cache

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int) -> Stored:
        """Return one row, read anew."""
        return stored_row(self._rows, row, self.modality, self.transform)

    def stored(self, indices: Rows) -> Stored:
        """Return some rows as they are stored, [n, ...], in the order asked."""
        if self._cache is not None:
            return self._cache[np.asarray(indices, dtype=np.int64)]
        shape, dtype = self.modality.values.stored_like(self.transform)
        result = np.empty((len(indices), *shape), dtype=dtype)
        for number, row in enumerate(in_threads(self.read, map(int, indices), self._num_workers)):
            result[number] = row
        return result

    def batch(self, indices: Rows, device: torch.device | str = "cpu") -> Tensor:
        """Return some rows as networks see them, float32 [n, C, *shape], in the order asked."""
        return self.to_values(self.stored(indices), device)

    def to_values(self, stored: Stored, device: torch.device | str = "cpu") -> Tensor:
        """Return stored rows [n, ...] as networks see them; what is moved to the device is what is stored."""
        return self.modality.values.to_values(torch.from_numpy(stored).to(device))

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield all rows, `size` at a time, as `batch` gives them."""
        for first in range(0, len(self), size):
            yield self.batch(range(first, min(first + size, len(self))), device)


def load_rows(
    rows: EncodedRows,
    modality: Modality,
    transform: Form,
    *,
    num_workers: int | None = None,
    max_bytes: int = MAX_CACHE_BYTES,
) -> LoadedRows:
    """Return all rows in a codec's form; they are read now and kept if they fit in `max_bytes`.

    Raises:
        ArtifactError: Naming the first row that cannot be read.
    """
    lazy = LoadedRows(rows, modality, transform, num_workers=num_workers)
    if len(rows) * bytes_of(modality, transform) > max_bytes:
        return lazy
    workers = num_workers or workers_for(lazy.read, len(rows))
    cache = LoadedRows(rows, modality, transform, num_workers=workers).stored(range(len(rows)))
    return LoadedRows(rows, modality, transform, num_workers=num_workers, cache=cache)
