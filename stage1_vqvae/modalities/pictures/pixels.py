"""From an encoded picture to uint8 pixels, by one written rule.

1. The first frame is taken and the EXIF rotation applied.
2. 16-bit grey becomes 8-bit: round(v * 255 / 65535).
3. Transparency (alpha, palette or colour key) is laid over white.
4. Anything else (palette, CMYK, YCbCr, ...) becomes RGB; grey codecs take the luma (ITU-R 601-2).
5. The largest centred part of the wanted proportions is resized to the wanted size by an
   antialiased bicubic filter: short side to size, then centre crop. A picture that has the size is left as it is.

Letters: C channels; n pictures.
"""

import io
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stage1_vqvae.modalities.pictures.jpeg import PlainJPEG, decode_plain, plain_jpeg
from vq_prior.core.errors import ArtifactError
from vq_prior.core.quiet import muted

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_SIDE = 16_384
MAX_PIXELS, MAX_WEBP_PIXELS = 64 << 20, 10 << 20  # the decoder of WebP takes 16 bytes for each pixel
MAX_CACHE_BYTES = 4 << 30
ROWS_PER_TASK, BYTES_PER_TASK = 64, 4 << 20
WORTH = {1: 30e-6, 4: 1e-3}  # threads -> seconds of a picture below which more would be slower
VIEWS = {"none": 1, "flip": 2, "ten-crop": 10}
ENLARGED = 1.1  # sides of the picture that crops are taken from
RULE = "exif, 16-bit to 8, alpha on white, bicubic cover, centre crop; 1"

Encoded = bytes | NDArray[np.uint8]
S = TypeVar("S")
T = TypeVar("T")


class Pictures(Protocol):
    """Rows of encoded pictures."""

    def __len__(self) -> int: ...

    def encoded(self, row: int) -> Encoded:
        """Return the file's bytes, or uint8 pixels [height, width] or [height, width, C]."""
        ...

    def name(self, row: int) -> str:
        """Return what to call the row in a message."""
        ...


@dataclass(frozen=True)
class Transform:
    """The size and channels that pictures are brought to."""

    height: int
    width: int
    channels: int

    def describe(self) -> dict[str, Any]:
        """Return the transform as JSON values, the rule's version included."""
        return {"image_size": [self.height, self.width], "channels": self.channels, "rule": RULE}


@dataclass(frozen=True)
class Header:
    """What a picture's header says: its size after EXIF rotation, and whether it is grey."""

    height: int
    width: int
    grey: bool


def open_picture(encoded: Encoded, name: str) -> Image.Image:
    """Return a picture whose header was read and checked, its pixels not yet decoded.

    Raises:
        ArtifactError: If it is no picture of a known format, or larger than 16384 a side or 64 megapixels (WebP: 10).
    """
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if encoded.ndim == 3 and encoded.shape[-1] == 1 else encoded)
    if not encoded:
        raise ArtifactError(f"{name} is empty; remove or replace it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ArtifactError(f"{name} announces more than {MAX_PIXELS} pixels; remove or shrink it") from error
    except Exception as error:  # decoders raise whatever they like on damaged headers
        raise ArtifactError(f"{name} is not a readable picture ({', '.join(FORMATS)}); remove or replace it") from error
    most = MAX_WEBP_PIXELS if picture.format == "WEBP" else MAX_PIXELS
    if max(picture.size) > MAX_SIDE or picture.width * picture.height > most:
        raise ArtifactError(
            f"{name} has {picture.width} x {picture.height} pixels, "
            f"more than {MAX_SIDE} a side or {most} in all; remove or shrink it"
        )
    return picture


def read_header(encoded: Encoded, name: str) -> Header:
    """Return size and greyness of a picture; see `open_picture` for what is refused."""
    if (plain := _plain(encoded)) is not None:
        return Header(plain.height, plain.width, plain.channels == 1)
    picture = open_picture(encoded, name)
    width, height = picture.size
    if picture.format in ("JPEG", "TIFF", "WEBP", "PNG") and _orientation(picture) in (5, 6, 7, 8):
        width, height = height, width
    grey = picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")
    if picture.mode == "P" and (palette := _palette(picture, name)):
        colours = np.asarray(palette).reshape(-1, 3)
        grey = bool((colours == colours[:, :1]).all())
    return Header(height, width, grey)


def _palette(picture: Image.Image, name: str) -> list[int] | None:
    try:
        return picture.getpalette("RGB")  # decodes the pixels
    except Exception as error:
        raise _undecodable(name, error) from error


def _undecodable(name: str, error: Exception) -> ArtifactError:
    """Return the error of a picture whose data are damaged; decoders raise whatever they like then."""
    return ArtifactError(f"{name} cannot be decoded ({str(error)[:80]}); remove or replace it")


def _plain(encoded: Encoded) -> PlainJPEG | None:
    """Return the header of a common JPEG of a size that is not refused, or None for any other picture."""
    plain = plain_jpeg(encoded) if isinstance(encoded, bytes) else None
    if plain is None or max(plain.height, plain.width) > MAX_SIDE or plain.height * plain.width > MAX_PIXELS:
        return None
    return plain


def _orientation(picture: Image.Image) -> int:
    if not picture.info.get("exif") and picture.format not in ("TIFF", "PNG"):
        return 1
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF blocks are as good as none
        return 1


def to_array(encoded: Encoded, transform: Transform, name: str) -> NDArray[np.uint8]:
    """Return the pixels of a picture brought to the transform's size and channels, [height, width, C] uint8.

    Raises:
        ArtifactError: If the picture is damaged or truncated.
    """
    return _array(encoded, transform, lambda: name)


def row_array(pictures: Pictures, row: int, transform: Transform) -> NDArray[np.uint8]:
    """Return what `to_array` does, of a row, which is named only if something is wrong or the way is long."""
    return _array(pictures.encoded(row), transform, lambda: pictures.name(row))


def _array(encoded: Encoded, transform: Transform, name: Callable[[], str]) -> NDArray[np.uint8]:
    pixels = _whole_jpeg(encoded, transform)
    shape = (transform.height, transform.width, transform.channels)
    if pixels is not None and pixels.shape == (shape if transform.channels == 3 else shape[:2]):
        return pixels.reshape(shape)
    called = name()
    return picture_array(open_picture(encoded if pixels is None else pixels, called), transform, called)


def views_of(pictures: Pictures, row: int, transform: Transform, views: str) -> NDArray[np.uint8]:
    """Return the views of a row, [V, height, width, C] uint8: first what `row_array` returns, then its mirror image.

    "ten-crop" adds the four corners of the picture brought to 1.1 times the size, each followed by its mirror image
    (Sun et al. 2024, "LlamaGen", who extract the codes of ten crops of each image before they train).

    Raises:
        ArtifactError: If the picture is damaged or truncated.
    """
    if VIEWS[views] == 1:
        return row_array(pictures, row, transform)[None]
    encoded = pictures.encoded(row)
    pixels = _array(encoded, transform, lambda: pictures.name(row))
    crops = [pixels]
    if views == "ten-crop":
        height, width = (round(ENLARGED * side) for side in pixels.shape[:2])
        large = _array(encoded, replace(transform, height=height, width=width), lambda: pictures.name(row))
        down, across = height - transform.height, width - transform.width
        corners = ((y, x) for y in (0, down) for x in (0, across))
        crops += [large[y : y + transform.height, x : x + transform.width] for y, x in corners]
    return np.stack([view for crop in crops for view in (crop, crop[:, ::-1])])


def picture_array(picture: Image.Image, transform: Transform, name: str) -> NDArray[np.uint8]:
    """Return what `to_array` does, of an open picture."""
    try:
        if picture.format == "JPEG":
            side = 2 * max(transform.height, transform.width)
            picture.draft(None, (side, side))
        with muted() if picture.format == "TIFF" else nullcontext():  # libtiff speaks of every damaged file
            picture.load()
        if _orientation(picture) != 1:
            picture = ImageOps.exif_transpose(picture)
        picture = _eight_bits(picture)
        picture = _on_white(picture)
        mode = "L" if transform.channels == 1 else "RGB"
        if picture.mode != mode:
            picture = picture.convert(mode)
        picture = _fit(picture, transform)
    except Exception as error:
        raise _undecodable(name, error) from error
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels.reshape(transform.height, transform.width, transform.channels)


def _whole_jpeg(encoded: Encoded, transform: Transform) -> NDArray[np.uint8] | None:
    """Return the pixels of a common JPEG that is not to be shrunk while it is decoded; None for any other picture."""
    plain = _plain(encoded)
    if plain is None or min(plain.height, plain.width) >= 4 * max(transform.height, transform.width):
        return None
    assert isinstance(encoded, bytes)
    try:
        return decode_plain(encoded, plain)
    except ValueError:  # the long way has the words for what is wrong
        return None


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.floor(values * (255 / 65535) + 0.5).astype(np.uint8))
    return picture


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in picture.info:
        return picture
    grey = picture.mode in ("L", "LA", "La")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("L" if grey else "RGB")


def _fit(picture: Image.Image, transform: Transform) -> Image.Image:
    width, height = picture.size
    if (height, width) == (transform.height, transform.width):
        return picture
    scale = min(width / transform.width, height / transform.height)
    across, down = transform.width * scale, transform.height * scale
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, min(width, left + across), min(height, top + down))
    return picture.resize((transform.width, transform.height), Image.Resampling.BICUBIC, box=box)


def ahead(
    function: Callable[[S], T], items: Iterable[S], workers: int, *, prepare: Callable[[], object] | None = None
) -> Iterator[T]:
    """Yield `function(item)` in order, computed by threads that run a bounded way ahead of what was asked for.

    Args:
        function: Called in one of the threads.
        items: Taken as there is room.
        workers: Threads.
        prepare: Called once in each thread before anything else.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, initializer=prepare) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_threads(
    function: Callable[[int], T], rows: Iterable[int], num_workers: int | None, *, rows_per_task: int = ROWS_PER_TASK
) -> Iterator[T]:
    """Yield `function(row)` in order, computed ahead by threads (pictures decode without the interpreter's lock)."""
    workers = num_workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(function, rows)
        return

    def some(chunk: Sequence[int]) -> list[T]:
        return [function(row) for row in chunk]

    for results in ahead(some, batched(rows, rows_per_task), workers):
        yield from results


def workers_for(function: Callable[[int], object], num_rows: int) -> int:
    """Return how many threads `function(row)` is worth, timed on the first rows; at most one a core.

    Between two pictures threads wait for the interpreter's lock. On 16 cores one thread was the fastest for pictures
    of 32 px, 4 were within a third of the fastest from 64 to 256 px.
    """
    seconds = []
    for row in range(min(3, num_rows)):
        started = time.perf_counter()
        function(row)
        seconds.append(time.perf_counter() - started)
    quickest = min(seconds, default=0.0)
    return min(os.cpu_count() or 1, next((n for n, most in WORTH.items() if quickest < most), 1024))


def batched(items: Iterable[S], size: int) -> Iterator[list[S]]:
    """Yield lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def decoded_ahead(
    rows: Pictures, transform: Transform, batch_size: int, *, num_workers: int | None, views: str = "none"
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of all rows in batches [n, height, width, C] uint8; threads decode some of what follows.

    Args:
        rows: Encoded pictures.
        transform: Size and channels.
        batch_size: Rows of a batch.
        num_workers: Threads; None is as many as speed it up.
        views: Of each picture, which follow each other: n is batch_size times as many.
    """

    def decode(row: int) -> NDArray[np.uint8]:
        return views_of(rows, row, transform, views)

    def decode_all(some: Sequence[int]) -> NDArray[np.uint8]:
        return np.concatenate([decode(row) for row in some])

    workers = num_workers or workers_for(decode, len(rows))
    if workers == 1 and num_workers is None:
        yield from ahead(decode_all, batched(range(len(rows)), batch_size), 1)
        return
    task = max(1, min(ROWS_PER_TASK, BYTES_PER_TASK // (transform.height * transform.width * transform.channels)))
    for pictures in batched(in_threads(decode, range(len(rows)), workers, rows_per_task=task), batch_size):
        yield np.concatenate(pictures)


class PixelRows:
    """Pictures as pixels: decoded once into memory, or at every call."""

    def __init__(
        self, rows: Pictures, transform: Transform, *, num_workers: int | None, cache: NDArray[np.uint8] | None
    ) -> None:
        self._rows, self._transform, self._num_workers, self._cache = rows, transform, num_workers, cache

    def __len__(self) -> int:
        return len(self._rows)

    def _decode(self, row: int) -> NDArray[np.uint8]:
        return row_array(self._rows, row, self._transform)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return some rows' pixels, [n, height, width, C] uint8, in the order asked."""
        if self._cache is not None:
            return self._cache[np.asarray(indices, dtype=np.int64)]
        shape = (len(indices), self._transform.height, self._transform.width, self._transform.channels)
        result = np.empty(shape, dtype=np.uint8)
        for number, pixels in enumerate(in_threads(self._decode, map(int, indices), self._num_workers)):
            result[number] = pixels
        return result


def shifted_and_mirrored(
    pixels: NDArray[np.uint8], rng: np.random.Generator, *, most: int, rows: slice
) -> NDArray[np.uint8]:
    """Return pictures moved by up to `most` pixels along each axis, the border repeated, and half of them mirrored.

    Args:
        pixels: This process's rows of the global batch, [n, height, width, C].
        rng: Of the step; what happens to a row of the global batch does not depend on the processes.
        most: Largest shift.
        rows: Which rows of the global batch these are.
    """
    n, height, width, _ = pixels.shape
    draws = rng.random((rows.stop, 3))[rows]
    shifts = np.floor(draws[:, :2] * (2 * most + 1)).astype(np.int64) - most
    y = np.clip(np.arange(height) + shifts[:, :1], 0, height - 1)
    x = np.clip(np.arange(width) + shifts[:, 1:], 0, width - 1)
    x = np.where(draws[:, 2:] < 0.5, x[:, ::-1], x)
    return pixels[np.arange(n)[:, None, None], y[:, :, None], x[:, None, :]]


def load_pixels(
    rows: Pictures, transform: Transform, *, num_workers: int | None = None, max_bytes: int = MAX_CACHE_BYTES
) -> PixelRows:
    """Return the pixels of all rows; they are decoded now and kept if they fit in `max_bytes`.

    Raises:
        ArtifactError: Naming the first picture that cannot be decoded.
    """
    lazy = PixelRows(rows, transform, num_workers=num_workers, cache=None)
    if len(rows) * transform.height * transform.width * transform.channels > max_bytes:
        return lazy
    workers = num_workers or workers_for(lazy._decode, len(rows))
    cache = PixelRows(rows, transform, num_workers=workers, cache=None).batch(range(len(rows)))
    return PixelRows(rows, transform, num_workers=num_workers, cache=cache)
