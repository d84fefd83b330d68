"""The command `vq-prior check-data`: what is bad is said, a list is written, and a sheet shows what is good."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stage1_vqvae.data.checking import SUFFIX, CheckedData, CheckedSplit, check_splits
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.rows import RawData
from stage1_vqvae.data.sources import (
    classes_in_words,
    classes_of,
    columns_of,
    labelled_alike,
    open_data_of,
    open_raw,
    rows_called,
    said_of_data,
    wanted_of,
)
from stage1_vqvae.modalities import in_form, own_settings
from stage1_vqvae.modalities.sheets import sheet_bytes
from stage1_vqvae.settings import CheckData
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.sheet_beside import is_sheet
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.spec import by

MOST_SHOWN, COLUMNS = 64, 8


def check_data(settings: CheckData) -> Path:
    """Look at every row of DATA, say which are bad, and write the list OUT that trainings can use as DATA.

    Raises:
        ArtifactError: If a row is bad and the policy is "error": nothing is written then.
        UsageError: If OUT cannot be a list.
    """
    if settings.out.suffix != SUFFIX or settings.out.is_dir():
        raise UsageError(f"--out must be a file named *{SUFFIX}, got {settings.out}")
    sheet, folder = settings.sheet, Path(settings.data)
    if sheet is not None and os.path.isdir(folder) and sheet.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"--sheet {sheet} lies in the data, and would be taken for an image of it; choose another place"
        )
    if sheet is not None and (sheet.suffix.lower() != ".png" or (sheet.exists() and not is_sheet(sheet))):
        raise UsageError(f"--sheet must be a PNG file that is not there, or a sheet of vq-prior, got {sheet}")
    wanted = wanted_of(settings.modality, settings.image_column, columns_of(settings), **said_of_data(settings))
    raw = open_raw(settings.data, wanted)
    for note in raw.notes:
        print(note)
    checked = check_splits(raw, settings.num_workers, wanted.frames)
    bad = [row for split in checked.values() for row in split.bad]
    total, called = sum(len(split.sha256) for split in checked.values()), rows_called(raw.modality)
    for row in bad:
        print(f"bad: {row.reason}")
    for line in _classes(settings.data, raw, checked):
        print(line)
    if bad and settings.policy == "error":
        raise ArtifactError(
            f"{len(bad)} of {total} {called} are bad ({bad[0].name} first); "
            "mend them, or leave them out by --policy skip"
        )
    CheckedData.of(settings.data, wanted, raw.modality, checked).write(settings.out)
    print(f"{total - len(bad)} of {total} {called} are good; wrote {settings.out}; next: --data {settings.out}")
    if settings.sheet is not None:
        _write_sheet(settings, settings.sheet)
    return settings.out


def _classes(source: str, raw: RawData, checked: dict[str, CheckedSplit]) -> list[str]:
    """Return what is to be said of the classes of the good rows."""
    notes: list[str] = []
    splits = {"train": raw.train} | ({"validation": raw.validation} if raw.validation else {})
    splits = labelled_alike(splits, rows_called(raw.modality), notes)
    good = {name: checked[name].good_rows() for name in splits}
    names, classes = classes_of(splits, good, raw.label_names, source)
    if (train := classes["train"]) is not None:
        notes.insert(0, classes_in_words(names, train[good["train"]]))
    return notes


def _write_sheet(settings: CheckData, path: Path) -> None:
    """Write a picture of some rows of the checked data as a network will see them."""
    data = open_data_of(replace(settings, data=str(settings.out)), say=lambda _: None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own, values = own_settings(data.modality, settings), data.modality.values
    transform = values.transform(own, data.facts(), channels=None, device_type=device)
    for line in data.told_of(transform):
        print(line)
    count = min(MOST_SHOWN, len(data.train))
    some = data.train.subset(np.arange(count, dtype=np.int64) * len(data.train) // count)
    modality = in_form(data.modality, transform)
    shown = load_rows(some, modality, transform, num_workers=settings.num_workers).batch(range(count))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sheet_bytes(modality.show.sheet(shown, columns=COLUMNS)))
    size = by(transform.shape, "x")
    print(f"wrote {count} {rows_called(data.modality)} as a network will see them, {size}, to {path}")
