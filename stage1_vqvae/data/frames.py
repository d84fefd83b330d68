"""Every frame of a file as a row of its own: `--frames all`."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.lists import ListRows
from stage1_vqvae.data.loading import EncodedRows, in_threads
from stage1_vqvae.data.rows import DataRows
from vq_prior.core.disk.code_store import held_out_rows
from vq_prior.core.errors import UsageError
from vq_prior.core.modality import Encoded, Modality

HELD_FILES = 16  # whose frames are kept: threads read rows that stand beside each other


def all_frames(modality: Modality) -> Callable[[Encoded, str], list[Encoded]]:
    """Return what gives the frames of a file of a kind; raises `UsageError` if its files have none."""
    frames: Callable[[Encoded, str], list[Encoded]] | None = getattr(modality.files, "frames", None)
    if frames is None:
        raise UsageError(f"--frames all is for files of several pictures, and this data is {modality.name}")
    return frames


class FrameRows:
    """The frames of some rows of a source, those of a file beside each other.

    Attributes:
        source: The rows that are files.
        files: Of each frame, the row of its file in the source, [n] int64.
    """

    def __init__(
        self, rows: EncodedRows, chosen: NDArray[np.int64], modality: Modality, num_workers: int | None
    ) -> None:
        """Take the rows of a source whose frames are wanted; each file is read once, to count its frames.

        Raises:
            UsageError: If values of this kind have no frames.
            ArtifactError: Naming the first file that is damaged.
        """
        frames = all_frames(modality)
        self.source = rows
        self._frames = lru_cache(HELD_FILES)(lambda file: frames(rows.encoded(file), rows.name(file)))
        counts = list(in_threads(lambda file: len(self._frames(file)), map(int, chosen), num_workers))
        self.files = np.repeat(chosen, counts)
        self._numbers = np.concatenate([np.arange(count) for count in counts])
        self._alone = np.repeat(np.array(counts) == 1, counts)

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, row: int) -> Encoded:
        """Return the frame's array, or the bytes of a file of one frame."""
        return self._frames(int(self.files[row]))[self._numbers[row]]

    def name(self, row: int) -> str:
        """Return what to call the file, and the frame if there are several."""
        file = self.source.name(int(self.files[row]))
        return file + ("" if self._alone[row] else f" frame {self._numbers[row]}")

    def file_name(self, row: int) -> str:
        """Return what to call the file of a frame; of one in a list, the row of that."""
        return str(getattr(self.source, "file_name", self.source.name)(int(self.files[row])))


def rows_of(
    source: EncodedRows, files: NDArray[np.int64], modality: Modality, frames: str | None, num_workers: int | None
) -> tuple[EncodedRows, NDArray[np.int64], NDArray[np.int64]]:
    """Return what holds the rows of some files of a source, which of its rows these are, and which file each is of."""
    if frames is None:
        return source, files, files
    rows = FrameRows(source, files, modality, num_workers)
    return rows, np.arange(len(rows)), rows.files


def files_of(rows: DataRows) -> NDArray[np.int64]:
    """Return of each row, in the source, which file it is of, or which list of files: what is held out together."""
    frames = rows.rows if isinstance(rows.rows, FrameRows) else None
    source, files = (
        (rows.rows, rows.source_index) if frames is None else (frames.source, frames.files[rows.source_index])
    )
    return source.lists[files] if isinstance(source, ListRows) else files


def num_files(rows: EncodedRows) -> int:
    """Return how many files a source holds, or lists of files."""
    return rows.num_lists if isinstance(rows, ListRows) else len(rows)


def held_out_of(rows: EncodedRows) -> NDArray[np.int64]:
    """Return the rows of a source that are held out if no split of its own is, ascending."""
    held_out = held_out_rows(num_files(rows))
    return np.flatnonzero(np.isin(rows.lists, held_out)) if isinstance(rows, ListRows) else held_out
