"""Rows of a data source, which are read when needed, and their labels.

Letters: n rows.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.loading import EncodedRows, in_threads
from stage1_vqvae.data.remembered import remembered
from vq_prior.core.config import canonical_json
from vq_prior.core.errors import ArtifactError
from vq_prior.core.labels import one_form
from vq_prior.core.modality import Encoded, Header, Modality

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Split:
    """One split as a source gives it.

    Attributes:
        rows: Its rows.
        labels: The label of each row as the source writes it (a name, or an integer), or None without labels.
    """

    rows: EncodedRows
    labels: Sequence[str | int | None] | None


@dataclass(frozen=True)
class RawData:
    """What a source holds, before labels are numbered and rows are held out.

    Attributes:
        train: Training rows.
        validation: Rows of the source's own validation split, or None.
        modality: What its rows are.
        why: By what that was found.
        label_names: Names of integer labels where the source has a list of them.
        notes: What was skipped, counted and why; a sentence each.
        missing: What is wrong with rows that are no rows, by what they are called.
        empty: Folders that would be classes, and hold no rows.
    """

    train: Split
    validation: Split | None
    modality: Modality
    why: str
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()


class FileRows:
    """Files, in the order given.

    Attributes:
        paths: Of each.
        called: What they are called together where they are remembered; None where they are not.
    """

    def __init__(self, paths: Sequence[Path | str], called: str | None = None) -> None:
        self.paths, self.called = [str(path) for path in paths], called  # strings: they may be a million

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, row: int) -> Encoded:
        """Return the file's bytes; raises `ArtifactError` if it cannot be read."""
        path = self.paths[row]
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read without end
                raise ArtifactError(f"{path} is not a file; remove it")
            if status.st_size > MAX_FILE_BYTES:
                raise ArtifactError(f"{path} has {status.st_size} bytes, more than the {MAX_FILE_BYTES} allowed")
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error

    def name(self, row: int) -> str:
        """Return the file's path."""
        return self.paths[row]


class ArrayRows:
    """Rows held as one array [n, ...]."""

    def __init__(self, values: NDArray[Any], source: str) -> None:
        self._values, self._source = values, source

    def __len__(self) -> int:
        return len(self._values)

    def encoded(self, row: int) -> Encoded:
        """Return the row's numbers."""
        return np.asarray(self._values[row])

    def name(self, row: int) -> str:
        """Return the source's name and the row."""
        return f"{self._source} row {row}"


@dataclass(frozen=True)
class DataRows:
    """Rows of one split of the data.

    Attributes:
        rows: The rows of the source.
        source_index: Which of them these are, [n] int64, ascending.
        labels: Class of each row, [n] int64 in [0, number of classes), or None without labels.
        headers: What each row's header says.
        columns: Numbers that stand beside the rows by name, [n, *shape] float32.
    """

    rows: EncodedRows
    source_index: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    headers: tuple[Header, ...] = field(repr=False, default=())
    columns: Mapping[str, NDArray[np.float32]] = field(repr=False, default_factory=dict)

    def __len__(self) -> int:
        return len(self.source_index)

    def encoded(self, row: int) -> Encoded:
        """Return the bytes of row `row`, or its array."""
        return self.rows.encoded(int(self.source_index[row]))

    def name(self, row: int) -> str:
        """Return what to call row `row` in a message."""
        return self.rows.name(int(self.source_index[row]))

    def file_name(self, row: int) -> str:
        """Return what to call the file of row `row`, whichever of its frames the row is."""
        named = getattr(self.rows, "file_name", self.rows.name)
        return str(named(int(self.source_index[row])))

    def subset(self, rows: NDArray[np.int64] | range) -> "DataRows":
        """Return some of the rows, in the order given."""
        chosen = np.asarray(rows, dtype=np.int64)
        headers = tuple(self.headers[row] for row in chosen) if self.headers else ()
        labels = None if self.labels is None else self.labels[chosen]
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return DataRows(self.rows, self.source_index[chosen], labels, headers, columns)


def content_digest(encoded: Encoded) -> bytes:
    """Return the sha256 of a row: of the bytes of its file, or of shape and values of its array."""
    if isinstance(encoded, bytes):
        return sha256(encoded).digest()
    content = sha256(canonical_json(list(encoded.shape)))
    content.update(np.ascontiguousarray(encoded).tobytes())
    return content.digest()


def inspect_rows(
    source: EncodedRows, modality: Modality, num_workers: int | None, rows: NDArray[np.int64] | None = None
) -> tuple[list[bytes], tuple[Header, ...]]:
    """Return the sha256 of the content of every row, or of some, and what its header says.

    Each is read once; a file of a folder that has not changed since it was read last is not (`remembered.py`).

    Raises:
        ArtifactError: Naming the first row that is none of this kind.
    """

    known = getattr(source, "seen", None)  # rows that were fetched once, and are far

    def inspect(row: int) -> tuple[bytes, Header]:
        if known is not None and (seen := known(row)) is not None:
            return seen
        encoded = source.encoded(row)
        return content_digest(encoded), modality.files.inspect(encoded, partial(source.name, row))

    some = range(len(source)) if rows is None else rows.tolist()
    memory = remembered(source.called, modality.files) if isinstance(source, FileRows) else None
    if memory is not None and isinstance(source, FileRows):
        results = memory.inspected(source.paths, some, inspect, num_workers)
    else:
        results = list(in_threads(inspect, some, num_workers))
    return [digest for digest, _ in results], tuple(header for _, header in results)


def number_labels(
    labels: Sequence[str | int | None], names: tuple[str, ...] | None, source: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return class names and the class of each row, [n] int64.

    Named classes keep the source's order; strings are sorted; integers without names
    are sorted by value and named by their digits. Names that differ in Unicode normalisation alone are one.

    Raises:
        ArtifactError: If some rows lack a label, or an integer is not one of the named classes.
    """
    missing = sum(label is None for label in labels)
    if missing:
        raise ArtifactError(f"{source}: {missing} of {len(labels)} rows have no label; label all rows or none")
    if names is not None and all(isinstance(label, int) for label in labels):
        numbers = np.asarray(labels, dtype=np.int64)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(names)):
            raise ArtifactError(
                f"{source}: labels must lie in 0..{len(names) - 1} (it names {len(names)} classes), "
                f"got {int(numbers.min())} to {int(numbers.max())}"
            )
        return _as_one(names, numbers)
    if all(isinstance(label, int) for label in labels):
        values: list[Any] = sorted({label for label in labels if label is not None})
    else:
        labels = [str(label) for label in labels]
        values = sorted(set(labels))
    number_of = {value: number for number, value in enumerate(values)}
    numbers = np.fromiter((number_of[label] for label in labels), dtype=np.int64, count=len(labels))
    return _as_one(tuple(map(str, values)), numbers)


def _as_one(names: tuple[str, ...], numbers: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return class names and classes, in which names that differ in Unicode normalisation alone are one."""
    number_of: dict[str, int] = {}
    for name in names:
        number_of.setdefault(one_form(name), len(number_of))
    if len(number_of) == len(names):
        return names, numbers
    return tuple(number_of), np.array([number_of[one_form(name)] for name in names], dtype=np.int64)[numbers]


def content_hash(
    parts: Sequence[tuple[str, Sequence[bytes], NDArray[np.int64] | None]], label_names: tuple[str, ...]
) -> str:
    """Return the sha256 over label names and each split's rows (content and label), in order."""
    digest = sha256(canonical_json(list(label_names)))
    for split, contents, labels in parts:
        digest.update(canonical_json([split, len(contents), labels is not None]))
        for content, label in zip(contents, _labels_or_none(labels, len(contents)), strict=True):
            digest.update(content)
            if label is not None:
                digest.update(label.to_bytes(8, "little"))
    return digest.hexdigest()


def _labels_or_none(labels: NDArray[np.int64] | None, count: int) -> Iterator[int | None]:
    yield from ([None] * count if labels is None else labels.tolist())
