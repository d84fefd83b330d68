"""DATA: what a user may name as images, and the rows it holds.

An existing path wins (a folder, a parquet or arrow file), then the word `digits`,
then a Hub id `owner/name[@revision]`; anything else is a missing path.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.checking import SUFFIX, CheckedData, check_pictures, read_checked, require_unchanged
from stage1_vqvae.data.folders import open_folder
from stage1_vqvae.data.rows import ArrayRows, ImageRows, RawData, Split, content_hash, inspect_rows, number_labels
from stage1_vqvae.data.tables import TABLE_SUFFIXES, open_hub, open_table_files
from stage1_vqvae.settings import CheckData, DataFacts
from vq_prior.core.disk.code_store import held_out_rows
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError
from vq_prior.core.hub.client import HUB_ID

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class ImageData:
    """Images and labels, split for training and validation.

    Attributes:
        source: As the user typed it.
        data_id: sha256 over contents, labels and label names; the same wherever the data lies.
        train: Rows to train on.
        validation: Held-out rows: the source's own validation split, else every 20th row.
        label_names: Name of each class; empty without labels.
        notes: What was found, skipped or held out, a sentence each.
    """

    source: str
    data_id: str
    train: ImageRows
    validation: ImageRows
    label_names: tuple[str, ...]
    notes: tuple[str, ...]

    def facts(self) -> DataFacts:
        """Return what default settings depend on."""
        headers = [*self.train.headers, *self.validation.headers]
        sizes = [(header.height, header.width) for header in headers]
        counts = Counter(sizes)
        commonest = max(sorted(counts), key=counts.__getitem__)
        return DataFacts(
            num_train=len(self.train),
            common_size=commonest if 2 * counts[commonest] > len(sizes) else None,
            short_side=median_low(min(size) for size in sizes),
            all_grey=all(header.grey for header in headers),
        )


def open_data(
    data: str, *, image_column: str | None = None, label_column: str | None = None, num_workers: int | None = None
) -> ImageData:
    """Return the images that `data` names, every header checked.

    Args:
        data: Folder, parquet or arrow file, `digits`, or Hub id.
        image_column: Column of the images in tables; None finds it by type.
        label_column: Column of the labels in tables and metadata files; None takes `label` if there is one.
        num_workers: Threads that read; None is one a core.

    Raises:
        ArtifactError: If it is missing, empty, or holds something that is no picture.
        UsageError: If a named column does not exist.
        EnvironmentFault: If scikit-learn or the network is missing where it is needed.
    """
    checked = read_checked(Path(data)) if data.endswith(SUFFIX) and Path(data).is_file() else None
    if checked is not None:
        image_column, label_column = checked.image_column or image_column, checked.label_column or label_column
    raw = _open_raw(data if checked is None else checked.data, image_column, label_column)
    notes = list(raw.notes)
    splits = {"train": raw.train} | ({"validation": raw.validation} if raw.validation else {})
    for name, split in splits.items():
        if not len(split.pictures):
            raise ArtifactError(f"{data} holds no images in its {name} split")
    good = {name: np.arange(len(split.pictures)) for name, split in splits.items()}
    if checked is not None:
        good = _good_rows(checked, splits, data)
        notes.append(
            f"left out {sum(len(split.bad) for split in checked.splits.values())} image(s) that {data} calls bad"
        )
    label_names, numbers = _labels(splits, raw.label_names, data)
    whole, contents = {}, []
    for name, split in splits.items():
        rows, labels = good[name], numbers[name]
        digests, headers = inspect_rows(split.pictures, num_workers, rows)
        if checked is not None:
            require_unchanged(checked.splits[name], digests, split.pictures, Path(data))
        whole[name] = ImageRows(split.pictures, rows, None if labels is None else labels[rows], headers)
        contents.append((name, digests, whole[name].labels))
    data_id = content_hash(contents, label_names)
    train = whole["train"]
    if "validation" in whole:
        validation = whole["validation"]
        kind = "its own validation split"
    else:
        # A row is held out or not whatever others are left out.
        held_out = np.isin(train.source_index, held_out_rows(len(raw.train.pictures)))
        if not held_out.any() or held_out.all():
            raise ArtifactError(f"{data} keeps too few good images to hold some out")
        validation, train = train.subset(np.flatnonzero(held_out)), train.subset(np.flatnonzero(~held_out))
        kind = "rows held out at a fixed stride"
    classes = f"{len(label_names)} classes" if label_names else "no labels"
    notes.insert(0, f"data {data}: {len(train)} images to train on, {len(validation)} to validate ({kind}), {classes}")
    return ImageData(data, data_id, train, validation, label_names, tuple(notes))


def _good_rows(checked: CheckedData, splits: dict[str, Split], data: str) -> dict[str, NDArray[np.int64]]:
    """Return the good rows of each split of a checked source; raises `ArtifactError` if it has other rows by now."""
    counts = {name: len(split.pictures) for name, split in splits.items()}
    listed = {name: len(split.sha256) for name, split in checked.splits.items()}
    if counts != listed:
        now, then = (", ".join(f"{name} {count}" for name, count in each.items()) for each in (counts, listed))
        raise ArtifactError(f"{checked.data} has other rows than {data} lists ({then} -> {now}); run check-data again")
    return {name: split.good_rows() for name, split in checked.splits.items()}


def check_data(settings: CheckData) -> Path:
    """Look at every picture of DATA, say which are bad, and write the list OUT that trainings can use as DATA.

    Raises:
        ArtifactError: If a picture is bad and the policy is "error": nothing is written then.
        UsageError: If OUT cannot be a list.
    """
    if settings.out.suffix != SUFFIX or settings.out.is_dir():
        raise UsageError(f"--out must be a file named *{SUFFIX}, got {settings.out}")
    raw = _open_raw(settings.data, settings.image_column, settings.label_column)
    for note in raw.notes:
        print(note)
    splits = {"train": raw.train} | ({"validation": raw.validation} if raw.validation else {})
    found = {name: check_pictures(split.pictures, settings.num_workers) for name, split in splits.items()}
    bad = [picture for split in found.values() for picture in split.bad]
    total = sum(len(split.sha256) for split in found.values())
    for picture in bad:
        print(f"bad: {picture.reason}")
    if bad and settings.policy == "error":
        raise ArtifactError(
            f"{len(bad)} of {total} images are bad ({bad[0].name} first); mend them, or leave them out by --policy skip"
        )
    columns = settings.image_column, settings.label_column
    CheckedData(1, settings.data, *columns, found).write(settings.out)
    print(f"{total - len(bad)} of {total} images are good; wrote {settings.out}; next: --data {settings.out}")
    return settings.out


class DataSettings(Protocol):
    """The settings of every command that reads images."""

    data: str
    image_column: str | None
    label_column: str | None
    num_workers: int | None


def open_data_of(settings: DataSettings, *, say: Callable[[str], object]) -> ImageData:
    """Return the images that a command's settings name, after saying what was found; raises what `open_data` does."""
    data = open_data(
        settings.data,
        image_column=settings.image_column,
        label_column=settings.label_column,
        num_workers=settings.num_workers,
    )
    for note in data.notes:
        say(note)
    return data


def _labels(
    splits: dict[str, Split], names: tuple[str, ...] | None, source: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64] | None]]:
    """Return class names and, for each split, the class of each row; no labels unless every split has them."""
    everything: list[str | int | None] = []
    for split in splits.values():
        if split.labels is None:
            return (), dict.fromkeys(splits)
        everything += split.labels
    if all(label is None or label == -1 for label in everything):
        return (), dict.fromkeys(splits)
    label_names, numbers = number_labels(everything, names, source)
    parts: dict[str, NDArray[np.int64] | None] = {}
    first = 0
    for name, split in splits.items():
        parts[name] = numbers[first : first + len(split.pictures)]
        first += len(split.pictures)
    return label_names, parts


def _open_raw(data: str, image_column: str | None, label_column: str | None) -> RawData:
    path = Path(data)
    if path.is_dir():
        return open_folder(path, image_column=image_column, label_column=label_column)
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise ArtifactError(f"{data} must be a folder or a {' or '.join(TABLE_SUFFIXES)} file")
        return open_table_files([path], image_column=image_column, label_column=label_column)
    if data == "digits":
        return _open_digits()
    if HUB_ID.fullmatch(data):
        return open_hub(data, image_column=image_column, label_column=label_column)
    raise ArtifactError(f"{data} does not exist; give a folder, a parquet file, a Hub id owner/name, or digits")


def _open_digits() -> RawData:
    """Return scikit-learn's handwritten digits: 1,797 grey pictures of 8x8, values 0 to 16 spread over 0 to 255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EnvironmentFault('the digits need scikit-learn; run `pip install "vq-prior[quickstart]"`') from error
    bunch = load_digits()
    pixels = np.floor(bunch.images * (255 / 16) + 0.5).astype(np.uint8)
    split = Split(ArrayRows(pixels, "digits"), [int(label) for label in bunch.target])
    return RawData(split, None, DIGIT_NAMES)
