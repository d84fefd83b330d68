"""Arrays of numpy as rows: the one array of a `.npy` or `.npz` file, its first axis the rows."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.classes import Label, read_labels
from stage1_vqvae.data.rows import ArrayRows, RawData, Split
from stage1_vqvae.modalities import Wanted, chosen, kinds_of_array, named
from vq_prior.core.disk.pointers import require_no_pointer
from vq_prior.core.errors import ArtifactError, UsageError

ARRAY_SUFFIXES = (".npy", ".npz")


def open_array_file(path: Path, wanted: Wanted) -> RawData:
    """Return the rows of a numpy file; they are read when needed from a `.npy`, at once from a `.npz`.

    In a `.npz`, an array of integers of the name that `--label-column` gives, or `label`, holds the labels.

    Raises:
        ArtifactError: If it is damaged, holds objects or not one array of rows, or is of a kind that is not read.
        UsageError: If the labels are not there, or the rows may be of several kinds.
    """
    arrays = _read(path)
    label = wanted.label_column or ("label" if "label" in arrays else None)
    if label is not None and label not in arrays:
        raise UsageError(f"--label-column {label} is not in {path}, which has {', '.join(arrays)}")
    labels = None if label is None else arrays.pop(label)
    if len(arrays) != 1:
        raise ArtifactError(f"{path} must hold one array of rows, got {', '.join(arrays) or 'none'}")
    (values,) = arrays.values()
    if values.ndim < 2 or not len(values):
        raise ArtifactError(f"{path} must hold an array [N, ...] of at least one row, got {list(values.shape)}")
    if labels is not None and labels.shape[:1] != values.shape[:1]:
        raise ArtifactError(f"{path}: {label} must be {len(values)} labels, got {labels.dtype} {list(labels.shape)}")
    told = f"{values.dtype} {list(values.shape)}"
    if wanted.modality is not None:
        modality, why = named(wanted.modality, str(path)), "by --modality"
    else:
        modality, why = chosen(dict.fromkeys(kinds_of_array(values.dtype.name, values.shape), told), str(path))
    found: list[Label] | None = None
    notes: list[str] = []
    if labels is not None:
        assert label is not None
        found, notes = read_labels(labels.tolist(), label, str(path), asked=wanted.label_column is not None)
    return RawData(Split(ArrayRows(values, str(path)), found), None, modality, why, None, tuple(notes))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    require_no_pointer(path)
    try:
        if path.suffix.lower() == ".npy":
            return {"values": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is not a readable numpy file ({str(error)[:80]})") from error
