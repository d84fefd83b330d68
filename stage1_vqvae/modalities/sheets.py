"""Sheets: one picture of many values, whatever their kind, for reports, trackers, cards and people.

Letters: B batch, n pictures, C channels.
"""

import io
from collections.abc import Iterable, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.sheet_beside import MARK

Pixels = NDArray[np.uint8]
RAMP = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], dtype=np.float64)


def to_picture(pixels: Pixels) -> Image.Image:
    """Return a PIL image (grey or RGB, with alpha or without) from uint8 pixels [height, width, 1 to 4]."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def png_bytes(picture: Image.Image) -> bytes:
    """Return the PNG file of a picture; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def sheet_bytes(picture: Image.Image) -> bytes:
    """Return the PNG file of a sheet, which says that it is one of ours."""
    text = PngInfo()
    text.add_text("Software", MARK)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def save_png(path: Path, picture: Image.Image, *, durable: bool = True) -> None:
    """Write a picture as a PNG, whole; `durable` as in `write_atomic`."""
    write_atomic(path, png_bytes(picture), durable=durable)


def picture_grid(pixels: Pixels, *, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Return one picture of many, row by row.

    Small pictures are enlarged by a whole factor, without smoothing, until the shorter side has at least 32 pixels.

    Args:
        pixels: [n, height, width, C] uint8.
        columns: Pictures in a row; None makes the grid about square.
        gap: White pixels between pictures.
    """
    count, height, width, channels = pixels.shape
    columns = columns or max(1, ceil(sqrt(count)))
    zoom = max(1, ceil(32 / min(height, width)))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    rows, height, width = ceil(count / columns), height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * height + gap, columns * width + gap, channels), 255, dtype=np.uint8)
    for number, picture in enumerate(pixels):
        top, left = gap + number // columns * height, gap + number % columns * width
        canvas[top : top + height - gap, left : left + width - gap] = picture
    return to_picture(canvas)


def grid_of_files(paths: Iterable[Path]) -> Image.Image:
    """Return one picture of many that lie in files, all of one size and kind."""
    shown = []
    for path in paths:
        with Image.open(path) as picture:
            shown.append(np.atleast_3d(np.asarray(picture)))
    return picture_grid(np.stack(shown))


def pair_grid(first: Pixels, second: Pixels, *, columns: int) -> Image.Image:
    """Return a grid in which every row of the first pictures stands above the row of the second."""
    rows = []
    for start in range(0, len(first), columns):
        for pictures in (first, second):
            row = pictures[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), 255, dtype=np.uint8)
            rows.append(np.concatenate([row, blank]))
    return picture_grid(np.concatenate(rows), columns=columns)


def pictures_of_sheet(png: bytes, *, columns: int, rows: int, gap: int = 2) -> Pixels | None:
    """Return the pictures of a sheet that `picture_grid` drew, row by row, [columns * rows, height, width, C] uint8.

    None where the file is no such sheet: its size does not fit, or there is something between the pictures. Small
    pictures come as large as they are in it.

    Args:
        png: The file.
        columns: Pictures in a row.
        rows: Rows, a last one that is not full counted.
        gap: White pixels between pictures.
    """
    with Image.open(io.BytesIO(png)) as sheet:
        pixels = np.atleast_3d(np.asarray(sheet))
    inner = pixels[gap:, gap:]
    (height, over), (width, beside) = divmod(inner.shape[0], rows), divmod(inner.shape[1], columns)
    if over or beside or min(height, width) <= gap or pixels[:gap].min() < 255 or pixels[:, :gap].min() < 255:
        return None
    cells = inner.reshape(rows, height, columns, width, -1).swapaxes(1, 2).reshape(rows * columns, height, width, -1)
    if min(cells[:, height - gap :].min(), cells[:, :, width - gap :].min()) < 255:
        return None
    return np.ascontiguousarray(cells[:, : height - gap, : width - gap])


def heat(nats: Tensor, shape: Sequence[int], chance: float) -> Pixels:
    """Return maps as pixels [B, height, width, 3]: blue at 0 nats, white at chance, red at twice chance and beyond.

    Args:
        nats: [B, rows, columns].
        shape: Height and width wanted; a cell is repeated over its part of the picture.
        chance: Nats of a cell if all codes were alike.
    """
    share = np.minimum(nats.double().numpy() / (2 * chance), 1.0)
    colours = np.stack([np.interp(share, [0, 0.5, 1], RAMP[:, channel]) for channel in range(3)], axis=-1)
    rows, columns = (np.arange(size) * cells // size for size, cells in zip(shape, nats.shape[1:], strict=True))
    pixels: Pixels = np.rint(colours).astype(np.uint8)[:, rows][:, :, columns]
    return pixels


class Sheets:
    """A base for the `show` of a kind: everything is drawn from its `pictures`, and a kind may override any of it."""

    def pictures(self, values: Tensor) -> Pixels:
        """Return a picture of each value, [B, height, width, 1 or 3] uint8."""
        raise NotImplementedError

    def on_sheet(self, values: Tensor) -> Pixels:
        """Return what stands for each value on a sheet: its picture."""
        return self.pictures(values)

    def sheet(self, values: Tensor, *, columns: int | None = None) -> Image.Image:
        """Return one picture of many values, `columns` in a row; None makes it about square."""
        return picture_grid(self.on_sheet(values), columns=columns)

    def pairs(self, values: Tensor, copies: Tensor, *, columns: int = 8) -> Image.Image:
        """Return one picture in which every row of values stands above the row of their reconstructions."""
        return pair_grid(self.on_sheet(values), self.on_sheet(copies), columns=columns)

    def beside(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any] | None:  # noqa: ARG002
        """Return None: a kind has no value that shows two of them, unless it says how."""
        return None

    def heat(self, values: Tensor, nats: Sequence[Tensor], chance: Sequence[float]) -> Pixels:
        """Return the picture of each value beside its maps of -log p, [B, height, width, 3] uint8.

        The map of a grid of one axis is a strip, that of three axes the mean over the first.
        """
        pixels = self.pictures(values)
        shape = pixels.shape[1:3]
        flat = [_as_two_axes(level) for level in nats]
        maps = [heat(level, shape, each) for level, each in zip(flat, chance, strict=True)]
        return np.concatenate([np.broadcast_to(pixels, (*pixels.shape[:3], 3)), *maps], axis=2)


def _as_two_axes(nats: Tensor) -> Tensor:
    if nats.ndim == 2:
        return nats[:, None]
    return nats.mean(dim=1) if nats.ndim == 4 else nats
