"""Folders of files: flat, one sub-folder a class, split into train/ and validation/, or listed in a metadata file."""

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage1_vqvae.data.rows import FileRows, RawData, Split
from stage1_vqvae.data.tables import TABLE_SUFFIXES, open_table_files
from stage1_vqvae.modalities import MODALITIES, Wanted, chosen, column_flag, kinds_of_suffix, named
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Modality

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}


@dataclass
class _Listing:
    """The files below a folder by their path relative to it, sorted."""

    root: Path
    values: list[str] = field(default_factory=list)
    by_suffix: dict[str, list[str]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    num_other: int = 0
    num_hidden: int = 0

    def below(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return which of these top-level folders exist."""
        return tuple(name for name in names if (self.root / name).is_dir())


def _list(root: Path) -> _Listing:
    listing = _Listing(root)

    def fail(error: OSError) -> None:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        hidden = [name for name in subfolders if name.startswith(".")]
        listing.num_hidden += len(hidden)
        subfolders[:] = sorted(set(subfolders) - set(hidden))
        if len(Path(folder).parts) > len(root.parts) + 32:
            raise ArtifactError(f"{folder} is nested more than 32 folders deep; a link to itself?")
        for name in files:
            relative = Path(folder, name).relative_to(root).as_posix()
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                listing.num_hidden += 1
            elif name in METADATA_NAMES:
                listing.metadata.append(relative)
            elif suffix in TABLE_SUFFIXES:
                listing.tables.append(relative)
            else:
                listing.by_suffix.setdefault(suffix, []).append(relative)
    listing.tables.sort()
    listing.metadata.sort()
    return listing


def _take_kind(listing: _Listing, wanted: Wanted) -> tuple[Modality | None, str]:
    """Return the kind of the files of a folder and why, its files taken and all others counted; None if there is none.

    Raises:
        UsageError: If they may be of several kinds.
        ArtifactError: If they are of a kind that this version does not read.
    """
    name, why, modality = wanted.modality, "by --modality", None
    if name is not None:
        modality = named(name, str(listing.root))
    else:
        found: dict[str, list[str]] = {}
        for suffix, files in sorted(listing.by_suffix.items()):
            for kind in kinds_of_suffix(suffix):
                found.setdefault(kind, []).append(f"{len(files)} {suffix[1:]}")
        if any(kind in MODALITIES for kind in found) or (found and not listing.tables):
            told = {kind: f"{', '.join(sorted(files))} files" for kind, files in found.items()}
            modality, why = chosen(told, str(listing.root))
    for suffix, files in listing.by_suffix.items():
        if modality is not None and suffix in modality.signs.suffixes:
            listing.values += files
        else:
            listing.num_other += len(files)
    listing.values.sort()
    return modality, why


def open_folder(path: Path, wanted: Wanted) -> RawData:
    """Return the rows of a folder; names are sorted, so the order in which a system lists them does not matter.

    Raises:
        UsageError: If its files may be of several kinds.
        ArtifactError: If it holds no rows, or rows as files and tables, or its metadata names a missing file.
    """
    listing, label_column = _list(path), wanted.label_column
    modality, why = _take_kind(listing, wanted)
    if listing.tables:
        if listing.values:
            assert modality is not None
            raise ArtifactError(
                f"{path} holds {len(listing.values)} {_called(modality)} files and {len(listing.tables)} tables "
                f"({listing.tables[0]}, ...); give one kind"
            )
        return open_table_files([path / name for name in listing.tables], wanted)
    for kind in wanted.columns:
        flag, files = column_flag(MODALITIES[kind]), _called(modality or MODALITIES[kind])
        raise UsageError(f"{flag} applies to tables, and {path} is a folder of {files} files; leave it out")
    if modality is None or not listing.values:
        called, suffixes = ("image", MODALITIES["pictures"].signs.suffixes)
        if modality is not None:
            called, suffixes = _called(modality), modality.signs.suffixes
        raise ArtifactError(f"{path} holds no {called}s ({', '.join(sorted(suffixes))})")
    called = _called(modality)
    notes = []
    if listing.num_other:
        notes.append(f"skipped {listing.num_other} file(s) that are no {called}s by their names")
    if listing.num_hidden:
        notes.append(f"skipped {listing.num_hidden} hidden file(s) or folder(s)")
    labels_of = _read_metadata(listing, label_column)
    groups = _split_groups(listing, called, notes)
    if labels_of is not None:
        _require_listed_files(listing, labels_of)
        left_out = sum(name not in labels_of for names in groups.values() for name in names)
        groups = {split: [name for name in names if name in labels_of] for split, names in groups.items()}
        if left_out:
            notes.append(f"skipped {left_out} {called}(s) that the metadata does not list")
    splits = {}
    for split, names in groups.items():
        prefix = _prefix_of(listing, split, names)
        labels: list[str | int | None] | None
        if labels_of is None:
            labels = _class_folders(names, prefix, called, notes)
        else:
            labels = [labels_of[name] for name in names]
        splits[split] = Split(FileRows([path / name for name in names]), labels)
    if label_column is not None and labels_of is None:
        raise UsageError(f"--label-column applies to tables and metadata files, and {path} has none; leave it out")
    return RawData(splits["train"], splits.get("validation"), modality, why, None, tuple(notes))


def _called(modality: Modality) -> str:
    return "image" if modality.name == "pictures" else "row"


def _split_groups(listing: _Listing, called: str, notes: list[str]) -> dict[str, list[str]]:
    """Return the files of each split; without a train/ folder everything is training data."""
    present = {split: listing.below(names) for split, names in SPLIT_NAMES.items()}
    for split, names in present.items():
        if len(names) > 1 and present["train"]:
            raise ArtifactError(f"{listing.root} has more than one {split} folder ({', '.join(names)}); keep one")
    if not present["train"]:
        return {"train": listing.values}
    groups: dict[str, list[str]] = {}
    used = 0
    for split, names in present.items():
        members = [name for name in listing.values if names and name.startswith(names[0] + "/")]
        used += len(members)
        if members and split != "test":
            groups[split] = members
        elif members:
            notes.append(f"left the {len(members)} {called}s of {names[0]}/ untouched")
    if "train" not in groups:
        raise ArtifactError(f"{listing.root / present['train'][0]} holds no {called}s")
    if used < len(listing.values):
        notes.append(f"skipped {len(listing.values) - used} {called}(s) outside the split folders")
    return groups


def _prefix_of(listing: _Listing, split: str, names: list[str]) -> int:
    """Return how many leading parts of a name are the split's folder."""
    folders = listing.below(SPLIT_NAMES[split]) if listing.below(SPLIT_NAMES["train"]) else ()
    return 1 if folders and all(name.startswith(folders[0] + "/") for name in names) else 0


def _class_folders(names: list[str], prefix: int, called: str, notes: list[str]) -> list[str | int | None] | None:
    """Return the class of each file: the first folder below the split; None for a flat folder."""
    parts = [name.split("/")[prefix:] for name in names]
    loose = sum(len(part) == 1 for part in parts)
    if loose == 0:
        return [part[0] for part in parts]
    if loose < len(parts):
        notes.append(f"no labels: {loose} {called}(s) lie beside the sub-folders, not in one")
    return None


def _require_listed_files(listing: _Listing, labels_of: dict[str, str | int | None]) -> None:
    present = set(listing.values)
    for name in labels_of:
        if name not in present:
            raise ArtifactError(f"{listing.root / name} is listed in the metadata but is not there (or no image)")


def _read_metadata(listing: _Listing, label_column: str | None) -> dict[str, str | int | None] | None:
    """Return the label (or None) of each listed file by its path; None without a metadata file."""
    if not listing.metadata:
        return None
    labels_of: dict[str, str | int | None] = {}
    for relative in listing.metadata:
        path = listing.root / relative
        rows = _read_csv(path) if path.suffix == ".csv" else _read_jsonl(path)
        folder = Path(relative).parent
        columns = {name for row in rows for name in row}
        if "file_name" not in columns:
            raise ArtifactError(f"{path} must have a file_name column, got {', '.join(sorted(columns)) or 'no rows'}")
        if label_column is not None and label_column not in columns:
            raise UsageError(f"--label-column {label_column} is not in {path}, which has {', '.join(sorted(columns))}")
        chosen = label_column or "label"
        for number, row in enumerate(rows):
            name = row.get("file_name")
            if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
                raise ArtifactError(f"{path} row {number}: file_name must be a path within the folder, got {name!r}")
            key = (folder / name).as_posix()
            if key in labels_of:
                raise ArtifactError(f"{path} row {number}: {name} is listed twice")
            label = row.get(chosen)
            if label is not None and (isinstance(label, bool) or not isinstance(label, (str, int))):
                raise ArtifactError(f"{path} row {number}: {chosen} must be a name or an integer, got {label!r}")
            labels_of[key] = label
    return labels_of


def _read_csv(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    except (UnicodeError, csv.Error, OSError) as error:
        raise ArtifactError(f"{path} is not readable CSV text ({error})") from error
    for name in {name for row in rows for name in row if name and name != "file_name"}:
        values = [row.get(name) for row in rows]
        if all(isinstance(value, str) and value.isascii() and value.isdigit() for value in values):
            for row in rows:
                row[name] = int(row[name])
    return [{name: value if value != "" else None for name, value in row.items() if name} for row in rows]


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
