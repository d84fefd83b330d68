"""Columns of lists of files: each file of a list is a row."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.classes import Label
from stage1_vqvae.data.rows import Split
from vq_prior.core.modality import Encoded


class Lists(Protocol):
    """Rows of which each is a list of files."""

    def element(self, row: int, place: int) -> Encoded:
        """Return a file of the list of a row."""
        ...

    def name(self, row: int) -> str:
        """Return what to call a row."""
        ...


class ListRows:
    """The files of lists, those of a list beside each other.

    Attributes:
        lists: Of each file, which list it is of, [n] int64; lists without files are not counted.
        num_lists: Lists with files.
    """

    def __init__(self, rows: Lists, counts: NDArray[np.int64]) -> None:
        """Take rows, and how many files the list of each holds."""
        self._rows = rows
        self.row_of = np.repeat(np.arange(len(counts)), counts)
        self.lists = np.repeat(np.arange(np.count_nonzero(counts)), counts[counts > 0])
        self.num_lists = int(np.count_nonzero(counts))
        self._first = np.cumsum(counts) - counts

    def __len__(self) -> int:
        return len(self.row_of)

    def encoded(self, row: int) -> Encoded:
        """Return the bytes of a file; raises `ArtifactError` if it cannot be read."""
        of = int(self.row_of[row])
        return self._rows.element(of, row - int(self._first[of]))

    def name(self, row: int) -> str:
        """Return what to call the row of the list, and the place in the list."""
        return f"{self.file_name(row)} image {row - int(self._first[self.row_of[row]])}"

    def file_name(self, row: int) -> str:
        """Return what to call the row of the list."""
        return self._rows.name(int(self.row_of[row]))


def split_of_lists(
    rows: Lists, arrays: Iterable[Any], labels: list[Label] | None, split: str
) -> tuple[Split, list[str]]:
    """Return the files of lists as rows, each with the label of its list, and what is to be said.

    Args:
        rows: The lists.
        arrays: The same as arrow arrays, of which the lengths are taken.
        labels: Of each list.
        split: Which one this is.
    """
    import pyarrow.compute as pc

    lengths = [pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False) for array in arrays]
    counts = np.concatenate([np.empty(0, np.int64), *lengths]).astype(np.int64)
    single = ListRows(rows, counts)
    of = "" if split == "train" else f" of the {split} split"
    said = f"{single.num_lists} lists{of} hold {len(single)} images, each a row; those of a list are held out together"
    if empty := len(counts) - single.num_lists:
        said += f"; {empty} row(s) without images are none"
    return Split(single, None if labels is None else [labels[row] for row in single.row_of]), [said]


def list_of(kind: Any, is_element: Callable[[Any], bool]) -> bool:
    """Return whether an arrow type is that of lists of some elements."""
    import pyarrow as pa

    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and is_element(kind.value_type)
