"""Folders of files: flat, one sub-folder a class, split into train/ and validation/, or listed in a metadata file."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stage1_vqvae.data.classes import Label
from stage1_vqvae.data.listing import Listing, list_files
from stage1_vqvae.data.metadata import Metadata, labels_file_notes, read_metadata
from stage1_vqvae.data.rows import FileRows, RawData, Split
from stage1_vqvae.data.splits import MOST_NAMED, Part, only_split, pairs_in_words, split_folders, untaken
from stage1_vqvae.data.tables import open_table_files
from stage1_vqvae.modalities import MODALITIES, Wanted, chosen, column_flag, kinds_of_suffix, named
from stage1_vqvae.modalities.pictures.others import CONVERT, UNREAD
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Modality


def _take_kind(listing: Listing, wanted: Wanted) -> tuple[Modality | None, str]:
    """Return the kind of the files of a folder and why, its files taken and all others counted; None if there is none.

    Raises:
        UsageError: If they may be of several kinds.
        ArtifactError: If they are of a kind that this version does not read.
    """
    name, why, modality = wanted.modality, "by --modality", None
    if name is not None:
        modality = named(name, str(listing.root))
    else:
        counts: dict[str, list[str]] = {}
        for suffix, files in sorted(listing.by_suffix.items()):
            for kind in kinds_of_suffix(suffix):
                counts.setdefault(kind, []).append(f"{len(files)} {suffix[1:]}")
        if any(kind in MODALITIES for kind in counts) or (counts and not listing.tables):
            reasons = {kind: f"{', '.join(sorted(files))} files" for kind, files in counts.items()}
            modality, why = chosen(reasons, str(listing.root))
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
        ArtifactError: If it holds no rows, or rows as files and tables, or several folders of one split.
    """
    listing = list_files(path)
    if wanted.labels_file is not None:
        own = {Path(wanted.labels_file).resolve(), (path / wanted.labels_file).resolve()}
        listing.tables = [name for name in listing.tables if (path / name).resolve() not in own]
    modality, why = _take_kind(listing, wanted)
    if listing.ours and not listing.values and not listing.tables:  # sets that were drawn are meant then
        listing = list_files(path, sets=True)
        modality, why = _take_kind(listing, wanted)
    notes = [f"left out what vq-prior wrote: {_some(listing.ours)}"] if listing.ours else []
    if listing.tables:
        if listing.values:
            assert modality is not None
            raise ArtifactError(
                f"{path} holds {len(listing.values)} {_called(modality)} files and {len(listing.tables)} tables "
                f"({listing.tables[0]}, ...); give one kind"
            )
        raw = open_table_files([path / name for name in listing.tables], wanted, path)
        return replace(raw, notes=(*notes, *raw.notes))
    for kind in wanted.columns:
        flag, files = column_flag(MODALITIES[kind]), _called(modality or MODALITIES[kind])
        raise UsageError(f"{flag} applies to tables, and {path} is a folder of {files} files; leave it out")
    metadata = read_metadata(listing, wanted)
    if wanted.label_column is not None and metadata is None:
        raise UsageError(f"--label-column applies to tables and metadata files, and {path} has none; leave it out")
    if modality is None or not listing.values:
        called, suffixes = ("image", MODALITIES["pictures"].signs.suffixes)
        if modality is not None:
            called, suffixes = _called(modality), modality.signs.suffixes
        ours = f", apart from what vq-prior wrote ({_some(listing.ours)})" if listing.ours else ""
        raise ArtifactError(f"{path} holds no {called}s ({', '.join(sorted(suffixes))}){ours}")
    return _rows_of(listing, metadata, modality, why, notes, wanted)


def _rows_of(
    listing: Listing, metadata: Metadata | None, modality: Modality, why: str, notes: list[str], wanted: Wanted
) -> RawData:
    """Return the rows of the listed files, each with its split and its class."""
    called, root, names = _called(modality), listing.root, listing.values
    notes += _unread(listing)
    if listing.num_other:
        notes.append(f"skipped {listing.num_other} file(s) that are no {called}s by their names")
    if listing.num_hidden:
        notes.append(f"skipped {listing.num_hidden} hidden file(s) or folder(s)")
    if metadata is not None:
        names = sorted(metadata.labels)
        if left_out := len(set(listing.values).difference(names)):
            notes.append(f"skipped {left_out} {called}(s) that the metadata does not list")
    groups = _split_groups(names, str(root), called, notes, wanted.split)
    labels_of = metadata.labels if metadata is not None else {}
    in_folders = all(label is None for label in labels_of.values())
    if metadata is not None:
        notes += metadata.notes
        if in_folders:
            notes.append(metadata.no_labels())
    splits = {}
    for split, (members, leads) in groups.items():
        labels: list[Label] | None
        labels = _class_folders(members, leads, called, notes) if in_folders else [labels_of[name] for name in members]
        if labels and split == "train" and in_folders:
            notes += _one_class(members, leads, str(root))
        paths = [os.path.join("" if str(root) == "." else root, name) for name in members]
        rows = FileRows(paths, f"{split} of {os.path.abspath(root)}")
        splits[split] = Split(rows, labels)
    if in_folders and metadata is None and not any(split.labels for split in splits.values()):
        notes += labels_file_notes(listing)
    causes = {str(root / name): _why_missing(root / name) for name in metadata.missing} if metadata is not None else {}
    folders = [name for name in listing.folders if not any(own.startswith(f"{name}/") for own in listing.ours)]
    empty = _empty(folders, *groups["train"]) if in_folders and splits["train"].labels else ()
    return RawData(splits["train"], splits.get("validation"), modality, why, None, tuple(notes), causes, empty)


def _called(modality: Modality) -> str:
    return "image" if modality.name == "pictures" else "row"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f", ... ({len(names)} in all)" if len(names) > MOST_NAMED else "")


def _why_missing(path: Path) -> str:
    """Return why a file that the metadata lists is no row."""
    if path.is_file():
        return f"is listed in the metadata, and {path.suffix or 'no suffix'} is none of the formats that are read"
    return "is listed in the metadata but is not there"


def _unread(listing: Listing) -> list[str]:
    """Return what to say of pictures in formats that are not read."""
    names = sorted(name for suffix in UNREAD for name in listing.by_suffix.get(suffix, ()))
    return (
        [f"left out {len(names)} picture(s) in formats that are not read ({_some(names)}); {CONVERT}"] if names else []
    )


def _split_groups(
    names: list[str], root: str, called: str, notes: list[str], wanted: str | None
) -> dict[str, tuple[list[str], list[int]]]:
    """Return the files of each split, and how many leading parts of each name say nothing of its class.

    Without a folder to train on, everything is training data.
    """
    parts = split_folders(names, root)
    if wanted is not None:
        parts = only_split(parts, wanted, root)
    if not parts:
        if folders := untaken(names):
            where = folders[0].rpartition("/")[0]
            notes.append(
                f"not taken for splits, since other {called}s lie beside: {_some(folders)}; "
                f"if they are, name {root}/{where} as the data"
            )
        return {"train": (names, [0] * len(names))}
    notes.append(f"folders: {pairs_in_words({part.folder: part.split for part in parts})}")
    groups: dict[str, tuple[list[str], list[int]]] = {}
    for split in ("train", "validation"):
        placed = sorted((name, part.lead) for part in parts if part.split == split for name in part.files)
        if placed:
            groups[split] = ([name for name, _ in placed], [lead for _, lead in placed])
    notes += [
        f"left the {len(part.files)} {called}s of {part.folder}/ untouched"
        for part in parts
        if part.split not in ("train", "validation")
    ]
    if outside := len(names) - sum(len(part.files) for part in parts):
        notes.append(f"skipped {outside} {called}(s) outside the split folders{_where(names, parts)}")
    return groups


def _where(names: Sequence[str], parts: Sequence[Part]) -> str:
    """Return the folders of the files that lie in no split, to be said behind their number."""
    inside = {name for part in parts for name in part.files}
    folders = sorted({name.rpartition("/")[0] for name in names if name not in inside} - {""})
    return f" ({_some(folders)})" if folders else ""


def _one_class(names: list[str], leads: list[int], root: str) -> list[str]:
    """Return what to say of a single class that has folders in it, which may be the classes."""
    heads = {tuple(name.split("/")[: lead + 1]) for name, lead in zip(names, leads, strict=True)}
    inner = {
        name.split("/")[lead + 1] if name.count("/") > lead + 1 else "" for name, lead in zip(names, leads, strict=True)
    }
    if len(heads) > 1 or len(inner) < 2 or "" in inner:
        return []
    where = "/".join([root, *heads.pop()])
    return [f"one class alone, and it has folders ({_some(sorted(inner))}); if these are the classes, name {where}"]


def _empty(folders: list[str], names: list[str], leads: list[int]) -> tuple[str, ...]:
    """Return the folders that stand where those of the classes do, and hold none of the files."""
    parents = {tuple(name.split("/")[:lead]) for name, lead in zip(names, leads, strict=True)}
    filled = {tuple(name.split("/")[: lead + 1]) for name, lead in zip(names, leads, strict=True)}
    paths = [tuple(folder.split("/")) for folder in folders]
    return tuple(path[-1] for path in paths if path[:-1] in parents and path not in filled)


def _class_folders(names: list[str], leads: list[int], called: str, notes: list[str]) -> list[Label] | None:
    """Return the class of each file: the first folder below the split; None for a flat folder."""
    parts = [name.split("/")[lead:] for name, lead in zip(names, leads, strict=True)]
    loose = [name for name, part in zip(names, parts, strict=True) if len(part) == 1]
    if not loose:
        return [part[0] for part in parts]
    if len(loose) < len(parts):
        notes.append(f"no labels: {len(loose)} {called}(s) lie beside the sub-folders, not in one ({_some(loose)})")
    return None
