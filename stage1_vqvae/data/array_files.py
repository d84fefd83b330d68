"""Files of arrays, `.npy`, `.npz` and HDF5: which arrays they hold, each unread until it is wanted."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from stage1_vqvae.data.rows import ArrayRows
from vq_prior.core.disk.pointers import require_no_pointer
from vq_prior.core.errors import ArtifactError, EnvironmentFault
from vq_prior.core.modality import Encoded
from vq_prior.core.processes.packages import broken

HDF5_SUFFIXES = (".h5", ".hdf5", ".he5")
ARRAY_SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)
NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
HELD_BYTES = 256 << 20  # of an HDF5 array's blocks, each of which may hold many rows
UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Array:
    """An array of a file, unread.

    Attributes:
        shape: Its axes.
        dtype: Its type.
        kind: b, i, u or f where it holds numbers, U where texts; empty where neither.
        whole: Returns all of it.
        rows: Returns its rows; takes what to call it.
    """

    shape: tuple[int, ...]
    dtype: Any
    kind: str
    whole: Callable[[], NDArray[Any]]
    rows: Callable[[str], ArrayRows]

    @property
    def is_numbers(self) -> bool:
        """Whether it holds numbers."""
        return self.kind in tuple("biuf")


class HDF5Rows(ArrayRows):
    """The rows of an array of an HDF5 file, each read when it is needed."""

    def encoded(self, row: int) -> Encoded:
        """Return the row's numbers; raises `ArtifactError` if they cannot be read."""
        try:
            return super().encoded(row)
        except UNREADABLE as error:
            raise ArtifactError(f"{self.name(row)} cannot be read ({str(error)[:80]})") from error


def arrays_of(path: Path) -> dict[str, Array]:
    """Return the arrays of a file by name; the one of a `.npy` is called values.

    Raises:
        ArtifactError: If it is damaged, holds pickled objects alone, or HDF5 of which a part lies in other files.
        EnvironmentFault: If h5py is needed and missing.
    """
    require_no_pointer(path)
    if path.suffix.lower() in HDF5_SUFFIXES:
        return _of_hdf5(path)
    with _one_error(path, "numpy"):
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"values": _of_numpy(content.shape, content.dtype, lambda: content)}
        with content as archive:
            infos = [info for info in archive.zip.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _of_npz(path, archive.zip, info) for info in infos}


@contextmanager
def _one_error(path: Path, called: str) -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except UNREADABLE as error:
        raise ArtifactError(f"{path} is not a readable {called} file ({str(error)[:80]})") from error


def _of_numpy(shape: tuple[int, ...], dtype: np.dtype[Any], whole: Callable[[], NDArray[Any]]) -> Array:
    kind = {"S": "U"}.get(dtype.kind, dtype.kind)
    return Array(shape, dtype, kind if kind in "biufU" else "", whole, lambda name: ArrayRows(whole(), name))


def _of_npz(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """Return an array of a `.npz`, of which its header alone is read."""

    def whole() -> NDArray[Any]:
        with _one_error(path, "numpy"), np.load(path, allow_pickle=False) as opened:
            array: NDArray[Any] = opened[info.filename.removesuffix(".npy")]
            return array

    with archive.open(info) as member:
        read_header = NPY_HEADERS.get(npy.read_magic(member))
        if read_header is None:  # of arrays with named fields alone
            return _of_numpy((), np.dtype("V"), whole)
        shape, _, dtype = read_header(member)
        if not dtype.hasobject and member.tell() + prod(shape) * dtype.itemsize != info.file_size:
            raise ArtifactError(f"{path}: {info.filename} has another size than its header says")
    return _of_numpy(shape, dtype, whole)


def _of_hdf5(path: Path) -> dict[str, Array]:
    try:
        import h5py
    except Exception as error:  # absent, or there and broken
        absent = EnvironmentFault(f'{path} needs h5py; run `pip install "vq-prior[hdf5]"`')
        raise broken(error) or absent from error
    arrays: dict[str, Array] = {}
    elsewhere: list[str] = []  # told behind: what raises inside of a visit loses its words

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = _of_dataset(path, item)
            elsewhere.extend([name] if item.external or item.is_virtual else [])

    def look(name: str, link: Any) -> None:
        elsewhere.extend([name] if isinstance(link, h5py.ExternalLink) else [])

    with _one_error(path, "HDF5"):
        file = h5py.File(path, "r", locking="best-effort", rdcc_nbytes=HELD_BYTES)
        file.visititems_links(look)
        file.visititems(take)
    if elsewhere:
        raise ArtifactError(f"{path}: {elsewhere[0]} lies in another file; copy it into this one")
    return arrays


def _of_dataset(path: Path, dataset: Any) -> Array:
    import h5py

    text = dataset.dtype.kind == "S" or h5py.check_string_dtype(dataset.dtype) is not None
    kind = "U" if text else dataset.dtype.kind if dataset.dtype.kind in "biuf" else ""

    def whole() -> NDArray[Any]:
        with _one_error(path, "HDF5"):
            return np.asarray(dataset[()])

    return Array(dataset.shape or (), dataset.dtype, kind, whole, lambda name: HDF5Rows(dataset, name))
