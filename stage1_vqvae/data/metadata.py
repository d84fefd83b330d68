"""Metadata files of a folder, and files of labels: a row for each file, with its label."""

import csv
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stage1_vqvae.data.classes import Label, read_labels, without_nan
from stage1_vqvae.data.listing import Listing
from stage1_vqvae.data.splits import MOST_NAMED, split_column_notes
from stage1_vqvae.data.tables import table_rows
from stage1_vqvae.modalities import Wanted
from vq_prior.core.disk.pointers import require_no_pointer
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.labels import one_form

FILE_COLUMN = "file_name"


@dataclass(frozen=True)
class Metadata:
    """What the metadata files of a folder say.

    Attributes:
        labels: Label of each file by its path below the folder; None where it has none.
        missing: Files that are listed and are not there.
        column: Of the labels.
        columns: All that there are.
        notes: What is to be said of the labels.
    """

    labels: dict[str, Label]
    missing: list[str]
    column: str
    columns: tuple[str, ...]
    notes: list[str]

    def no_labels(self) -> str:
        """Return what is said where no file has a label."""
        return f"labels: not in the metadata ({self.column} is none of {', '.join(self.columns)}, or is empty)"


def read_metadata(listing: Listing, wanted: Wanted) -> Metadata | None:
    """Return what the metadata files of a folder say, or the file of labels that was named; None without any.

    Raises:
        UsageError: If a column is not there.
        ArtifactError: If a file cannot be read, or lists a file twice, or one outside of the folder.
    """
    if wanted.labels_file is None and wanted.file_column is not None:
        raise UsageError(f"--file-column {wanted.file_column} goes with --labels-file; give both or neither")
    if wanted.labels_file is None and not listing.metadata:
        return None
    paths = [listing.root / name for name in listing.metadata]
    if wanted.labels_file is not None:
        paths = [_labels_file(wanted.labels_file, listing.root)]
    every_column: dict[str, None] = {}
    labels: dict[str, Label] = {}
    notes: list[str] = []
    names = _Names(listing.values, anywhere=wanted.labels_file is not None)
    chosen = wanted.label_column or "label"
    for path in paths:
        rows = read_rows(path)
        every_column |= {name: None for row in rows for name in row}
        columns = {name: None for row in rows for name in row}
        files = _file_column(path, list(columns), wanted)
        chosen = _label_column(path, list(columns), files, wanted)
        values, said = read_labels(_column(rows, chosen), chosen, str(path), is_named=wanted.label_column is not None)
        notes += said + split_column_notes(columns, partial(_column, rows))
        folder = path.parent.relative_to(listing.root) if path.is_relative_to(listing.root) else Path()
        for number, row in enumerate(rows):
            key = names.file_of(row.get(files), folder, f"{path} row {number}", files)
            if key in labels:
                raise ArtifactError(f"{path} row {number}: {row[files]} is listed twice")
            labels[key] = None if values is None else values[number]
    present = set(listing.values)
    return Metadata(labels, sorted(name for name in labels if name not in present), chosen, tuple(every_column), notes)


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def _labels_file(name: str, root: Path) -> Path:
    for path in (Path(name), root / name):
        if path.is_file():
            return path
    raise ArtifactError(f"--labels-file {name} is not a file, neither here nor in {root}")


def _file_column(path: Path, columns: list[str], wanted: Wanted) -> str:
    known = ", ".join(sorted(columns)) or "no rows"
    if wanted.file_column is not None and wanted.file_column not in columns:
        raise UsageError(f"--file-column {wanted.file_column} is not in {path}, which has {known}")
    if wanted.file_column is None and FILE_COLUMN not in columns:
        flag = "; name another by --file-column" if wanted.labels_file is not None else ""
        raise ArtifactError(f"{path} must have a {FILE_COLUMN} column, got {known}{flag}")
    return wanted.file_column or FILE_COLUMN


def _label_column(path: Path, columns: list[str], files: str, wanted: Wanted) -> str:
    known = ", ".join(sorted(columns))
    if wanted.label_column is not None and wanted.label_column not in columns:
        raise UsageError(f"--label-column {wanted.label_column} is not in {path}, which has {known}")
    if wanted.label_column is None and "label" not in columns and wanted.labels_file is not None:
        others = [name for name in columns if name != files]
        if len(others) != 1:
            raise UsageError(f"{path} has no column label, only {known}; name that of the labels by --label-column")
        return others[0]
    return wanted.label_column or "label"


class _Names:
    """The files of a folder by what a table may call them: a path, in any form of Unicode; or, `anywhere`, a name."""

    def __init__(self, files: list[str], *, anywhere: bool) -> None:
        self._paths: dict[str, str | None] = {}
        self._others: dict[str, str | None] = {}
        for file in files:
            self._paths[file] = file
        for file in files:
            self._paths.setdefault(one_form(file), file)
            base = file.rpartition("/")[2]
            for called in {base, file.rpartition(".")[0], base.rpartition(".")[0]} if anywhere else ():
                known = self._others.setdefault(one_form(called), file)
                if known != file:
                    self._others[one_form(called)] = None

    def file_of(self, name: Any, folder: Path, where: str, column: str) -> str:
        """Return the path of the file that a row names; of one that is not there, the path as it is written.

        Raises:
            ArtifactError: If it lies outside of the folder, or several files have the name.
        """
        name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
        if not isinstance(name, str) or not name or ".." in Path(name).parts or Path(name).is_absolute():
            raise ArtifactError(f"{where}: {column} must be a path within the folder, got {name!r}")
        for written in (name, name.replace("\\", "/")):
            key = (folder / written).as_posix()
            for path in (self._paths.get(key), self._paths.get(one_form(key))):
                if path is not None:
                    return path
        called = one_form(Path(name).as_posix())
        if self._others.get(called, "") is None:
            raise ArtifactError(f"{where}: several files are called {name}; write their paths below the folder")
        return self._others.get(called) or (folder / name).as_posix()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a csv, tsv, jsonl or parquet file; raises `ArtifactError` if it is none."""
    suffix = path.suffix.lower()
    require_no_pointer(path)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, "\t" if suffix == ".tsv" else ",")
    if suffix in (".parquet", ".arrow"):
        return table_rows(path)
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    raise ArtifactError(f"{path} must be a .csv, .tsv, .jsonl or .parquet file")


def labels_file_notes(listing: Listing) -> list[str]:
    """Return what to say of tables beside the files that may hold their labels, and are not read."""
    names = sorted(name for suffix in (".csv", ".tsv") for name in listing.by_suffix.get(suffix, ()) if "/" not in name)
    notes = []
    for name in names[:MOST_NAMED]:
        try:
            with (listing.root / name).open(encoding="utf-8-sig", newline="") as file:
                columns = next(csv.reader(file, delimiter="\t" if name.endswith(".tsv") else ","), [])
        except (UnicodeError, csv.Error, OSError):
            continue
        if 2 <= len(columns) <= 64:
            notes.append(
                f"{name} is not read; if it holds labels: --labels-file {name} --file-column {columns[0]} "
                f"(its columns are {', '.join(columns[:MOST_NAMED])})"
            )
    return notes


def _read_csv(path: Path, delimiter: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file, delimiter=delimiter)]
    except (UnicodeError, csv.Error, OSError) as error:
        raise ArtifactError(f"{path} is not readable CSV text ({error})") from error
    for name in {name for row in rows for name in row if name and name != FILE_COLUMN}:
        values: list[Any] = [row.get(name) for row in rows]
        if all(isinstance(value, str) for value in values):
            values = without_nan(values)
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        # 01 is a name: as a number it would be another class than the one that people ask for.
        if all(isinstance(value, str) and value.isascii() and value == str(_number(value)) for value in values):
            for row in rows:
                row[name] = int(row[name])
    return [{name: value if value != "" else None for name, value in row.items() if name} for row in rows]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() and len(text) < 1000 else None


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ArtifactError(f"{path} must hold one object a line, got {line[:40]}")
                rows.append(row)
    except (UnicodeError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} is not readable JSON lines ({error})") from error
    return rows
