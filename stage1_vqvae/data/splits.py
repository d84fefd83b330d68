"""Splits by name: which folder, table or split of the Hub is for training, which is held out. One table for all."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vq_prior.core.errors import ArtifactError, UsageError

SPLIT_WORDS = {
    "train": ("train", "training", "trainval"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
# Words that say nothing of what is in a folder: train_images is as good a name as train.
PLAIN = "image images img imgs picture pictures pic pics photo photos data dataset set split file files folder part of"
PLAIN_WORDS = frozenset(PLAIN.split()) | {"png", "jpg", "jpeg", "sample", "samples"}
BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
COLUMNS = ("split", "splits", "subset", "set", "usage", "partition")  # in which tables name the split of each row
MOST_NAMED = 10


def split_in(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that a name speaks of, and what else it says; None if it speaks of none, or of several.

    >>> split_in("seg_train"), split_in("test_images"), split_in("val2017"), split_in("Testing"), split_in("trainset")
    (('train', ('seg',)), ('test', ()), ('validation', ()), ('test', ()), ('train', ()))
    >>> split_in("train_station"), split_in("strain"), split_in("train_test")
    (('train', ('station',)), None, None)
    """
    splits = {split for word in _words(name) if (split := _split_of_word(word)) is not None}
    if len(splits) != 1:
        return None
    rest = without_split(name)
    return splits.pop(), tuple(word for word in rest if word not in PLAIN_WORDS and not word.isdigit())


def without_split(name: str) -> tuple[str, ...]:
    """Return the words of a name but those that speak of a split.

    >>> without_split("train_images"), without_split("y_train"), without_split("xTest")
    (('images',), ('y',), ('x',))
    """
    return tuple(word for word in _words(name) if _split_of_word(word) is None)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", BORDER.sub(" ", name).lower()) if word]


def _split_of_word(word: str) -> str | None:
    joined = (word.removesuffix(plain) for plain in PLAIN_WORDS if word.endswith(plain))
    return next((SPLIT_OF[each] for each in (word, *joined) if each in SPLIT_OF), None)


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Return the split that each name stands for beside the others; none at all without a split to train on.

    A name that says more than the split counts beside others that say the same: seg_train beside seg_test.

    >>> splits_of(["seg_train", "seg_test", "seg_pred"]), splits_of(["train_station", "test_tube"])
    ({'seg_train': 'train', 'seg_test': 'test'}, {})
    """
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        if (found := split_in(name)) is not None:
            groups.setdefault(found[1], {})[name] = found[0]
    chosen: dict[str, str] = {}
    for rest, group in groups.items():
        if "train" in group.values() and (not rest or len(set(group.values())) > 1):
            chosen |= group
    return chosen


def split_column_notes(columns: Iterable[str], values_of: Callable[[str], Iterable[object]]) -> list[str]:
    """Return what to say of a column that names splits, which is not used: rows to test on would be trained on."""
    notes = []
    for column in columns:
        if column.lower() in COLUMNS:
            names = sorted({str(value) for value in values_of(column) if value is not None})
            kinds = {split[0] if (split := split_in(name)) is not None else "" for name in names}
            if len(kinds) > 1 and "" not in kinds:
                listed = ", ".join(names[:MOST_NAMED])
                notes.append(
                    f"column {column} names splits ({listed}) and is not used: every row is taken, whatever its split"
                )
    return notes


def pairs_in_words(taken: Mapping[str, str]) -> str:
    """Return what each folder or table was taken for, in the order of the splits, the first ten."""
    order = {split: number for number, split in enumerate(SPLIT_WORDS)}
    pairs = [f"{name} -> {split}" for name, split in sorted(taken.items(), key=lambda each: order.get(each[1], 9))]
    return ", ".join(pairs[:MOST_NAMED]) + (f", ... ({len(pairs)} in all)" if len(pairs) > MOST_NAMED else "")


@dataclass(frozen=True)
class Part:
    """A folder that was taken for a split.

    Attributes:
        folder: Its path below DATA.
        split: What it was taken for.
        files: What lies in it, by path below DATA.
        lead: How many leading parts of these paths say nothing of the class.
    """

    folder: str
    split: str
    files: list[str] = field(repr=False)
    lead: int


def split_folders(files: Sequence[str], root: str) -> list[Part]:
    """Return the folders below DATA that are splits, wherever they lie above its classes; none without splits.

    They may lie one in another (seg_train/seg_train), below folders that hold all (archive/train), or in each class
    (cat/train, dog/train).

    Args:
        files: Of one kind, by their path below DATA.
        root: What DATA is called in a message.

    Raises:
        ArtifactError: If there are several folders of one split, or held-out ones alone.
    """
    parts = list(_parts(files, 0, root))
    for part in [part for part in parts if part.split == "train"]:
        inner = list(_chosen(part.files, part.lead, root))
        if {"train"} < {each.split for each in inner}:
            parts = [each for each in parts if each is not part] + inner
            _require_one_each(parts, root)
    return [_inmost(part) for part in parts]


def only_split(parts: Sequence[Part], wanted: str, root: str) -> list[Part]:
    """Return the parts with those that were asked for, by their split or their folder, as the ones to train on.

    Raises:
        UsageError: If there is none.
    """
    chosen = [part for part in parts if wanted in (part.split, part.folder, part.folder.rpartition("/")[2])]
    if not chosen:
        known = ", ".join(dict.fromkeys(part.split for part in parts)) or "no folders of splits"
        raise UsageError(f"--split {wanted} is not in {root}, which has {known}")
    others = [replace(part, split="left out") for part in parts if part not in chosen]
    return [*(replace(part, split="train") for part in chosen), *others]


def untaken(files: Sequence[str]) -> list[str]:
    """Return folders that are named like splits below only some of the folders: they are reported, not used."""
    below: dict[str, set[str]] = {}
    for file in files:
        parts = file.split("/")[:-1]
        for depth in range(1, len(parts)):
            below.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    inside = {folder: splits_of(names) for folder, names in below.items()}
    return sorted(
        f"{folder}/{name}" for folder, splits in inside.items() if len(set(splits.values())) > 1 for name in splits
    )


def _parts(files: Sequence[str], depth: int, root: str) -> Iterator[Part]:
    if chosen := list(_chosen(files, depth, root)):
        yield from chosen
        return
    children, _ = _children(files, depth)
    if len(children) <= 1:
        for members in children.values():
            yield from _parts(members, depth + 1, root)
        return
    inner = {name: list(_chosen(members, depth + 1, root)) for name, members in children.items()}
    if all({"train"} < {part.split for part in parts} for parts in inner.values()):
        for part in (part for parts in inner.values() for part in parts):
            yield Part(part.folder, part.split, part.files, depth)


def _chosen(files: Sequence[str], depth: int, root: str) -> Iterator[Part]:
    """Yield the folders at a depth that are splits by their names."""
    children, _ = _children(files, depth)
    splits = splits_of(children)
    flat = all(file.count("/") == depth + 1 for members in children.values() for file in members)
    if len(splits) == 1 and flat and len(children) > 2:  # bus/, car/, train/: a class of that name
        return
    only = {name: found[0] for name in children if (found := split_in(name)) is not None and not found[1]}
    if children and not splits and len(only) == len(children) and depth == 0:
        raise ArtifactError(
            f"{root} holds no training folder, only {', '.join(sorted(only))}; name one as the data, or add train/"
        )
    parts = []
    for name, split in splits.items():
        members = children[name]
        folder = "/".join(members[0].split("/")[: depth + 1])
        parts.append(Part(folder, split, members, depth + 1))
    _require_one_each(parts, root)
    yield from parts


def _require_one_each(parts: Sequence[Part], root: str) -> None:
    for split in SPLIT_WORDS:
        names = sorted(part.folder for part in parts if part.split == split)
        if len(names) > 1:
            raise ArtifactError(f"{root} has more than one {split} folder ({', '.join(names)}); keep one")


def _inmost(part: Part) -> Part:
    """Return a part without an inner folder that holds all of it and repeats its split (seg_train/seg_train/cat)."""
    children, loose = _children(part.files, part.lead)
    own = split_in(part.folder.rpartition("/")[2])
    again = [name for name in children if (found := split_in(name)) is not None and found in (own, (part.split, ()))]
    if loose or len(children) != 1 or not again:
        return part
    return _inmost(Part(part.folder, part.split, part.files, part.lead + 1))


def _children(files: Sequence[str], depth: int) -> tuple[dict[str, list[str]], int]:
    """Return the files in each folder at a depth, and how many lie beside these folders."""
    children: dict[str, list[str]] = {}
    loose = 0
    for file in files:
        parts = file.split("/", depth + 1)
        if len(parts) > depth + 1:
            children.setdefault(parts[depth], []).append(file)
        else:
            loose += 1
    return children, loose


def splits_of_tables(names: Mapping[str, str]) -> dict[str, str]:
    """Return the split of each table: what its name or its folder's begins with, or both splits of a pair say.

    >>> splits_of_tables({"mnist_train.parquet": "", "mnist_test.parquet": "", "test-00-of-1-a3f.parquet": "data"})
    {'mnist_train.parquet': 'train', 'mnist_test.parquet': 'test', 'test-00-of-1-a3f.parquet': 'test'}

    Args:
        names: Path of each, and the name of the folder that it lies in.
    """
    taken: dict[str, str] = {}
    later: dict[str, str] = {}
    for name, folder in names.items():
        stem = name.rpartition("/")[2].partition(".")[0]
        first = [re.split(r"[-_.\s]", text.lower(), maxsplit=1)[0] for text in (stem, folder)]
        split = next((SPLIT_OF[word] for word in first if word in SPLIT_OF), None)
        if split is not None:
            taken[name] = split
        else:
            later[name] = stem if split_in(stem) is not None else folder
    pairs = splits_of(later.values())
    return {name: taken.get(name) or pairs.get(later.get(name, ""), "train") for name in names}
