"""Rows of a data source: pictures that are read when needed, and their labels.

Letters: n rows.
"""

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.checking import content_digest
from stage1_vqvae.modalities.pictures.pixels import Encoded, Header, Pictures, in_threads, read_header
from vq_prior.core.config import canonical_json
from vq_prior.core.errors import ArtifactError

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Split:
    """One split as a source gives it.

    Attributes:
        pictures: Its rows.
        labels: The label of each row as the source writes it (a name, or an integer), or None without labels.
    """

    pictures: Pictures
    labels: Sequence[str | int | None] | None


@dataclass(frozen=True)
class RawData:
    """What a source holds, before labels are numbered and rows are held out.

    Attributes:
        train: Training rows.
        validation: Rows of the source's own validation split, or None.
        label_names: Names of integer labels where the source has a list of them.
        notes: What was skipped, counted and why; a sentence each.
    """

    train: Split
    validation: Split | None
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


class FileRows:
    """Picture files, in the order given."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, row: int) -> Encoded:
        """Return the file's bytes; raises `ArtifactError` if it cannot be read."""
        path = self.paths[row]
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read without end
                raise ArtifactError(f"{path} is not a file; remove it")
            if status.st_size > MAX_FILE_BYTES:
                raise ArtifactError(f"{path} has {status.st_size} bytes, more than the {MAX_FILE_BYTES} allowed")
            return path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error

    def name(self, row: int) -> str:
        """Return the file's path."""
        return str(self.paths[row])


class ArrayRows:
    """Pictures held as uint8 pixels [n, height, width]."""

    def __init__(self, pixels: NDArray[np.uint8], source: str) -> None:
        self._pixels, self._source = pixels, source

    def __len__(self) -> int:
        return len(self._pixels)

    def encoded(self, row: int) -> Encoded:
        """Return the row's pixels."""
        return self._pixels[row]

    def name(self, row: int) -> str:
        """Return the source's name and the row."""
        return f"{self._source} row {row}"


@dataclass(frozen=True)
class ImageRows:
    """Rows of one split of the data.

    Attributes:
        pictures: The rows of the source.
        source_index: Which of them these are, [n] int64, ascending.
        labels: Class of each row, [n] int64 in [0, number of classes), or None without labels.
        headers: What each row's header says.
    """

    pictures: Pictures
    source_index: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    headers: tuple[Header, ...] = field(repr=False, default=())

    def __len__(self) -> int:
        return len(self.source_index)

    def encoded(self, row: int) -> Encoded:
        """Return the bytes of row `row`, or its uint8 pixels."""
        return self.pictures.encoded(int(self.source_index[row]))

    def name(self, row: int) -> str:
        """Return what to call row `row` in a message."""
        return self.pictures.name(int(self.source_index[row]))

    def subset(self, rows: NDArray[np.int64] | range) -> "ImageRows":
        """Return some of the rows, in the order given."""
        chosen = np.asarray(rows, dtype=np.int64)
        headers = tuple(self.headers[row] for row in chosen) if self.headers else ()
        labels = None if self.labels is None else self.labels[chosen]
        return ImageRows(self.pictures, self.source_index[chosen], labels, headers)


def inspect_rows(
    pictures: Pictures, num_workers: int | None, rows: NDArray[np.int64] | None = None
) -> tuple[list[bytes], tuple[Header, ...]]:
    """Return the sha256 of the content of every row, or of some, and what its header says; each is read once.

    Raises:
        ArtifactError: Naming the first row that is no picture.
    """

    def inspect(row: int) -> tuple[bytes, Header]:
        encoded = pictures.encoded(row)
        return content_digest(encoded), read_header(encoded, pictures.name(row))

    results = list(in_threads(inspect, range(len(pictures)) if rows is None else map(int, rows), num_workers))
    return [digest for digest, _ in results], tuple(header for _, header in results)


def number_labels(
    labels: Sequence[str | int | None], names: tuple[str, ...] | None, source: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return class names and the class of each row, [n] int64.

    Named classes keep the source's order; strings are sorted; integers without names
    are sorted by value and named by their digits.

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
        return names, numbers
    if all(isinstance(label, int) for label in labels):
        values: list[Any] = sorted({label for label in labels if label is not None})
    else:
        labels = [str(label) for label in labels]
        values = sorted(set(labels))
    number_of = {value: number for number, value in enumerate(values)}
    numbers = np.fromiter((number_of[label] for label in labels), dtype=np.int64, count=len(labels))
    return tuple(map(str, values)), numbers


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
