"""A code store as parquet files for the Hub, and back to the same bytes.

`data/train-00000-of-00001.parquet` ... hold the rows as `datasets` shows and streams
them; `codes.json` goes along unchanged and judges what is rebuilt from the rows.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vq_prior.core.config import from_json, read_json
from vq_prior.core.disk.artifacts import new_folder, require_replaceable, write_atomic
from vq_prior.core.disk.code_store import (
    INDEX,
    MAX_INDEX_BYTES,
    SPLITS,
    CodeIndex,
    CodeStore,
    Column,
    check_index,
    shard_bytes,
)
from vq_prior.core.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

CODES_FILE = re.compile(r"codes\.json|README\.md|data/(train|validation)-\d{5}-of-\d{5}\.parquet")
SHARDS_PER_TABLE = 64


def write_tables(store: Path, folder: Path) -> None:
    """Write the rows of both splits of a code store as parquet files into `folder`, and its index beside them."""
    index = CodeStore.open(store).index
    (folder / "data").mkdir(parents=True)
    for split in SPLITS:
        rows = CodeStore.open(store, split)
        size = SHARDS_PER_TABLE * index.rows_per_shard
        ranges = [range(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
        for number, part in enumerate(ranges):
            name = f"data/{split}-{number:05d}-of-{len(ranges):05d}.parquet"
            rows.to_dataset(part).to_parquet(str(folder / name), batch_size=index.rows_per_shard)
    write_atomic(folder / INDEX, (store / INDEX).read_bytes())


def read_tables(folder: Path, out: Path) -> bool:
    """Rebuild the code store of `write_tables` at `out`; return False if it is there already.

    Raises:
        UsageError: If `out` holds something else.
        ArtifactError: If a file is missing or its rows do not give the shards that the index promises.
    """
    where = folder / INDEX
    content = where.read_bytes() if where.is_file() else b""
    index = from_json(CodeIndex, read_json(where, max_bytes=MAX_INDEX_BYTES), str(where))
    check_index(index, str(where))
    require_replaceable(out, INDEX, "code store")
    if (out / INDEX).is_file():
        if (out / INDEX).read_bytes() != content:
            raise UsageError(f"{out} holds other codes; choose another --out or remove it")
        CodeStore.open(out).verify()
        return False
    with new_folder(out, manifest=False) as staging:
        for split in SPLITS:
            (staging / split).mkdir()
            shards = [shard for shard in index.shards if shard.split == split]
            blocks = _blocks(folder, split, index.columns, [shard.num_rows for shard in shards])
            for shard, rows in zip(shards, blocks, strict=True):
                data = shard_bytes(index.columns, rows)
                if sha256(data).hexdigest() != shard.sha256:
                    raise ArtifactError(f"{folder}: its rows do not give {shard.file} as {INDEX} promises it")
                write_atomic(staging / shard.file, data, durable=False)
        write_atomic(staging / INDEX, content)
    return True


def _blocks(
    folder: Path, split: str, columns: tuple[Column, ...], sizes: list[int]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the columns of so many rows after so many rows of a split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((folder / "data").glob(f"{split}-*.parquet"))
    try:
        tables = iter([pq.ParquetFile(path) for path in paths])
        groups = (table.read_row_group(n) for table in tables for n in range(table.num_row_groups))
        pending: list[pa.Table] = []
        for size in sizes:
            while sum(len(table) for table in pending) < size:
                following = next(groups, None)
                if following is None:
                    raise ArtifactError(f"{folder / 'data'}: fewer {split} rows than {INDEX} promises")
                pending.append(following)
            table = pa.concat_tables(pending)
            pending = [table.slice(size)] if len(table) > size else []
            yield {column.name: _values(table.slice(0, size), column, folder) for column in columns}
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{folder / 'data'} is not readable as parquet ({str(error)[:80]})") from error
    if pending or next(groups, None) is not None:
        raise ArtifactError(f"{folder / 'data'}: more {split} rows than {INDEX} promises")


def _values(table: "pa.Table", column: Column, folder: Path) -> NDArray[Any]:
    """Return one column, [n, *shape], of the declared type."""
    import pyarrow as pa

    if column.name not in table.column_names:
        raise ArtifactError(f"{folder / 'data'} has no column {column.name}")
    values = table.column(column.name).combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        values = values.flatten()
    shape = (len(table), *column.shape)
    fits = len(values) == int(np.prod(shape)) and not values.null_count
    flat = values.to_numpy(zero_copy_only=False) if fits else None
    if flat is None or flat.dtype.kind not in "iufb":
        raise ArtifactError(f"{folder / 'data'}: column {column.name} is not {column.dtype} {list(column.shape)}")
    converted = flat.astype(column.dtype)
    if not np.array_equal(converted, flat):
        raise ArtifactError(f"{folder / 'data'}: column {column.name} does not fit in {column.dtype}")
    return converted.reshape(shape)
