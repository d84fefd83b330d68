"""DATA: what a user may name, of which kind it is, and the rows it holds.

An existing path wins (a folder, a parquet, arrow or numpy file), then the word `digits`,
then a Hub id `owner/name[@revision]`; anything else is a missing path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.arrays import ARRAY_SUFFIXES, open_array_file
from stage1_vqvae.data.checking import SUFFIX, CheckedData, check_rows, read_checked, require_unchanged
from stage1_vqvae.data.folders import open_folder
from stage1_vqvae.data.rows import ArrayRows, DataRows, RawData, Split, content_hash, inspect_rows, number_labels
from stage1_vqvae.data.splits import MOST_NAMED
from stage1_vqvae.data.tables import TABLE_SUFFIXES, open_hub, open_table_files
from stage1_vqvae.modalities import MODALITIES, Wanted, installed, named, told_of_form
from stage1_vqvae.settings import CheckData
from vq_prior.core.disk.code_store import held_out_rows
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError
from vq_prior.core.hub.client import HUB_ID
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
    num_workers: int | None = None,
) -> Data:
    """Return the rows that `data` names, every header checked.

    Args:
        data: Folder, parquet, arrow or numpy file, `digits`, or Hub id.
        modality: What its rows are, or the name of that; None finds it out, see `stage1_vqvae.modalities`.
        image_column: Column of the images in tables; None finds it by type.
        columns: The same for any kind, by its name.
        label_column: Column of the labels in tables and metadata files; None takes `label` if there is one.
        num_workers: Threads that read; None is one a core.

    Raises:
        ArtifactError: If it is missing, empty, or holds something that is none of its kind.
        UsageError: If a named column does not exist, or the rows may be of several kinds.
        EnvironmentFault: If scikit-learn or the network is missing where it is needed.
    """
    return _opened(data, _wanted(modality, image_column, columns, label_column), num_workers)


def _opened(data: str, wanted: Wanted, num_workers: int | None) -> Data:
    checked = read_checked(Path(data)) if data.endswith(SUFFIX) and Path(data).is_file() else None
    if checked is not None:
        wanted = _as_checked(checked, wanted)
    raw = _open_raw(data if checked is None else checked.data, wanted)
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
        raise ArtifactError(missing_told(raw.missing))
    splits = _labelled_alike(splits, called, notes)
    label_names, numbers = _labels(splits, good, raw.label_names, data)
    whole: dict[str, DataRows] = {}
    contents = []
    for name, split in splits.items():
        rows, labels = good[name], numbers[name]
        digests, headers = inspect_rows(split.rows, raw.modality, num_workers, rows)
        if checked is not None:
            require_unchanged(checked.splits[name], digests, split.rows, Path(data))
        whole[name] = DataRows(split.rows, rows, None if labels is None else labels[rows], headers)
        contents.append((name, digests, whole[name].labels))
    data_id = content_hash(contents, label_names)
    train = whole["train"]
    if "validation" in whole:
        validation = whole["validation"]
        kind = "its own validation split"
    else:
        # A row is held out or not whatever others are left out.
        held_out = np.isin(train.source_index, held_out_rows(len(raw.train.rows)))
        if not held_out.any() or held_out.all():
            raise ArtifactError(f"{data} keeps too few good {called} to hold some out")
        validation, train = train.subset(np.flatnonzero(held_out)), train.subset(np.flatnonzero(~held_out))
        kind = "rows held out at a fixed stride"
    classes = f"{len(label_names)} classes" if label_names else "no labels"
    counts = f"{len(train)} {called} to train on, {len(validation)} to validate ({kind}), {classes}"
    notes.insert(1, f"data {data}: {counts}")
    if (labels := whole["train"].labels) is not None:
        notes.insert(2, classes_told(label_names, labels))
    return Data(data, data_id, raw.modality, train, validation, label_names, tuple(notes))


def classes_told(names: tuple[str, ...], labels: NDArray[np.int64]) -> str:
    """Return the classes and how many rows each has, the first ten."""
    counts = np.bincount(labels, minlength=len(names))
    first = ", ".join(f"{name} ({count})" for name, count in zip(names[:MOST_NAMED], counts, strict=False))
    return f"{len(names)} class{'es' if len(names) > 1 else ''}: {first}{', ...' if len(names) > MOST_NAMED else ''}"


def missing_told(missing: Mapping[str, str]) -> str:
    """Return what is said of rows that are no rows: the cause of the first, and the names of others."""
    names = list(missing)
    others = f", as are {len(names) - 1} more ({', '.join(names[1:MOST_NAMED])})" if len(names) > 1 else ""
    return f"{names[0]} {missing[names[0]]}{others}; mend the list, or leave them out by check-data --policy skip"


def rows_called(modality: Modality) -> str:
    """Return what rows of a kind are called where people read of them: images, or rows."""
    return "images" if modality.show.output == "images" else "rows"


def _wanted(
    modality: str | Modality | None,
    image_column: str | None,
    columns: Mapping[str, str] | None,
    label_column: str | None,
) -> Wanted:
    name = modality.name if isinstance(modality, Modality) else modality
    if name is not None:
        named(name, "DATA")
    all_columns = dict(columns or {}) | ({} if image_column is None else {"pictures": image_column})
    wanted = Wanted(name, all_columns, label_column)
    wanted.kind()
    return wanted


def _as_checked(checked: CheckedData, wanted: Wanted) -> Wanted:
    """Return what a list of `check-data` was made with, and what it leaves open as it is wanted now."""
    columns = checked.columns or wanted.columns
    return Wanted(checked.modality or wanted.modality, columns, checked.label_column or wanted.label_column)


def _good_rows(checked: CheckedData, splits: dict[str, Split], data: str) -> dict[str, NDArray[np.int64]]:
    """Return the good rows of each split of a checked source; raises `ArtifactError` if it has other rows by now."""
    counts = {name: len(split.rows) for name, split in splits.items()}
    listed = {name: len(split.sha256) for name, split in checked.splits.items()}
    if counts != listed:
        now, then = (", ".join(f"{name} {count}" for name, count in each.items()) for each in (counts, listed))
        raise ArtifactError(f"{checked.data} has other rows than {data} lists ({then} -> {now}); run check-data again")
    return {name: split.good_rows() for name, split in checked.splits.items()}


def check_data(settings: CheckData) -> Path:
    """Look at every row of DATA, say which are bad, and write the list OUT that trainings can use as DATA.

    Raises:
        ArtifactError: If a row is bad and the policy is "error": nothing is written then.
        UsageError: If OUT cannot be a list.
    """
    if settings.out.suffix != SUFFIX or settings.out.is_dir():
        raise UsageError(f"--out must be a file named *{SUFFIX}, got {settings.out}")
    wanted = _wanted(settings.modality, settings.image_column, columns_of(settings), settings.label_column)
    raw = _open_raw(settings.data, wanted)
    for note in raw.notes:
        print(note)
    splits = {"train": raw.train} | ({"validation": raw.validation} if raw.validation else {})
    found = {name: check_rows(split.rows, raw.modality, settings.num_workers) for name, split in splits.items()}
    bad = [row for split in found.values() for row in split.bad]
    total, called = sum(len(split.sha256) for split in found.values()), rows_called(raw.modality)
    for row in bad:
        print(f"bad: {row.reason}")
    if bad and settings.policy == "error":
        raise ArtifactError(
            f"{len(bad)} of {total} {called} are bad ({bad[0].name} first); "
            "mend them, or leave them out by --policy skip"
        )
    CheckedData.of(settings.data, wanted, raw.modality, found).write(settings.out)
    print(f"{total - len(bad)} of {total} {called} are good; wrote {settings.out}; next: --data {settings.out}")
    return settings.out


def columns_of(settings: Any) -> dict[str, str]:
    """Return the columns that a command's settings name, by kind, but for that of pictures."""
    options: Mapping[str, Any] = getattr(settings, "options", None) or {}
    flags = {kind.name: f"{kind.signs.column}_column" for kind in installed()}
    return {name: options[flag] for name, flag in flags.items() if options.get(flag)}


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
        label_column=settings.label_column,
        num_workers=settings.num_workers,
    )
    for note in data.notes:
        say(note)
    if form is not None:
        for note in data.told_of(form):
            say(note)
    return data


def _labelled_alike(splits: dict[str, Split], called: str, notes: list[str]) -> dict[str, Split]:
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


def _labels(
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


def _open_raw(data: str, wanted: Wanted) -> RawData:
    path = Path(data)
    if path.is_dir():
        return open_folder(path, wanted)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in ARRAY_SUFFIXES:
            return open_array_file(path, wanted)
        if suffix not in TABLE_SUFFIXES:
            raise ArtifactError(f"{data} must be a folder or a {' or '.join(TABLE_SUFFIXES)} file")
        return open_table_files([path], wanted)
    if data == "digits":
        return _open_digits(wanted)
    if HUB_ID.fullmatch(data):
        return open_hub(data, wanted)
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
