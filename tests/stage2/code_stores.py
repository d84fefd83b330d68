"""Small code stores for the tests of stage two, written with core's own functions."""

from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vq_prior.core.disk.code_store import (
    CodeIndex,
    Shard,
    Source,
    held_out_rows,
    shard_bytes,
    shard_file,
    shard_ranges,
    store_columns,
    write_index,
)
from vq_prior.core.spec import CodeSpec, LevelSpec

SPEC = CodeSpec(1, (8, 8), (LevelSpec((2, 3), 12),))
CODEC_ID = "c" * 64


def structured_codes(num_rows: int, spec: CodeSpec, num_classes: int) -> tuple[list[NDArray[np.int64]], NDArray]:
    """Return codes that follow from the class and the cell before, with some noise, and the classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(num_rows, dtype=np.int64) % num_classes
    grids = []
    for level in spec.levels:
        flat = np.zeros((num_rows, level.num_tokens), dtype=np.int64)
        flat[:, 0] = labels % level.num_codes
        for t in range(1, level.num_tokens):
            jump = generator.integers(0, level.num_codes, num_rows) * (generator.random(num_rows) < 0.1)
            flat[:, t] = (flat[:, t - 1] + labels + 1 + jump) % level.num_codes
        grids.append(flat.reshape(num_rows, *level.grid))
    return grids, labels


def write_store(
    folder: Path, spec: CodeSpec = SPEC, *, num_rows: int = 200, num_classes: int = 3, labelled: bool = True
) -> Path:
    """Write a code store of structured codes and return its folder."""
    grids, labels = structured_codes(num_rows, spec, num_classes)
    columns = store_columns(spec, labelled=labelled)
    held_out = held_out_rows(num_rows)
    shards = []
    for split, rows in (("train", np.setdiff1d(np.arange(num_rows), held_out)), ("validation", held_out)):
        (folder / split).mkdir(parents=True)
        for number, part in enumerate(shard_ranges(len(rows))):
            here = rows[part.start : part.stop]
            values = {f"codes.{n}": grid[here] for n, grid in enumerate(grids)}
            values |= {"source_index": here, "view": np.zeros(len(here), dtype=np.int64)}
            if labelled:
                values["label"] = labels[here]
            data, name = shard_bytes(columns, values), shard_file(split, number)
            (folder / name).write_bytes(data)
            shards.append(Shard(split, name, part.start, len(here), sha256(data).hexdigest()))
    names = tuple(f"class {n}" for n in range(num_classes)) if labelled else ()
    index = CodeIndex(
        1, Source("codec", CODEC_ID), spec, Source("data", "d" * 64), {}, names, columns, 4096, tuple(shards)
    )
    write_index(folder, index)
    return folder
