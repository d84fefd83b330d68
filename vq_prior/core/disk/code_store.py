"""The code store: a folder of discrete codes, all that passes between the stages.

`codes.json` beside `train/` and `validation/` shards of 4,096 source rows in
safetensors. The bytes are a function of (data, codec) alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vq_prior.core.config import canonical_json, from_json, pretty_json, read_json
from vq_prior.core.disk.pointers import require_no_pointer
from vq_prior.core.errors import ArtifactError
from vq_prior.core.identity import file_sha256
from vq_prior.core.spec import CodeSpec

if TYPE_CHECKING:
    import datasets

INDEX = "codes.json"
ROWS_PER_SHARD = 4096
SPLITS = ("train", "validation")
MAX_INDEX_BYTES = 64 << 20
COLUMN_DTYPES = ("uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")


@dataclass(frozen=True)
class Source:
    """Where something came from: as the user typed it, and the hash of what it was."""

    source: str
    id: str


@dataclass(frozen=True)
class Column:
    """One column of every shard; `shape` is that of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One file: `num_rows` rows of its split from `first_row` on."""

    split: str
    file: str
    first_row: int
    num_rows: int
    sha256: str


@dataclass(frozen=True)
class CodeIndex:
    """`codes.json`; `sha256` is that of all the rest of it, which `write_index` fills in."""

    format_version: int
    codec: Source
    spec: CodeSpec
    data: Source
    transform: dict[str, Any]
    label_names: tuple[str, ...]
    columns: tuple[Column, ...]
    rows_per_shard: int
    shards: tuple[Shard, ...]
    sha256: str = ""


def code_dtype(num_codes: int) -> np.dtype[Any]:
    """Return the smallest dtype that holds codes 0 to num_codes - 1: uint8, uint16 or int32.

    >>> [str(code_dtype(K)) for K in (256, 257, 65536, 65537)]
    ['uint8', 'uint16', 'uint16', 'int32']
    """
    if num_codes <= 2**8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16) if num_codes <= 2**16 else np.dtype(np.int32)


def held_out_rows(num_rows: int) -> NDArray[np.int64]:
    """Return the source rows held out for validation when the data has no split of its own, ascending int64.

    Every 20th row (19, 39, ...), at least 1 and at most 5,000; beyond 100,000 rows
    they lie further apart, so that data sorted by class is still covered evenly.

    Raises:
        ArtifactError: With fewer than 2 rows.
    """
    if num_rows < 2:
        raise ArtifactError(f"training needs at least 2 images (one is held out), got {num_rows}")
    stride = max(20, -(-num_rows // 5000))
    rows = np.arange(stride - 1, num_rows, stride, dtype=np.int64)
    return rows if rows.size else np.array([num_rows - 1], dtype=np.int64)


def shard_ranges(num_rows: int, rows_per_shard: int = ROWS_PER_SHARD) -> list[range]:
    """Return the row range of each shard of a split."""
    return [range(first, min(first + rows_per_shard, num_rows)) for first in range(0, num_rows, rows_per_shard)]


def store_columns(spec: CodeSpec, *, labelled: bool, more: Sequence[Column] = ()) -> tuple[Column, ...]:
    """Return the columns of a store with this spec, and behind them `more` of other names."""
    codes = [Column(f"codes.{n}", str(code_dtype(level.num_codes)), level.grid) for n, level in enumerate(spec.levels)]
    label = [Column("label", "int64", ())] if labelled else []
    return (*codes, *label, Column("source_index", "int64", ()), Column("view", "uint8", ()), *more)


def shard_bytes(columns: Sequence[Column], rows: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the safetensors file of one shard: each named column, checked against its declaration."""
    from safetensors.numpy import save

    tensors = {}
    for column in columns:
        values = np.asarray(rows[column.name])
        assert values.shape[1:] == column.shape, (column, values.shape)
        with np.errstate(over="ignore"):  # what is too large for the type is no finite number, and refused as such
            converted = np.ascontiguousarray(values.astype(column.dtype))
        if converted.dtype.kind == "f":
            require_finite(converted, column.name)
        elif converted.dtype.kind in "iu":
            low, high = np.iinfo(column.dtype).min, np.iinfo(column.dtype).max
            assert values.size == 0 or (low <= values.min() and values.max() <= high), column
        tensors[column.name] = converted
    assert rows.keys() == tensors.keys()
    return save(tensors)


def require_finite(values: NDArray[Any], name: str, first_row: int = 0) -> None:
    """Raise `ArtifactError` that names the first row, counted from `first_row`, whose numbers are not all finite."""
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        row = first_row + int(np.flatnonzero(~finite)[0])
        raise ArtifactError(f"column {name} is not finite in row {row}; mend the row or leave it out")


def write_index(folder: Path, index: CodeIndex) -> None:
    """Write `codes.json` into a folder whose shards are complete."""
    from vq_prior.core.disk.artifacts import write_atomic

    write_atomic(folder / INDEX, pretty_json(replace(index, sha256=_sealed(index))))


def _sealed(index: CodeIndex) -> str:
    return sha256(canonical_json(replace(index, sha256=""))).hexdigest()


class CodeStore:
    """One split of a code store, read through memory maps.

    Attributes:
        folder: The store.
        index: Its `codes.json`.
        split: "train" or "validation".
    """

    def __init__(self, folder: Path, index: CodeIndex, split: str) -> None:
        self.folder, self.index, self.split = folder, index, split
        self._shards = [shard for shard in index.shards if shard.split == split]
        self._maps = [self._map(shard) for shard in self._shards]
        self._first_rows = np.array([shard.first_row for shard in self._shards], dtype=np.int64)

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> "CodeStore":
        """Return one split of the store in `folder`; headers are checked, payloads are not (see `verify`).

        Raises:
            ArtifactError: If the folder, its index or a shard is missing, malformed or truncated.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is not a code store" if folder.exists() else f"{folder} does not exist")
        where = folder / INDEX
        index = from_json(CodeIndex, read_json(where, max_bytes=MAX_INDEX_BYTES), str(where))
        check_index(index, str(where))
        if split not in SPLITS:
            raise ArtifactError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return cls(folder, index, split)

    def _map(self, shard: Shard) -> dict[str, NDArray[Any]]:
        from vq_prior.core.disk.tensors import read_header

        path = self.folder / shard.file
        header = read_header(path)
        if header.keys() != {column.name for column in self.index.columns}:
            raise ArtifactError(f"{path} has columns {', '.join(sorted(header))}, not those of {INDEX}")
        maps: dict[str, NDArray[Any]] = {}
        for column in self.index.columns:
            entry = header[column.name]
            dtype = str(entry.dtype).removeprefix("torch.")
            if dtype != column.dtype or entry.shape != (shard.num_rows, *column.shape):
                raise ArtifactError(f"{path}: column {column.name} is {dtype} {list(entry.shape)}, not as in {INDEX}")
            maps[column.name] = np.memmap(path, column.dtype, mode="r", offset=entry.start, shape=entry.shape)
        return maps

    def __len__(self) -> int:
        return sum(shard.num_rows for shard in self._shards)

    @property
    def spec(self) -> CodeSpec:
        """Shapes of the data and of the codes."""
        return self.index.spec

    @property
    def labelled(self) -> bool:
        """Whether every row has a class."""
        return any(column.name == "label" for column in self.index.columns)

    @property
    def store_id(self) -> str:
        """Hash of what the store holds, whatever it was called."""
        shards = [[shard.split, shard.first_row, shard.num_rows, shard.sha256] for shard in self.index.shards]
        described = [self.index.codec.id, self.index.data.id, self.index.spec, self.index.label_names, shards]
        return sha256(canonical_json(described)).hexdigest()

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the named columns of some rows of the split, in the order asked, `[n, ...]` each."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"row indices must be between 0 and {len(self) - 1}")
        result = {c.name: np.empty((wanted.size, *c.shape), dtype=c.dtype) for c in self.index.columns}
        home = np.searchsorted(self._first_rows, wanted, side="right") - 1
        for number in np.unique(home):
            here = home == number
            local = wanted[here] - self._first_rows[number]
            for name, column in self._maps[number].items():
                result[name][here] = column[local]
        return result

    def verify(self) -> None:
        """Check every byte of both splits and of the index: hashes, code ranges, labels.

        Raises:
            ArtifactError: Naming the first file that is damaged.
        """
        for shard in self.index.shards:
            path = self.folder / shard.file
            columns = self._map(shard)
            if file_sha256(path) != shard.sha256:
                require_no_pointer(path)
                raise ArtifactError(f"{path} is damaged: its bytes differ from {INDEX}; extract the codes anew")
            for number, level in enumerate(self.spec.levels):
                codes = columns[f"codes.{number}"]
                if codes.size and not (codes.min() >= 0 and codes.max() < level.num_codes):
                    raise ArtifactError(f"{path}: codes.{number} must lie in [0, {level.num_codes})")
            for column in self.index.columns:
                if column.dtype.startswith("float"):
                    require_finite(columns[column.name], f"{path}: {column.name}")
            labels = columns.get("label")
            if labels is not None and not (labels.min() >= 0 and labels.max() < len(self.index.label_names)):
                raise ArtifactError(f"{path}: label must lie in [0, {len(self.index.label_names)})")
        known = {INDEX, *(shard.file for shard in self.index.shards)}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in known:
                raise ArtifactError(f"{path} does not belong to the store")
        if self.index.sha256 and self.index.sha256 != _sealed(self.index):
            raise ArtifactError(f"{self.folder / INDEX} is damaged: it is not what was written; extract the codes anew")

    def to_dataset(self, rows: range | None = None) -> "datasets.Dataset":
        """Return the split, or a range of its rows, as a `datasets.Dataset` with one feature a column."""
        import datasets

        columns = self.rows(np.arange(len(self)) if rows is None else np.arange(rows.start, rows.stop))
        kinds = {2: datasets.Array2D, 3: datasets.Array3D}
        features: dict[str, Any] = {}
        for column in self.index.columns:
            rank = len(column.shape)
            if rank == 0 and column.name == "label":
                features[column.name] = datasets.ClassLabel(names=list(self.index.label_names))
            elif rank == 0:
                features[column.name] = datasets.Value(column.dtype)
            elif rank == 1:
                features[column.name] = datasets.Sequence(datasets.Value(column.dtype), length=column.shape[0])
            else:
                features[column.name] = kinds[rank](shape=column.shape, dtype=column.dtype)
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def check_index(index: CodeIndex, where: str) -> None:
    """Raise `ArtifactError` naming the entry that contradicts another or that this version does not read."""
    if index.format_version != 1:
        raise ArtifactError(f"{where} has format version {index.format_version}; this version reads 1")
    labelled = any(column.name == "label" for column in index.columns)
    expected = {column.name: column for column in store_columns(index.spec, labelled=labelled)}
    for name, column in expected.items():
        if column not in index.columns:
            raise ArtifactError(f"{where}: columns must hold {name} as {column.dtype} {list(column.shape)}")
    for column in index.columns:
        if column.dtype not in COLUMN_DTYPES or 0 in column.shape:
            raise ArtifactError(f"{where}: column {column.name} is {column.dtype} {list(column.shape)}, unknown here")
    if labelled and not index.label_names:
        raise ArtifactError(f"{where}: label_names is empty though there is a label column")
    next_row = dict.fromkeys(SPLITS, 0)
    for number, shard in enumerate(index.shards):
        path = f"{where}: shards[{number}]"
        if shard.split not in SPLITS:
            raise ArtifactError(f"{path}.split must be one of {', '.join(SPLITS)}, got {shard.split!r}")
        if shard.file != shard_file(shard.split, shard.first_row // max(1, index.rows_per_shard)):
            raise ArtifactError(f"{path}.file is {shard.file!r}, not the name of its rows")
        follows = shard.first_row == next_row[shard.split] and shard.first_row % max(1, index.rows_per_shard) == 0
        if not follows or not 1 <= shard.num_rows <= index.rows_per_shard:
            raise ArtifactError(f"{path} does not follow the shard before it")
        next_row[shard.split] += shard.num_rows
    if not next_row["train"]:
        raise ArtifactError(f"{where}: the store has no training rows")


def shard_file(split: str, number: int) -> str:
    """Return the name of a shard within the store."""
    return f"{split}/shard-{number:05d}.safetensors"
