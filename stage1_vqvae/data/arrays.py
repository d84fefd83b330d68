"""Arrays as rows: of a `.npy`, a `.npz` or an HDF5 file, the first axis the rows.

A file of several arrays tells by their names what they are: of which split, and whether they hold values or labels:
`x_train` and `y_train`, `train_images` and `train_labels`, `images` and `label`, or `train/images` in a group.

Letters: C classes, N rows.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.array_files import Array, arrays_of
from stage1_vqvae.data.classes import Label, no_label_column, read_labels
from stage1_vqvae.data.rows import RawData, Split
from stage1_vqvae.data.splits import (
    MOST_NAMED,
    PLAIN_WORDS,
    SPLIT_OF,
    SPLIT_WORDS,
    pairs_in_words,
    split_in,
    without_split,
)
from stage1_vqvae.modalities import MODALITIES, Wanted, chosen, column_flag, kinds_of_array, named
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Modality

LABELS = frozenset({"label", "labels", "y", "target", "targets", "class", "classes", "ans"})
Arrays = Mapping[str, Array]


def open_array_file(path: Path, wanted: Wanted) -> RawData:
    """Return the rows of a file of arrays; they are read when needed, but those of a `.npz` at once.

    The array that `--label-column` names, or one of a name such as label, y or targets, holds the labels.

    Raises:
        ArtifactError: If it is damaged, holds no one array of rows, or is of a kind that is not read.
        UsageError: If a named array is not there, several may be meant, or the rows may be of several kinds.
        EnvironmentFault: If h5py is needed and missing.
    """
    arrays = arrays_of(path)
    notes: list[str] = []
    groups, others = _splits(arrays, wanted, path, notes)
    splits, kinds, unread = {}, {}, dict.fromkeys(others)
    for split, members in groups.items():
        values = _values(members, others, wanted, path)
        where = str(path) if len(groups) == 1 and len(arrays) < 3 else f"{path}: {values}"
        array = arrays[values]
        kinds[split] = _kind(array, wanted, where)
        label = _label(members, others, array.shape[0], wanted, path, split, values)
        labels: list[Label] | None = None
        if label is not None:
            labels, said = _labels(arrays[label], label, array.shape[0], path, wanted)
            notes += said
        elif split == "train":
            rest = [name for name, each in members.items() if name != values and each.shape[:1] == array.shape[:1]]
            notes += no_label_column([name for name in rest if len(arrays[name].shape) == 1])
        splits[split] = Split(array.rows(where), labels)
        unread |= dict.fromkeys(members)
        unread = {name: None for name in unread if name not in (values, label)}
    if unread:
        notes.append(f"did not read the array(s) {_some(unread)}")
    modality, why = kinds["train"]
    return RawData(splits["train"], splits.get("validation"), modality, why, None, tuple(notes))


def _some(names: Iterable[str]) -> str:
    several = list(names)
    return ", ".join(several[:MOST_NAMED]) + (f", ... ({len(several)} in all)" if len(several) > MOST_NAMED else "")


def _shapes(arrays: Arrays) -> str:
    return _some(f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items()) or "none"


def _is_signed(name: str) -> bool:
    """Return whether a name says that an array holds labels: y_train, train_labels; not list_classes."""
    words = set(without_split(name)) - PLAIN_WORDS
    return bool(words) and words <= LABELS


def _may_be_values(name: str, array: Array) -> bool:
    """Return whether the first axis of an array may be that of values."""
    return array.is_numbers and len(array.shape) > (2 if _is_signed(name) else 1)


def _splits(arrays: Arrays, wanted: Wanted, path: Path, notes: list[str]) -> tuple[dict[str, Arrays], Arrays]:
    """Return the arrays to train on and those to validate, by split, and those that are of no split.

    Raises:
        UsageError: If there is none of the split that was asked for.
        ArtifactError: If there are no rows, or none to train on.
    """
    split_of = {name: found[0] if (found := split_in(name)) else "" for name in arrays}
    with_rows = {split_of[name] for name, array in arrays.items() if _may_be_values(name, array)}
    groups: dict[str, dict[str, Array]] = {}
    others: dict[str, Array] = {}
    for name, array in arrays.items():
        (groups.setdefault(split_of[name], {}) if split_of[name] in with_rows else others)[name] = array
    if not with_rows and len(arrays) != 1:
        raise ArtifactError(f"{path} must hold one array of rows [N, ...], got {_shapes(arrays)}")
    groups = {split: groups[split] for split in (*SPLIT_WORDS, "") if split in groups}
    known = [split for split in groups if split]
    unnamed = groups.pop("", {}) if "train" not in groups else {}
    others |= groups.pop("", {})
    if unnamed or not groups:
        groups, others = {"train": {**unnamed, **others}, **groups}, {}
    if known:
        notes.append(f"arrays: {pairs_in_words({name: split for split, some in groups.items() for name in some})}")
    training = "train"
    if wanted.split is not None:
        training = SPLIT_OF.get(wanted.split, wanted.split)
        if training not in groups or not known:
            has = ", ".join(groups) if known else "no arrays of splits by their names"
            raise UsageError(f"--split {wanted.split} is not in {path}, which has {has}")
    elif len(groups) == 1:
        training = next(iter(groups))
    if training not in groups:
        raise ArtifactError(f"{path} holds no arrays to train on, only {', '.join(groups)}; choose one by --split")
    taken: dict[str, Arrays] = {"train": groups.pop(training)}
    if wanted.split is None and "validation" in groups:
        taken["validation"] = groups.pop("validation")
    notes += [f"left the {split} arrays untouched ({_some(members)})" for split, members in groups.items()]
    return taken, others


def _array_named(name: str, flag: str, members: Arrays, others: Arrays, path: Path) -> str | None:
    """Return the array of a split that a flag names: by its name, or by what the name says beside the split."""
    if name in members:
        return name
    alike = [each for each in members if without_split(each) == without_split(name)]
    if len(alike) > 1:
        raise UsageError(f"{flag} {name} may be {' or '.join(alike)} of {path}; name one of them")
    return alike[0] if alike else name if name in others else None


def _values(members: Arrays, others: Arrays, wanted: Wanted, path: Path) -> str:
    """Return the array of a split that holds its values.

    Raises:
        UsageError: If the named one is not there.
        ArtifactError: If none, or more than one, may hold them.
    """
    for kind, column in wanted.columns.items():
        flag = column_flag(MODALITIES[kind])
        match = _array_named(column, flag, members, others, path)
        if match is None:
            raise UsageError(f"{flag} {column} is not in {path}, which has {_some([*members, *others])}")
        return match
    some = {name: array for name, array in members.items() if _may_be_values(name, array)} or members
    readable = {name: array for name, array in some.items() if _kinds(array)}
    some = some if len(some) == 1 else readable or some
    if len(some) != 1:
        raise ArtifactError(f"{path} must hold one array of rows, got {_shapes(some)}; choose by --image-column")
    return next(iter(some))


def _kinds(array: Array) -> list[str]:
    return [kind for kind in kinds_of_array(array.dtype.name, array.shape) if kind in MODALITIES]


def _label(
    members: Arrays, others: Arrays, rows: int, wanted: Wanted, path: Path, split: str, values: str
) -> str | None:
    """Return the array of a split that holds its labels; None without any.

    Raises:
        UsageError: If the named one is not there, or several may be meant.
    """
    if wanted.label_column is not None:
        array = _array_named(wanted.label_column, "--label-column", members, others, path)
        if array is None and split == "train":
            has = _some([*members, *others])
            raise UsageError(f"--label-column {wanted.label_column} is not in {path}, which has {has}")
        return array
    signed = [name for name in members if name != values and _is_signed(name)]
    signed = [name for name in signed if members[name].shape[:1] == (rows,)] or signed[:1]
    if "label" in signed:
        return "label"
    if len(signed) > 1:
        raise UsageError(f"{path} may hold its labels in {' or '.join(signed)}; choose by --label-column")
    return signed[0] if signed else None


def _kind(array: Array, wanted: Wanted, where: str) -> tuple[Modality, str]:
    if not array.is_numbers:
        raise ArtifactError(f"{where} must hold numbers, got {array.dtype}")
    if len(array.shape) < 2 or not array.shape[0]:
        raise ArtifactError(f"{where} must hold an array [N, ...] of at least one row, got {list(array.shape)}")
    for kind in wanted.columns:
        return named(kind, where), f"by {column_flag(MODALITIES[kind])}"
    if wanted.modality is not None:
        return named(wanted.modality, where), "by --modality"
    what = f"{array.dtype} {list(array.shape)}"
    return chosen(dict.fromkeys(kinds_of_array(array.dtype.name, array.shape), what), where)


def _labels(array: Array, name: str, rows: int, path: Path, wanted: Wanted) -> tuple[list[Label] | None, list[str]]:
    """Return the labels of the rows, from an array [N] or [N, 1], and what to say of them.

    Raises:
        ArtifactError: If they are not as many as the rows.
        UsageError: If they are columns of which one is set, or the person named the array and it holds no labels.
    """
    if not array.kind or array.shape[:1] != (rows,):
        raise ArtifactError(f"{path}: {name} must be {rows} labels, got {array.dtype} {list(array.shape)}")
    labels = array.whole()
    if labels.shape == (rows, 1):
        labels = labels[:, 0]
    if labels.ndim == 2 and array.is_numbers and _is_one_hot(labels):
        raise UsageError(
            f"{path}: {name} is {list(labels.shape)}, a column for each class (one-hot); store the number of the class "
            "of each row, its argmax(axis=1), or name another array by --label-column"
        )
    return read_labels(labels.tolist(), name, str(path), is_named=wanted.label_column is not None)


def _is_one_hot(labels: NDArray[Any]) -> bool:
    """Return whether labels [N, C] are 0 but for one 1 in each row."""
    return bool(((labels == 0) | (labels == 1)).all() and (np.count_nonzero(labels, axis=1) == 1).all())
