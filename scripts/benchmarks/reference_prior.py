"""The prior that stage two's benchmarks run: 8 blocks of width 320 on square grids of 512 codes, ten classes."""

from hashlib import sha256
from pathlib import Path
from typing import Any

K, CLASSES = 512, 10
LAYERS, WIDTH, HEADS, FEED_FORWARD = 8, 320, 5, 864


def spec(num_tokens: int, num_codes: int = K) -> Any:
    """Return the shapes of images of one square grid of codes."""
    from vq_prior.core.spec import CodeSpec, LevelSpec

    side = int(num_tokens**0.5)
    return CodeSpec(3, (4 * side, 4 * side), (LevelSpec((side, side), num_codes),))


def architecture(kind: Any = "qwen3") -> Any:
    """Return the sizes of the prior."""
    from stage2_prior.settings import PriorModel

    return PriorModel(kind, LAYERS, WIDTH, HEADS, HEADS, FEED_FORWARD, 1000.0)


def write_noise(folder: Path, num_tokens: int, num_rows: int = 1024) -> Path:
    """Write a store of random codes, 64 of its rows held out, and return its folder."""
    import numpy as np

    from vq_prior.core.disk.code_store import (
        CodeIndex,
        Shard,
        Source,
        shard_bytes,
        shard_file,
        store_columns,
        write_index,
    )

    here, generator = spec(num_tokens), np.random.default_rng(0)
    columns, shards = store_columns(here, labelled=True), []
    for split, count in (("train", num_rows), ("validation", 64)):
        (folder / split).mkdir(parents=True)
        values = {
            "codes.0": generator.integers(0, K, (count, *here.levels[0].grid)),
            "label": np.arange(count) % CLASSES,
            "source_index": np.arange(count),
            "view": np.zeros(count, dtype=np.uint8),
        }
        data, name = shard_bytes(columns, values), shard_file(split, 0)
        (folder / name).write_bytes(data)
        shards.append(Shard(split, name, 0, count, sha256(data).hexdigest()))
    names = tuple(f"class {n}" for n in range(CLASSES))
    index = CodeIndex(
        1, Source("noise", "c" * 64), here, Source("noise", "d" * 64), {}, names, columns, 4096, tuple(shards)
    )
    write_index(folder, index)
    return folder


def ending(num_tokens: int) -> str:
    """Return what the names of rows and ratios end in: the length, except for 64 tokens."""
    return "" if num_tokens == 64 else f"_t{num_tokens}"


def matrices_per_token() -> int:
    """Return the multiply-adds of one token in the matrices: projections, feed-forward layers, output layer."""
    return LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * FEED_FORWARD) + WIDTH * K
