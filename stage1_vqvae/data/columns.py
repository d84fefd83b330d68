"""Columns of numbers that stand beside the rows of DATA: in its tables, or in its metadata file."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.listing import METADATA_NAMES
from stage1_vqvae.data.metadata import read_rows
from stage1_vqvae.data.rows import DataRows
from stage1_vqvae.data.sources import Data
from stage1_vqvae.data.tables import TABLE_SUFFIXES, table_values
from vq_prior.core.disk.code_store import Column
from vq_prior.core.errors import ArtifactError, UsageError

RESERVED = ("label", "source_index", "view")


def with_columns(data: Data, names: Sequence[str]) -> Data:
    """Return the data with named columns of numbers beside the rows of both splits, [n, *shape] float32.

    Raises:
        UsageError: If a name is one of a code store's own, or named twice.
        ArtifactError: If there is no such column, or a row of it holds no numbers, naming column and row.
    """
    for number, name in enumerate(names):
        if name in RESERVED or name.startswith("codes.") or name in names[:number]:
            why = "is named twice" if name in names[:number] else "is a column that every code store has"
            raise UsageError(f"--condition {name} {why}; name columns of the data, each once")
    if not names:
        return data
    splits = {"train": data.train, "validation": data.validation}
    columns = {split: {name: _numbers(rows, name, data.source) for name in names} for split, rows in splits.items()}
    for name in names:
        shapes = {columns[split][name].shape[1:] for split in columns}
        if len(shapes) > 1:
            raise ArtifactError(f"column {name} has other numbers of values in the two splits: {sorted(shapes)}")
    train, validation = (replace(rows, columns=columns[split]) for split, rows in splits.items())
    return replace(data, train=train, validation=validation)


def condition_columns(data: Data) -> list[Column]:
    """Return the columns that `with_columns` put beside the rows, as a code store names them."""
    return [Column(name, "float32", values.shape[1:]) for name, values in data.train.columns.items()]


def _numbers(rows: DataRows, name: str, source: str) -> NDArray[np.float32]:
    """Return the values of a column for each row of a split, found by what the row is called."""
    arrays = []
    for row in range(len(rows)):
        called = rows.file_name(row)
        file, _, place = called.rpartition(" row ")
        table = file if Path(file).suffix.lower() in TABLE_SUFFIXES else None
        value = _table(table, name)[int(place)] if table else _listed(source, name).get(str(Path(called).resolve()))
        arrays.append(_number(value, name, called))
    sizes = {each.shape for each in arrays}
    if len(sizes) > 1:
        raise ArtifactError(f"column {name} must hold as many numbers in every row, got {sorted(sizes)[:4]}")
    return np.stack(arrays)


def _number(value: Any, name: str, called: str) -> NDArray[np.float32]:
    try:
        if value is None or isinstance(value, bool) or (isinstance(value, list) and None in value):
            raise ValueError
        with np.errstate(over="ignore"):
            numbers = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"column {name} holds no number for {called}; fill it in or leave the row out") from error
    if not np.isfinite(numbers).all():
        raise ArtifactError(f"column {name} is not finite for {called}; mend the row or leave it out")
    return numbers


@cache
def _table(file: str, name: str) -> list[Any]:
    return table_values(Path(file), name)


@cache
def _listed(source: str, name: str) -> dict[str, Any]:
    """Return the values of a column by the path of each file, from the metadata files of a folder."""
    values: dict[str, Any] = {}
    for path in sorted(path for each in METADATA_NAMES for path in Path(source).rglob(each)):
        for line in read_rows(path):
            if name in line:
                values[str((path.parent / str(line.get("file_name"))).resolve())] = line[name]
    if not values:
        raise ArtifactError(f"{source} has no column {name}; --condition names columns of tables or metadata files")
    return values
