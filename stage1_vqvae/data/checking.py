"""`vq-prior check-data`: find every bad row of a source before a training meets it, and write a list to train from.

The list is a JSON file that stands for the data: wherever a command takes DATA it may be named instead. What it says is
bad is left out, and what has changed since is refused.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.frames import all_frames, rows_of
from stage1_vqvae.data.loading import EncodedRows, in_threads
from stage1_vqvae.data.rows import DataRows, RawData, Split, content_digest, inspect_rows
from stage1_vqvae.modalities import Wanted
from stage1_vqvae.modalities.pictures import PICTURES
from vq_prior.core.config import from_json, pretty_json, read_json, to_json
from vq_prior.core.disk.names import as_on_disk
from vq_prior.core.errors import ArtifactError
from vq_prior.core.modality import Modality

SUFFIX, MAX_LIST_BYTES = ".json", 1 << 30
ALWAYS = ("image_column", "label_column")  # are written though they are null


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its number in its split, what it is called, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class CheckedSplit:
    """A split as it was found: the sha256 of every row's content, empty for a bad one, and the bad ones."""

    sha256: tuple[str, ...]
    bad: tuple[BadRow, ...]

    def good_rows(self) -> NDArray[np.int64]:
        """Return the rows that are not bad, ascending."""
        bad = np.array([bad.row for bad in self.bad], dtype=np.int64)
        return np.setdiff1d(np.arange(len(self.sha256), dtype=np.int64), bad)


@dataclass(frozen=True)
class CheckedData:
    """The list that `check-data` writes.

    Attributes:
        format_version: Of this file.
        data: The source as it was typed.
        image_column: As it was given.
        label_column: As it was given.
        splits: By name.
        modality: What the rows are; None, and left out of the file, for pictures.
        column: Of the rows in tables, as it was given, where they are no pictures.
        classes: Those to take, as they were given, if they were.
        max_images: Rows of each split to take at most, if it was given.
        split: The split to take alone, if it was given.
        labels_file: Table of the labels, if it was given.
        file_column: Its column of the files, if it was given.
        frames: "all" if every frame of a file was looked at and is a row.
    """

    format_version: int
    data: str
    image_column: str | None
    label_column: str | None
    splits: dict[str, CheckedSplit]
    modality: str | None = None
    column: str | None = None
    classes: str | None = None
    max_images: int | None = None
    split: str | None = None
    labels_file: str | None = None
    file_column: str | None = None
    frames: str | None = None

    @classmethod
    def of(cls, data: str, wanted: Wanted, modality: Modality, splits: dict[str, CheckedSplit]) -> "CheckedData":
        """Return the list of what was found."""
        pictures = modality is PICTURES
        column = wanted.columns.get(modality.name)
        name, other = (None, None) if pictures else (modality.name, column)
        return cls(
            1,
            data,
            column if pictures else None,
            wanted.label_column,
            splits,
            name,
            other,
            classes=wanted.classes,
            max_images=wanted.max_images,
            split=wanted.split,
            labels_file=wanted.labels_file,
            file_column=wanted.file_column,
            frames=wanted.frames,
        )

    @property
    def columns(self) -> dict[str, str]:
        """The columns as `Wanted` has them."""
        if self.image_column is not None:
            return {PICTURES.name: self.image_column}
        return {self.modality: self.column} if self.modality and self.column else {}

    def write(self, path: Path) -> None:
        """Write the list, whole."""
        from vq_prior.core.disk.artifacts import write_atomic
        from vq_prior.core.disk.places import make_folder, true_place

        make_folder(true_place(path).parent)
        entries = {name: value for name, value in to_json(self).items() if value is not None or name in ALWAYS}
        write_atomic(path, pretty_json(entries))


def read_checked(path: Path) -> CheckedData:
    """Return a list of `check-data`.

    Raises:
        ArtifactError: If it is none, or malformed.
    """
    checked = from_json(CheckedData, read_json(path, max_bytes=MAX_LIST_BYTES), str(path))
    if checked.format_version != 1:
        raise ArtifactError(f"{path} has format version {checked.format_version}; this version reads 1")
    for name, split in checked.splits.items():
        if any(not 0 <= bad.row < len(split.sha256) for bad in split.bad):
            raise ArtifactError(f"{path}: splits.{name} lists a bad row that it does not have")
    return checked if os.path.exists(checked.data) else replace(checked, data=as_on_disk(checked.data))


def check_splits(raw: RawData, num_workers: int | None, frames: str | None = None) -> dict[str, CheckedSplit]:
    """Look at every row of a source, whatever is wrong with others: its file, and its label where others have one."""
    splits = {"train": raw.train} | ({"validation": raw.validation} if raw.validation else {})
    labelled = {name: any(label is not None for label in split.labels or ()) for name, split in splits.items()}
    results = {}
    for name, split in splits.items():
        checked = check_rows(split.rows, raw.modality, num_workers, raw.missing, frames)
        results[name] = _without_label(checked, split) if labelled[name] and labelled["train"] else checked
    return results


def _without_label(checked: CheckedSplit, split: Split) -> CheckedSplit:
    """Return a split in which the rows without a label are bad, too."""
    bad = {row.row: row for row in checked.bad}
    for row, label in enumerate(split.labels or ()):
        if label is None and row not in bad:
            name = split.rows.name(row)
            bad[row] = BadRow(row, name, f"{name} has no label, and others have; give it one")
    digests = tuple("" if row in bad else digest for row, digest in enumerate(checked.sha256))
    return CheckedSplit(digests, tuple(bad[row] for row in sorted(bad)))


def check_rows(
    rows: EncodedRows,
    modality: Modality,
    num_workers: int | None,
    missing: Mapping[str, str] | None = None,
    frames: str | None = None,
) -> CheckedSplit:
    """Read and decode every row at its own size, whatever is wrong with others; with frames "all" every frame."""
    frames_of = all_frames(modality) if frames == "all" else None

    def look(row: int) -> tuple[str, BadRow | None]:
        name, files = partial(rows.name, row), modality.files
        if missing and (why := missing.get(name())) is not None:
            return "", BadRow(row, name(), f"{name()} {why}")
        try:
            encoded = rows.encoded(row)
            for each in [encoded] if frames_of is None else frames_of(encoded, name()):
                files.read(each, files.own_transform(files.inspect(each, name)), name)
        except ArtifactError as error:
            return "", BadRow(row, name(), str(error))
        return content_digest(encoded).hex(), None

    results = list(in_threads(look, range(len(rows)), num_workers))
    return CheckedSplit(tuple(digest for digest, _ in results), tuple(bad for _, bad in results if bad is not None))


def require_unchanged(
    checked: CheckedSplit, numbers: NDArray[np.int64], digests: Sequence[bytes], rows: EncodedRows, path: Path
) -> None:
    """Raise `ArtifactError` naming the first of some good rows whose content is not what the list says."""
    for row, digest in zip(numbers, digests, strict=True):
        if checked.sha256[row] != digest.hex():
            raise ArtifactError(
                f"{rows.name(int(row))} is not what it was when {path} was written; restore it, or run check-data again"
            )


def looked_at(
    split: Split,
    files: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    modality: Modality,
    frames: str | None,
    num_workers: int | None,
    listed: CheckedSplit | None,
    data: str,
) -> tuple[DataRows, list[bytes]]:
    """Return the rows of some files of a split, their headers read, and the sha256 of each row's content.

    Args:
        split: As the source gives it.
        files: Which of its rows.
        labels: Class of every row of it, if they have any.
        modality: What they are.
        frames: "all" makes a row of every frame of a file.
        num_workers: Threads that read.
        listed: What a list of `check-data` says of the split, if DATA is one.
        data: As it was typed.
    """
    if listed is not None and frames == "all":
        now = [content_digest(split.rows.encoded(row)) for row in files.tolist()]
        require_unchanged(listed, files, now, split.rows, Path(data))
    try:
        source, rows, file_of_each = rows_of(split.rows, files, modality, frames, num_workers)
        digests, headers = inspect_rows(source, modality, num_workers, rows)
    except ArtifactError as error:
        if listed is not None:
            raise
        raise ArtifactError(f"{error} (`vq-prior check-data` names all such at once)") from error
    if listed is not None and frames is None:
        require_unchanged(listed, files, digests, split.rows, Path(data))
    return DataRows(source, rows, None if labels is None else labels[file_of_each], headers), digests
