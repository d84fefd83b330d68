"""Metadata files of a folder: a row for each file, with its label."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_vqvae.data.classes import Label, read_labels, without_nan
from stage1_vqvae.data.listing import Listing
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.labels import one_form


@dataclass(frozen=True)
class Metadata:
    """What the metadata files of a folder say.

    Attributes:
        labels: Label of each file by its path below the folder; None where it has none.
        column: Of the labels.
        columns: All that there are.
        notes: What is to be said of the labels.
    """

    labels: dict[str, Label]
    column: str
    columns: tuple[str, ...]
    notes: list[str]

    def listed(self, listing: Listing) -> tuple[list[str], list[str]]:
        """Return the files that are listed, sorted, and which of them are not there.

        A name may be written in another form of Unicode than on the disk.
        """
        present = {one_form(name): name for name in listing.values} | {name: name for name in listing.values}
        for name in list(self.labels):
            found = present.get(name) or present.get(one_form(name))
            if found is not None and found != name:
                self.labels[found] = self.labels.pop(name)
        return sorted(self.labels), sorted(name for name in self.labels if name not in present)

    def no_labels(self) -> str:
        """Return what is said where no file has a label."""
        return f"labels: not in the metadata ({self.column} is none of {', '.join(self.columns)}, or is empty)"


def read_metadata(listing: Listing, label_column: str | None) -> Metadata | None:
    """Return what the metadata files of a folder say; None without a metadata file."""
    if not listing.metadata:
        return None
    labels: dict[str, Label] = {}
    found: dict[str, None] = {}
    notes: list[str] = []
    chosen = label_column or "label"
    for relative in listing.metadata:
        path = listing.root / relative
        rows = _read_csv(path) if path.suffix == ".csv" else _read_jsonl(path)
        folder = Path(relative).parent
        columns = {name: None for row in rows for name in row}
        if "file_name" not in columns:
            raise ArtifactError(f"{path} must have a file_name column, got {', '.join(sorted(columns)) or 'no rows'}")
        if label_column is not None and label_column not in columns:
            raise UsageError(f"--label-column {label_column} is not in {path}, which has {', '.join(sorted(columns))}")
        found |= columns
        values, said = read_labels((row.get(chosen) for row in rows), chosen, str(path), asked=label_column is not None)
        notes += said
        for number, row in enumerate(rows):
            name = row.get("file_name")
            if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
                raise ArtifactError(f"{path} row {number}: file_name must be a path within the folder, got {name!r}")
            key = (folder / name).as_posix()
            if key in labels:
                raise ArtifactError(f"{path} row {number}: {name} is listed twice")
            labels[key] = None if values is None else values[number]
    return Metadata(labels, chosen, tuple(found), notes)


def _read_csv(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    except (UnicodeError, csv.Error, OSError) as error:
        raise ArtifactError(f"{path} is not readable CSV text ({error})") from error
    for name in {name for row in rows for name in row if name and name != "file_name"}:
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
