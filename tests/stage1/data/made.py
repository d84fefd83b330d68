"""Small folders and tables of pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def fill(root: Path, *folders: str, count: int = 2) -> None:
    """Write different pictures into each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            value = sum(map(ord, folder)) * 7 + number
            Image.fromarray(np.full((6, 8), value % 256, np.uint8)).save(root / folder / f"{number}.png")


def table(path: Path, first: int, **columns: Any) -> None:
    """Write a table of four grey pictures of the values `first` to `first` + 3."""
    contents = []
    for value in range(first, first + 4):
        file = io.BytesIO()
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(file, "PNG")
        contents.append(file.getvalue())
    pq.write_table(pa.table({"image": contents, **columns}), path)
