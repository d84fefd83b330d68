"""`vq-prior check-data`: every bad picture of a source, found before a training meets it, and a list that holds.

The list is a JSON file that stands for the data: wherever a command takes DATA it may be named instead. What it says is
bad is left out, and what has changed since is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.modalities.pictures.pixels import Encoded, Pictures, Transform, in_threads, read_header, to_array
from vq_prior.core.config import canonical_json, from_json, pretty_json, read_json
from vq_prior.core.errors import ArtifactError

SUFFIX, MAX_LIST_BYTES = ".json", 1 << 30


@dataclass(frozen=True)
class BadPicture:
    """A row that cannot be used: its number in its split, what it is called, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class CheckedSplit:
    """A split as it was found: the sha256 of every row's content, empty for a bad one, and the bad ones."""

    sha256: tuple[str, ...]
    bad: tuple[BadPicture, ...]

    def good_rows(self) -> NDArray[np.int64]:
        """Return the rows that are not bad, ascending."""
        bad = np.array([picture.row for picture in self.bad], dtype=np.int64)
        return np.setdiff1d(np.arange(len(self.sha256), dtype=np.int64), bad)


@dataclass(frozen=True)
class CheckedData:
    """The list.

    Attributes:
        format_version: Of this file.
        data: The source as it was typed.
        image_column: As it was given.
        label_column: As it was given.
        splits: By name.
    """

    format_version: int
    data: str
    image_column: str | None
    label_column: str | None
    splits: dict[str, CheckedSplit]

    def write(self, path: Path) -> None:
        """Write the list, whole."""
        from vq_prior.core.disk.artifacts import write_atomic

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, pretty_json(self))


def read_checked(path: Path) -> CheckedData:
    """Return a list of `check-data`.

    Raises:
        ArtifactError: If it is none, or malformed.
    """
    checked = from_json(CheckedData, read_json(path, max_bytes=MAX_LIST_BYTES), str(path))
    if checked.format_version != 1:
        raise ArtifactError(f"{path} has format version {checked.format_version}; this version reads 1")
    for name, split in checked.splits.items():
        if any(not 0 <= picture.row < len(split.sha256) for picture in split.bad):
            raise ArtifactError(f"{path}: splits.{name} lists a bad row that it does not have")
    return checked


def content_digest(encoded: Encoded) -> bytes:
    """Return the sha256 of a row: of the bytes of its file, or of shape and values of its pixels."""
    if isinstance(encoded, bytes):
        return sha256(encoded).digest()
    content = sha256(canonical_json(list(encoded.shape)))
    content.update(np.ascontiguousarray(encoded).tobytes())
    return content.digest()


def check_pictures(pictures: Pictures, num_workers: int | None) -> CheckedSplit:
    """Read and decode every row at its own size, whatever is wrong with others."""

    def look(row: int) -> tuple[str, BadPicture | None]:
        name = pictures.name(row)
        try:
            encoded = pictures.encoded(row)
            header = read_header(encoded, name)
            to_array(encoded, Transform(header.height, header.width, 1 if header.grey else 3), name)
        except ArtifactError as error:
            return "", BadPicture(row, name, str(error))
        return content_digest(encoded).hex(), None

    found = list(in_threads(look, range(len(pictures)), num_workers))
    return CheckedSplit(tuple(digest for digest, _ in found), tuple(bad for _, bad in found if bad is not None))


def require_unchanged(checked: CheckedSplit, digests: Sequence[bytes], pictures: Pictures, path: Path) -> None:
    """Raise `ArtifactError` naming the first good row whose content is not what the list says."""
    for row, digest in zip(checked.good_rows(), digests, strict=True):
        if checked.sha256[row] != digest.hex():
            raise ArtifactError(
                f"{pictures.name(int(row))} is not what it was when {path} was written; "
                "restore it, or run check-data again"
            )
