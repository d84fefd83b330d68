"""The files below a folder, without what this program wrote there itself: that is never data."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stage1_vqvae.data.tables import TABLE_SUFFIXES, table_columns
from vq_prior.core.disk.sheet_beside import is_sheet
from vq_prior.core.errors import ArtifactError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TRAININGS = ("vqvae-training", "prior-training")
SHEETS = ("grid.png", "maps.png")
FIRST = "000000"  # images of a set are numbered from it on
# Which file tells that a folder is ours, and the keys that it begins with.
Markers = Mapping[str, tuple[str, ...]]
SETS: Markers = {
    "samples.json": ("codec_id", "prior_id"),
    "scores.json": ("codec_id", "prior_id"),
    "reconstructions.json": ("codec_id", "data_id"),
}
OURS: Markers = {"codes.json": ("codec", "shards", "spec"), "config.json": ("components", "codec_id"), **SETS}
HEAD_BYTES = 1 << 16


@dataclass
class Listing:
    """The files below a folder by their path relative to it, sorted.

    Attributes:
        root: The folder.
        values: Files of the kind that was taken.
        by_suffix: All that are no tables, by suffix.
        folders: The folders.
        tables: Tables.
        metadata: Files of metadata.
        ours: What this program wrote and was left out: folders and sheets.
        num_other: Files that are of no kind that was taken.
        num_hidden: Hidden files and folders.
    """

    root: Path
    values: list[str] = field(default_factory=list)
    by_suffix: dict[str, list[str]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)
    num_other: int = 0
    num_hidden: int = 0


def list_files(root: Path, *, sets: bool = False) -> Listing:
    """Return the files below a folder, links followed, but for hidden ones and what this program wrote.

    Args:
        root: The folder.
        sets: Whether to take the sets of images that this program drew, without their sheets.

    Raises:
        ArtifactError: If a folder cannot be read, or is a link to one above it.
    """
    listing = Listing(root)
    left_out = {marker: keys for marker, keys in OURS.items() if marker not in SETS} if sets else OURS

    def fail(error: OSError) -> None:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        below = "" if folder == str(root) else os.path.relpath(folder, root) + "/"
        hidden = [name for name in subfolders if name.startswith(".")]
        listing.num_hidden += len(hidden)
        own = [name for name in subfolders if name not in hidden and _is_ours(Path(folder, name), left_out)]
        listing.ours += [f"{below}{name}/" for name in own]
        sheets = set(_sheets(Path(folder), files, subfolders, marked=not below or bool(subfolders)))
        listing.ours += [below + name for name in sheets]
        subfolders[:] = sorted(set(subfolders) - {*hidden, *own})
        listing.folders += [below + name for name in subfolders]
        for name in subfolders:
            _require_no_loop(Path(folder, name))
        for name in files:
            if name.startswith("."):
                listing.num_hidden += 1
            elif name not in sheets:
                _sort_in(listing, below + name, name)
    for names in (listing.tables, listing.metadata, listing.ours):
        names.sort()
    return listing


def _sort_in(listing: Listing, path: str, name: str) -> None:
    suffix = os.path.splitext(name)[1].lower()
    if name in METADATA_NAMES and (suffix not in TABLE_SUFFIXES or "file_name" in table_columns(listing.root / path)):
        listing.metadata.append(path)
    elif suffix in TABLE_SUFFIXES:
        listing.tables.append(path)
    else:
        listing.by_suffix.setdefault(suffix, []).append(path)


def _require_no_loop(folder: Path) -> None:
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder} is a link to a folder above it; remove the link")


def _is_ours(folder: Path, markers: Markers) -> bool:
    """Return whether this program wrote a folder: a training, codes, a MODEL, a set of images."""
    if folder.name in TRAININGS and (folder / "config.json").is_file():
        return True
    if any(_begins_with(folder / marker, keys) for marker, keys in markers.items()):
        return True
    return "samples.json" in markers and _is_numbered_set(folder)


def _is_numbered_set(folder: Path) -> bool:
    """Return whether a folder holds only numbered images and their sheet, as folders of reconstructions once did."""
    if not (folder / SHEETS[0]).is_file():
        return False
    stems = {name.partition(".")[0] for name in os.listdir(folder)} - {SHEETS[0].partition(".")[0]}
    return stems == {f"{number:06d}" for number in range(len(stems))}


def _begins_with(path: Path, keys: Iterable[str]) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return all(f'"{key}"'.encode() in head for key in ("format_version", *keys))


def _sheets(folder: Path, files: list[str], subfolders: list[str], *, marked: bool) -> Iterable[str]:
    """Yield the files of a folder that show others: sheets of sets of images, in these or elsewhere, and of a RUN.

    Those of older versions bear no mark; where `marked` it is looked for, which costs time in folders of many files.
    """
    numbered = any(name.startswith(f"{FIRST}.") for name in files)
    of_run = {"samples.png"} if any(name in subfolders for name in TRAININGS) else set()
    for name in files:
        within = name in SHEETS and numbered
        if within or name in of_run or (marked and name.endswith(".png") and is_sheet(folder / name)):
            yield name
