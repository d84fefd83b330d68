"""Tables of values: parquet and arrow files, read by pyarrow, and Hub data sets, read by `datasets`."""

import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1_vqvae.data.classes import Label, no_label_column, read_labels
from stage1_vqvae.data.lists import list_of, split_of_lists
from stage1_vqvae.data.rows import RawData, Split
from stage1_vqvae.data.splits import pairs_in_words, split_column_notes, splits_of_tables
from stage1_vqvae.modalities import MODALITIES, Wanted, chosen, column_flag, kind_of_feature, kinds_of_array, named
from vq_prior.core.disk.pointers import require_no_pointer
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Encoded, Modality

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".parquet", ".arrow")
MAX_HELD_BYTES = 4 << 30


class NoValues(ArtifactError):
    """A table without a column of values."""


class TableRows:
    """The column of values of tables, a block of rows (a parquet row group) read at a time and kept while it fits."""

    def __init__(self, blocks: Sequence[tuple[str, int, Callable[[], Any]]]) -> None:
        """Take blocks as (file name, number of rows, function that returns the column as an arrow array)."""
        self._blocks = list(blocks)
        self._first = [0]
        for _, count, _ in self._blocks:
            self._first.append(self._first[-1] + count)
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._latest: tuple[int, Any] = (-1, None)  # the block last asked for: threads that read it wait for no lock

    def __len__(self) -> int:
        return self._first[-1]

    def _block(self, number: int) -> Any:
        latest, block = self._latest
        if latest == number:
            return block
        with self._lock:
            if number not in self._held:
                column = _contents(self._blocks[number][2]())
                self._held[number] = column
                self._held_bytes += column.nbytes
                while self._held_bytes > MAX_HELD_BYTES and len(self._held) > 1:
                    self._held_bytes -= self._held.popitem(last=False)[1].nbytes
            self._held.move_to_end(number)
            block = self._held[number]
        self._latest = (number, block)
        return block

    def encoded(self, row: int) -> Encoded:
        """Return the file's bytes, or its numbers as an array; raises `ArtifactError` if the row holds neither."""
        number = bisect_right(self._first, row) - 1
        content = self._block(number)[row - self._first[number]].as_py()
        if isinstance(content, bytes):
            return content
        return array_of(content, self.name(row))

    def element(self, row: int, place: int) -> Encoded:
        """Return a file of the list of a row; raises `ArtifactError` if it holds no bytes."""
        number = bisect_right(self._first, row) - 1
        content = self._block(number)[row - self._first[number]].values[place].as_py()
        content = content.get("bytes") if isinstance(content, dict) else content
        if not isinstance(content, bytes):
            raise ArtifactError(f"{self.name(row)} image {place} holds no bytes of a file; store it in the table")
        return content

    def name(self, row: int) -> str:
        """Return the file and the row in it."""
        number = bisect_right(self._first, row) - 1
        file = self._blocks[number][0]
        first = next(self._first[n] for n, block in enumerate(self._blocks) if block[0] == file)
        return f"{file} row {row - first}"


def array_of(content: Any, name: str) -> Encoded:
    """Return the array of a row of a column of lists; raises `ArtifactError` if it holds none."""
    import numpy as np

    if not isinstance(content, list):
        raise ArtifactError(f"{name} holds no bytes of a file; store the files inside the table")
    try:
        array = np.asarray(content)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise ArtifactError(f"{name} must be numbers, or lists of equally many numbers")
    return array


def _contents(column: Any) -> Any:
    """Return the files' bytes where a column holds them beside their paths, and any other column as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    apart = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
    return pc.struct_field(column, "bytes") if apart else column


class _TableFile:
    """One parquet or arrow file: its schema, and its columns block by block."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        require_no_pointer(path)
        try:
            if path.suffix.lower() == ".parquet":
                self._file = pq.ParquetFile(path, memory_map=True)
                self.schema = self._file.schema_arrow
                sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
                self._read = self._read_row_group
            else:
                self._batches = _arrow_batches(path)
                self.schema = self._batches[0].schema if self._batches else pa.schema([])
                sizes = [len(batch) for batch in self._batches]
                self._read = self._read_batch
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(f"{path} is not a readable table ({str(error)[:80]})") from error
        self.sizes = sizes

    def _read_row_group(self, number: int, column: str) -> Any:
        table = self._file.read_row_group(number, columns=[column])
        return table.column(column).combine_chunks()

    def _read_batch(self, number: int, column: str) -> Any:
        return self._batches[number].column(column)

    def column(self, number: int, column: str) -> Any:
        """Return one column of one block; raises `ArtifactError` if its bytes are damaged."""
        import pyarrow as pa

        try:
            return self._read(number, column)
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(f"{self.path} is damaged in block {number} ({str(error)[:80]})") from error

    def blocks(self, column: str) -> list[tuple[str, int, Callable[[], Any]]]:
        """Return the blocks of a column for `TableRows`."""

        def reader(number: int) -> Callable[[], Any]:
            return lambda: self.column(number, column)

        return [(str(self.path), size, reader(number)) for number, size in enumerate(self.sizes)]

    def values(self, column: str) -> list[Any]:
        """Return a whole column as Python values."""
        return [value for number in range(len(self.sizes)) for value in self.column(number, column).to_pylist()]


def table_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a parquet or arrow file, by column; raises `ArtifactError` if it is damaged."""
    file = _TableFile(path)
    columns = {name: file.values(name) for name in file.schema.names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def table_columns(path: Path) -> list[str]:
    """Return the names of the columns of a parquet or arrow file; raises `ArtifactError` if it is damaged."""
    return list(_TableFile(path).schema.names)


def table_values(path: Path, column: str) -> list[Any]:
    """Return a whole column of a parquet or arrow file as Python values; raises `ArtifactError` if there is none."""
    file = _TableFile(path)
    if column not in file.schema.names:
        raise ArtifactError(f"{path} has no column {column}, only {', '.join(file.schema.names)}")
    return file.values(column)


def _arrow_batches(path: Path) -> list["pa.RecordBatch"]:
    """Return the record batches of an arrow file or stream, mapped into memory."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(n) for n in range(reader.num_record_batches)]
    except pa.ArrowInvalid:
        source.seek(0)
        return list(pa.ipc.open_stream(source))


def open_table_files(paths: Sequence[Path], wanted: Wanted, root: Path | None = None) -> RawData:
    """Return the rows of parquet or arrow files, grouped into splits by their names.

    `train-00000.parquet`, `validation-...` and `test-...` (or folders so named, below `root`)
    are the splits; files that name none are training data.

    Raises:
        ArtifactError: If a file is damaged, or no column holds values.
        UsageError: If a named column does not exist.
    """
    groups: dict[str, list[Path]] = {}
    taken = splits_of_tables({str(path): path.parent.name if path.parent != root else "" for path in sorted(paths)})
    for path in sorted(paths):
        groups.setdefault(taken[str(path)], []).append(path)
    notes: list[str] = []
    if wanted.split is not None:
        if wanted.split not in groups:
            raise UsageError(f"--split {wanted.split} is not among the tables, which are {', '.join(groups)}")
        left_out = sum(len(members) for split, members in groups.items() if split != wanted.split)
        notes.append(f"left {left_out} table(s) of other splits untouched")
        groups = {"train": groups[wanted.split]}
    if set(groups) != {"train"} and len(paths) > 1:
        below = os.path.commonpath([path.parent for path in paths])
        notes.append(f"tables: {pairs_in_words({os.path.relpath(name, below): part for name, part in taken.items()})}")
    if len(paths) > 1 and "train" not in groups:
        raise ArtifactError(f"{paths[0].parent} holds no training tables, only {', '.join(groups)}")
    if len(paths) == 1 and wanted.split is None:
        groups = {"train": list(paths)}
    untouched = groups.pop("test", [])
    if untouched:
        notes.append(f"left {len(untouched)} test table(s) untouched")
    files = {split: [_TableFile(path) for path in members] for split, members in groups.items()}
    first = files["train"][0]
    features = _features(first.schema)
    modality, why, values = values_column(first.schema, wanted, str(first.path))
    label = _label_column(first, wanted.label_column)
    names = _class_names(features, label)
    splits = {}
    for split, members in files.items():
        for file in members:
            for column in filter(None, (values, label)):
                if column not in file.schema.names:
                    raise ArtifactError(f"{file.path} has no column {column!r}, unlike {first.path}")
        blocks = [block for file in members for block in file.blocks(values)]
        labels: list[Label] | None = None
        if label is not None:
            raw_labels = [value for file in members for value in file.values(label)]
            is_named, where = wanted.label_column is not None, str(members[0].path)
            labels, said = read_labels(raw_labels, label, where, is_named=is_named, has_names=names is not None)
            notes += said
        splits[split] = Split(TableRows(blocks), labels)
        if in_lists(first.schema, values):
            columns = (read() for _, _, read in blocks)
            splits[split], said = split_of_lists(TableRows(blocks), columns, labels, split)
            notes += said
    notes += columns_not_read(first.schema, modality, values, wanted)
    notes += split_column_notes(first.schema.names, first.values)
    if label is None:
        notes += no_label_column([name for name in first.schema.names if name != values])
    return RawData(splits["train"], splits.get("validation"), modality, why, names, tuple(notes))


def _features(schema: "pa.Schema") -> dict[str, Any]:
    """Return the `datasets` features that a table's schema carries; empty without any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def columns_not_read(schema: "pa.Schema", modality: Modality, values: str, wanted: Wanted) -> list[str]:
    """Return a sentence that names other columns that might hold the values; none where the person named theirs."""
    others = [name for name in _columns_by_kind(schema).get(modality.name, []) if name != values]
    flag = column_flag(modality)
    if not others or wanted.columns:
        return []
    return [f"took the column {values}, not {', '.join(others)}; {flag} chooses"]


def values_column(schema: "pa.Schema", wanted: Wanted, where: str) -> tuple[Modality, str, str]:
    """Return the kind of the values of a table, why it is that, and their column."""
    names, kind = schema.names, wanted.kind()
    for each, column in wanted.columns.items():
        flag = column_flag(MODALITIES[each])
        if column not in names:
            raise UsageError(f"{flag} {column} is not in {where}, which has {', '.join(names)}")
        return MODALITIES[each], f"by {flag}", column
    columns = _columns_by_kind(schema)
    if kind is not None:
        modality = named(kind, where)
        suitable = columns.get(kind) or (_binary(schema) if modality.signs.holds == "files" else _lists(schema))
        if not suitable:
            raise NoValues(f"{where} has no column of {kind} (its columns are {', '.join(names)})")
        return modality, "by --modality", _preferred(modality, suitable)
    if not columns:
        raise NoValues(f"{where} has no column of image files (its columns are {', '.join(names)})")
    modality, why = chosen({each: f"column {some[0]}" for each, some in columns.items()}, where)
    return modality, why, columns[modality.name][0]


def _preferred(modality: Modality, columns: list[str]) -> str:
    """Return the first of a kind's own names for its column that is there, else the first column."""
    return next((name for name in modality.signs.columns if name in columns), columns[0])


def _columns_by_kind(schema: "pa.Schema") -> dict[str, list[str]]:
    """Return the columns of a table that hold values of each kind, the one to take first.

    What a column is, its type in the features of `datasets` says. Without such, columns of files are pictures; lists of
    numbers are looked at only where there are no files, for beside them they tell of them.
    """
    typed: dict[str, list[str]] = {}
    features = _features(schema)
    for name in sorted(schema.names, key=lambda name: in_lists(schema, name)):
        feature = features.get(name)
        if in_lists(schema, name):
            feature = feature[0] if isinstance(feature, list) and feature else (feature or {}).get("feature")
        kind = kind_of_feature(str(feature.get("_type"))) if isinstance(feature, dict) else None
        if kind is not None:
            typed.setdefault(kind, []).append(name)
    if typed:
        return typed
    if binary := _binary(schema):
        best = _preferred(MODALITIES["pictures"], binary)
        return {"pictures": [best, *(name for name in binary if name != best)]}
    by_kind: dict[str, list[str]] = {}
    for name in _lists(schema):
        for kind in kinds_of_array(*_array_type(schema.field(name).type)):
            by_kind.setdefault(kind, []).append(name)
    return by_kind


def _holds_bytes(kind: Any) -> bool:
    """Return whether a type is that of files: bytes, or objects with bytes."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _binary(schema: "pa.Schema") -> list[str]:
    """Return the columns that hold files; where there are none, those that hold lists of files."""
    alone = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    return alone or [name for name in schema.names if in_lists(schema, name)]


def in_lists(schema: "pa.Schema", name: str) -> bool:
    """Return whether a column holds lists of files."""
    return list_of(schema.field(name).type, _holds_bytes)


def _lists(schema: "pa.Schema") -> list[str]:
    """Return the columns that hold lists of numbers, or lists of such lists."""
    return [name for name in schema.names if len(_array_type(schema.field(name).type)[1]) > 1]


def _array_type(kind: Any) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and the shape [N, ...] of a column as an array; -1 is an axis whose size may differ."""
    import pyarrow as pa

    shape = [-1]
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size if pa.types.is_fixed_size_list(kind) else -1)
        kind = kind.value_type
    names = {"float": "float32", "double": "float64", "halffloat": "float16"}
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return (names.get(str(kind), str(kind)), tuple(shape)) if numbers else ("", (-1,))


def _label_column(file: _TableFile, wanted: str | None) -> str | None:
    names = file.schema.names
    if wanted is not None and wanted not in names:
        raise UsageError(f"--label-column {wanted} is not in {file.path}, which has {', '.join(names)}")
    return wanted or ("label" if "label" in names else None)


def _class_names(features: dict[str, Any], label: str | None) -> tuple[str, ...] | None:
    feature = features.get(label) if label else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
