"""DATA: what a user may name, of which kind it is, and the rows it holds.

URLs are shards on web servers. Else an existing path wins (a folder, a parquet, arrow, numpy or HDF5 file), then the
word `digits`, then a Hub id `owner/name[@revision]`; anything else is a missing path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.archives import ARCHIVE_SUFFIXES, open_archives, shards_in
from stage1_vqvae.data.array_files import ARRAY_SUFFIXES
from stage1_vqvae.data.arrays import open_array_file
from stage1_vqvae.data.checking import SUFFIX, CheckedData, looked_at, read_checked
from stage1_vqvae.data.folders import open_folder
from stage1_vqvae.data.frames import files_of, held_out_of, num_files
from stage1_vqvae.data.hub import is_data_id, open_hub
from stage1_vqvae.data.remote import open_remote
from stage1_vqvae.data.rows import (
    ArrayRows,
    DataRows,
    RawData,
    Split,
    content_hash,
    number_labels,
)
from stage1_vqvae.data.selection import chosen_classes, some_rows, without_rows
from stage1_vqvae.data.splits import MOST_NAMED
from stage1_vqvae.data.tables import TABLE_SUFFIXES, open_table_files
from stage1_vqvae.data.web import is_remote
from stage1_vqvae.modalities import MODALITIES, Wanted, installed, named, told_of_form
from vq_prior.core.disk.code_store import held_out_rows
from vq_prior.core.disk.names import readable
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError
from vq_prior.core.modality import Facts, Form, Modality, facts_of
from vq_prior.core.processes.packages import broken

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Data:
    """Rows and labels, split for training and validation.

    Attributes:
        source: As the user typed it.
        data_id: sha256 over contents, labels and label names; the same wherever the data lies.
        modality: What the rows are.
        train: Rows to train on.
        validation: Held-out rows: the source's own validation split, else every 20th row.
        label_names: Name of each class; empty without labels.
        notes: What was found, skipped or held out, a sentence each.
    """

    source: str
    data_id: str
    modality: Modality
    train: DataRows
    validation: DataRows
    label_names: tuple[str, ...]
    notes: tuple[str, ...]

    def facts(self) -> Facts:
        """Return what default settings depend on."""
        return facts_of(len(self.train), [*self.train.headers, *self.validation.headers])

    def told_of(self, form: Form) -> list[str]:
        """Return what bringing the rows to a form takes away from them, a sentence each; often nothing."""
        told = told_of_form(self.modality, form, [*self.train.headers, *self.validation.headers])
        return [f"data {self.source}: {each}" for each in told]


def open_data(
    data: str,
    *,
    modality: str | Modality | None = None,
    image_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_column: str | None = None,
    split: str | None = None,
    labels_file: str | None = None,
    file_column: str | None = None,
    classes: str | None = None,
    max_images: int | None = None,
    frames: str | None = None,
    shard_cache_mib: int | None = None,
    num_workers: int | None = None,
) -> Data:
    """Return the rows that `data` names, every header checked.

    Args:
        data: Folder, parquet, arrow, numpy or HDF5 file, `digits`, or Hub id.
        modality: What its rows are, or the name of that; None finds it out, see `stage1_vqvae.modalities`.
        image_column: Column of the images in tables; None finds it by type.
        columns: The same for any kind, by its name.
        label_column: Column of the labels in tables and metadata files; None takes `label` if there is one.
        split: The split to take alone; None takes those for training and validation.
        labels_file: Table of the labels of a folder's files.
        file_column: Its column of the files; None is `file_name`.
        classes: Names of the classes to take, separated by commas; None takes all.
        max_images: Rows of each split to take at most; None takes all.
        frames: "all" makes a row of every frame of a file; None takes the first of each.
        shard_cache_mib: MiB of disk for shards of web servers; None is 10,240.
        num_workers: Threads that read; None is one a core.

    Raises:
        ArtifactError: If it is missing, empty, or holds something that is none of its kind.
        UsageError: If a named column does not exist, or the rows may be of several kinds.
        EnvironmentFault: If scikit-learn or the network is missing where it is needed.
    """
    wanted = wanted_of(
        modality,
        image_column,
        columns,
        label_column=label_column,
        split=split,
        labels_file=labels_file,
        file_column=file_column,
        classes=classes,
        max_images=max_images,
        frames=frames,
        shard_cache_mib=shard_cache_mib,
    )
    return _opened(data, wanted, num_workers)


def _opened(data: str, wanted: Wanted, num_workers: int | None) -> Data:
    checked = read_checked(Path(data)) if data.endswith(SUFFIX) and Path(data).is_file() else None
    if checked is not None:
        wanted = _as_checked(checked, wanted)
    raw = open_raw(data if checked is None else checked.data, wanted)
    notes = [f"data {data}: {raw.modality.name}, {raw.why}", *raw.notes]
    called = rows_called(raw.modality)
    splits = {"train": raw.train} | ({"validation": raw.validation} if raw.validation else {})
    for name, split in splits.items():
        if not len(split.rows):
            raise ArtifactError(f"{data} holds no {called} in its {name} split")
    good = {name: np.arange(len(split.rows)) for name, split in splits.items()}
    if checked is not None:
        good = _good_rows(checked, splits, data)
        num_bad = sum(len(split.bad) for split in checked.splits.values())
        notes.append(f"left out {num_bad} {called[:-1]}(s) that {data} calls bad")
    elif raw.missing:
        raise ArtifactError(missing_in_words(raw.missing))
    splits = labelled_alike(splits, called, notes)
    label_names, numbers = classes_of(splits, good, raw.label_names, data)
    label_names, numbers, good = _selected(wanted, label_names, numbers, good, splits, data, notes)
    whole: dict[str, DataRows] = {}
    contents = []
    for name, split in splits.items():
        what = (good[name], numbers[name], raw.modality, wanted.frames, num_workers)
        whole[name], digests = looked_at(split, *what, None if checked is None else checked.splits[name], data)
        if wanted.frames == "all":
            notes.append(f"{len(good[name])} files of the {name} split hold {len(whole[name])} frames, each a row")
        contents.append((name, digests, whole[name].labels))
    data_id = content_hash(contents, label_names)
    label_names = tuple(map(readable, label_names))
    train = whole["train"]
    if "validation" in whole:
        validation = whole["validation"]
        kind = "its own validation split"
    else:
        # A row is held out or not whatever others are left out.
        if num_files(raw.train.rows) < 2 < len(train):
            one = "file, whose frames" if wanted.frames == "all" else "list, whose images"
            raise ArtifactError(f"{data} holds one {one} are held out together; give at least two")
        files = files_of(train)
        held_out = np.isin(files, held_out_rows(num_files(raw.train.rows)))
        if wanted.classes is not None and not held_out.any():
            left, place = np.unique(files, return_inverse=True)
            held_out = np.isin(place, held_out_rows(len(left)))
        if not held_out.any() or held_out.all():
            raise ArtifactError(f"{data} keeps too few good {called} to hold some out")
        validation, train = train.subset(np.flatnonzero(held_out)), train.subset(np.flatnonzero(~held_out))
        kind = "rows held out at a fixed stride"
    classes = f"{len(label_names)} class{'es' if len(label_names) > 1 else ''}" if label_names else "no labels"
    counts = f"{len(train)} {called} to train on, {len(validation)} to validate ({kind}), {classes}"
    notes.insert(1, f"data {data}: {counts}")
    if (labels := whole["train"].labels) is not None:
        notes.insert(2, classes_in_words(label_names, labels))
        if train.labels is not None and validation.labels is not None:
            notes += without_rows(label_names, train.labels, validation.labels, raw.empty)
    return Data(data, data_id, raw.modality, train, validation, label_names, tuple(notes))


def classes_in_words(names: tuple[str, ...], labels: NDArray[np.int64]) -> str:
    """Return the classes and how many rows each has, the first ten."""
    counts = np.bincount(labels, minlength=len(names))
    first = ", ".join(f"{name} ({count})" for name, count in zip(names[:MOST_NAMED], counts, strict=False))
    return f"{len(names)} class{'es' if len(names) > 1 else ''}: {first}{', ...' if len(names) > MOST_NAMED else ''}"


def missing_in_words(missing: Mapping[str, str]) -> str:
    """Return what is said of rows that are no rows: the cause of the first, and the names of others."""
    names = list(missing)
    others = f", as are {len(names) - 1} more ({', '.join(names[1:MOST_NAMED])})" if len(names) > 1 else ""
    return f"{names[0]} {missing[names[0]]}{others}; mend the list, or leave them out by check-data --policy skip"


def _selected(
    wanted: Wanted,
    names: tuple[str, ...],
    numbers: dict[str, NDArray[np.int64] | None],
    rows: dict[str, NDArray[np.int64]],
    splits: dict[str, Split],
    data: str,
    notes: list[str],
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64] | None], dict[str, NDArray[np.int64]]]:
    """Return names, classes and rows that are left of the classes and the number of rows that are wanted."""
    rows = {split: rows[split] for split in splits}
    if wanted.classes is not None:
        classes = chosen_classes(wanted.classes, names, data)
        new = np.full(len(names), -1, dtype=np.int64)
        new[classes] = np.arange(len(classes))
        notes.append(f"took {len(classes)} of {len(names)} classes (--classes)")
        names = tuple(names[number] for number in classes)
        for split, labels in numbers.items():
            assert labels is not None
            numbers[split] = chosen = np.where(labels < 0, -1, new[labels])
            rows[split] = rows[split][chosen[rows[split]] >= 0]
    if wanted.max_images is not None:
        for split, some in rows.items():
            held_out = held_out_of(splits[split].rows) if len(splits) == 1 else np.empty(0, dtype=np.int64)
            rows[split] = some_rows(some, held_out, wanted.max_images)
            if len(rows[split]) < len(some):
                of = "" if split == "train" else " to validate"
                notes.append(f"took {len(rows[split])} of {len(some)} rows{of} (--max-images)")
    for split, some in rows.items():
        if not len(some):
            raise ArtifactError(f"{data} holds nothing of the classes {', '.join(names)} in its {split} split")
    return names, numbers, rows


def require_labels(data: Data) -> NDArray[np.int64]:
    """Return the class of each row to train on; raises `UsageError` without labels, which --balance needs."""
    if data.train.labels is None:
        raise UsageError(f"--balance needs classes, and {data.source} has no labels; leave it out")
    return data.train.labels


def rows_called(modality: Modality) -> str:
    """Return what rows of a kind are called where people read of them: images, or rows."""
    return "images" if modality.show.output == "images" else "rows"


def wanted_of(
    modality: str | Modality | None,
    image_column: str | None,
    columns: Mapping[str, str] | None,
    **more: Any,
) -> Wanted:
    """Return what the user said of DATA; raises `UsageError` if that cannot be."""
    name = modality.name if isinstance(modality, Modality) else modality
    if name is not None:
        named(name, "DATA")
    all_columns = dict(columns or {}) | ({} if image_column is None else {"pictures": image_column})
    wanted = Wanted(name, all_columns, **more)
    if wanted.frames not in (None, "all"):
        raise UsageError(f"frames must be all, or be left out, got {wanted.frames}")
    wanted.kind()
    if wanted.max_images is not None and wanted.max_images < 2:
        raise UsageError(f"--max-images must be at least 2, got {wanted.max_images}")
    return wanted


def _as_checked(checked: CheckedData, wanted: Wanted) -> Wanted:
    """Return what is wanted of the data: what a list of `check-data` was made with, and else what is asked for now."""
    columns = checked.columns or wanted.columns
    return replace(
        wanted,
        modality=checked.modality or wanted.modality,
        columns=columns,
        label_column=checked.label_column or wanted.label_column,
        split=checked.split or wanted.split,
        labels_file=checked.labels_file or wanted.labels_file,
        file_column=checked.file_column or wanted.file_column,
        classes=wanted.classes or checked.classes,
        max_images=wanted.max_images or checked.max_images,
        frames=wanted.frames or checked.frames,
    )


def _good_rows(checked: CheckedData, splits: dict[str, Split], data: str) -> dict[str, NDArray[np.int64]]:
    """Return the good rows of each split of a checked source; raises `ArtifactError` if it has other rows by now."""
    counts = {name: len(split.rows) for name, split in splits.items()}
    listed = {name: len(split.sha256) for name, split in checked.splits.items()}
    if counts != listed:
        now, then = (", ".join(f"{name} {count}" for name, count in each.items()) for each in (counts, listed))
        raise ArtifactError(f"{checked.data} has other rows than {data} lists ({then} -> {now}); run check-data again")
    return {name: split.good_rows() for name, split in checked.splits.items()}


def columns_of(settings: Any) -> dict[str, str]:
    """Return the columns that a command's settings name, by kind, but for that of pictures."""
    options: Mapping[str, Any] = getattr(settings, "options", None) or {}
    flags = {kind.name: f"{kind.signs.column}_column" for kind in installed()}
    return {name: options[flag] for name, flag in flags.items() if options.get(flag)}


def said_of_data(settings: Any) -> dict[str, Any]:
    """Return what a command's settings say of its data beside its kind and the column of its values."""
    where = ("label_column", "split", "labels_file", "file_column")
    names = (*where, "classes", "max_images", "frames", "shard_cache_mib")
    return {name: getattr(settings, name) for name in names}


def open_data_of(
    settings: Any, *, say: Callable[[str], object], modality: Modality | None = None, form: Form | None = None
) -> Data:
    """Return the rows that a command's settings name, after saying what was found; raises what `open_data` does.

    Args:
        settings: Of a command: `data`, `modality`, `image_column`, `label_column`, `num_workers`, `options`.
        say: Takes a line.
        modality: What the rows must be, where a codec says so already.
        form: What they are brought to, where a codec says so already: what that takes away from them is said.
    """
    if modality is not None and settings.modality not in (None, modality.name):
        raise UsageError(f"--modality must be {modality.name}, which the codec is for, got {settings.modality}")
    data = open_data(
        settings.data,
        modality=modality or settings.modality,
        image_column=settings.image_column,
        columns=columns_of(settings),
        num_workers=settings.num_workers,
        **said_of_data(settings),
    )
    for note in data.notes:
        say(note)
    if form is not None:
        for note in data.told_of(form):
            say(note)
    return data


def labelled_alike(splits: dict[str, Split], called: str, notes: list[str]) -> dict[str, Split]:
    """Return the splits without a held-out one that has no labels where the rows to train on have some."""
    has = {name: not {None, -1}.issuperset(split.labels or ()) for name, split in splits.items()}
    splits = {name: split if has[name] else Split(split.rows, None) for name, split in splits.items()}
    if has.get("validation", True) == has["train"] or "validation" not in splits:
        return splits
    if not has["train"]:
        notes.append(f"no labels: the validation split has some, the {called} to train on have none")
        return splits
    count = len(splits["validation"].rows)
    notes.append(f"left the {count} {called} of the validation split untouched: they have no labels, unlike the others")
    return {"train": splits["train"]}


def classes_of(
    splits: dict[str, Split], good: dict[str, NDArray[np.int64]], names: tuple[str, ...] | None, source: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64] | None]]:
    """Return class names and, for each split, the class of each row; no labels unless every split has them.

    Raises:
        ArtifactError: If some of the good rows have no label, naming the first.
    """
    labels = {name: list(split.labels or ()) for name, split in splits.items()}
    everything = [label for each in labels.values() for label in each if label is not None]
    if not all(labels.values()):
        return (), dict.fromkeys(splits)
    bare = [splits[name].rows.name(int(row)) for name in splits for row in good[name] if labels[name][row] is None]
    if bare:
        total, more = sum(map(len, good.values())), ", ..." if len(bare) > MOST_NAMED else ""
        raise ArtifactError(
            f"{source}: {len(bare)} of {total} rows have no label ({', '.join(bare[:MOST_NAMED])}{more}); "
            "label all rows or none, or leave these out by check-data --policy skip"
        )
    label_names, known = number_labels(everything, names, source)
    parts: dict[str, NDArray[np.int64] | None] = {}
    first = 0
    for name, each in labels.items():
        numbers = np.full(len(each), -1, dtype=np.int64)
        there = np.array([label is not None for label in each])
        numbers[there] = known[first : first + int(there.sum())]
        first += int(there.sum())
        parts[name] = numbers
    return label_names, parts


def open_raw(data: str, wanted: Wanted) -> RawData:
    """Return the rows that DATA names, their files not yet looked at; raises what `open_data` does."""
    if is_remote(data):  # before any path: a URL may be longer than those may be
        return open_remote(data, wanted)
    path = Path(data)
    shards = shards_in(path) if path.is_dir() else []
    if path.is_dir() and not shards:
        return open_folder(path, wanted)
    is_table = path.is_file() and path.suffix.lower() in TABLE_SUFFIXES
    is_arrays = path.is_file() and path.suffix.lower() in ARRAY_SUFFIXES
    whole = (path.is_file() and not is_table) or data == "digits"
    for flag, value, wrong in (
        ("--split", wanted.split, whole and not is_arrays),
        ("--labels-file", wanted.labels_file, whole or is_table or shards),
        ("--file-column", wanted.file_column, whole or is_table or shards),
    ):
        if value is not None and wrong:
            raise UsageError(f"{flag} {value} does not apply to {data}; leave it out")
    if shards:
        return open_archives(shards, wanted, open_folder=open_folder)
    if path.is_file():
        suffix = path.suffix.lower()
        if is_arrays:
            return open_array_file(path, wanted)
        if suffix in ARCHIVE_SUFFIXES:
            return open_archives([path], wanted, open_folder=open_folder)
        if suffix not in TABLE_SUFFIXES:
            known = ", ".join((*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES, *ARRAY_SUFFIXES))
            raise ArtifactError(f"{data} must be a folder, or a file of {known}")
        return open_table_files([path], wanted)
    if data == "digits":
        return _open_digits(wanted)
    if is_data_id(data):
        return open_hub(data, wanted, open_folder)
    raise ArtifactError(f"{data} does not exist; give a folder, a parquet file, a Hub id owner/name, or digits")


def _open_digits(wanted: Wanted) -> RawData:
    """Return scikit-learn's handwritten digits: 1,797 grey pictures of 8x8, values 0 to 16 spread over 0 to 255."""
    if wanted.kind() not in (None, "pictures"):
        raise UsageError(f"the digits are pictures, not {wanted.kind()}; leave the flag out")
    try:
        from sklearn.datasets import load_digits
    except Exception as error:  # absent, or there and broken
        absent = EnvironmentFault('the digits need scikit-learn; run `pip install "vq-prior[quickstart]"`')
        raise broken(error) or absent from error
    bunch = load_digits()
    pixels = np.floor(bunch.images * (255 / 16) + 0.5).astype(np.uint8)
    split = Split(ArrayRows(pixels, "digits"), [int(label) for label in bunch.target])
    return RawData(split, None, MODALITIES["pictures"], "as all know", DIGIT_NAMES)
