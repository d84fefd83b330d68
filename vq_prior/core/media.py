"""Tensor <-> picture."""

import io
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vq_prior.core.disk.artifacts import write_atomic


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return images [B, C, height, width] float32 in [-1, 1] from uint8 pixels [B, height, width, C]."""
    return pixels.movedim(-1, 1).to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Return uint8 pixels [B, height, width, C] from images [B, C, height, width] in [-1, 1]; values beyond are cut."""
    scaled = images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()


def to_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return a PIL image (grey or RGB) from uint8 pixels [height, width, 1 or 3]."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def png_bytes(picture: Image.Image) -> bytes:
    """Return the PNG file of a picture; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: Path, picture: Image.Image, *, durable: bool = True) -> None:
    """Write a picture as a PNG, whole; `durable` as in `write_atomic`."""
    write_atomic(path, png_bytes(picture), durable=durable)


def picture_grid(pixels: NDArray[np.uint8], *, columns: int | None = None, gap: int = 2) -> Image.Image:
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
