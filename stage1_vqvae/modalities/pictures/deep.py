"""Pictures of more than 8 bits a channel: their numbers as they are, and those of them that lie in a codec's range.

Pillow keeps grey numbers as they are, but of colour with 16 bits only the upper byte of each: the lower one is asked
for as a second picture, whose bytes are said to stand in the other order.

Letters: C channels.
"""

import re
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1_vqvae.modalities.pictures.fitting import fitted, percent
from stage1_vqvae.modalities.pictures.opening import Encoded, open_picture, upright
from stage1_vqvae.modalities.pictures.settings import MAX_STEPS, PictureHeader, Range
from stage1_vqvae.modalities.pictures.tiff import signed_bytes
from vq_prior.core.errors import UsageError
from vq_prior.core.modality import Header

SHARES = (0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
SEEN_AT_MOST = 1 << 20  # numbers of a picture that its shares are taken from; the least and largest are of all
TWO_BYTES = re.compile(r"(RGBA?|RGBX|LA);16([BLN])")
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
NATIVE = {} if sys.byteorder == "big" else {"I;16BS": "I;16S", "I;32BS": "I;32S"}  # libtiff has swapped these already
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2
OFFSET = "vq-prior offset"  # of a PNG we wrote: what is to be added to its numbers


@dataclass(frozen=True)
class Numbers:
    """A picture of more than 8 bits.

    Attributes:
        values: Integers [height, width] or [height, width, 3].
        alpha: How much each pixel covers, [height, width] in [0, 1], or None.
        least: The least number that its file could hold.
        most: The largest.
    """

    values: NDArray[Any]
    alpha: NDArray[np.float32] | None
    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class DeepHeader(PictureHeader):
    """What is known of a picture of more than 8 bits.

    Attributes:
        least: The least number that its file could hold.
        most: The largest.
        quantiles: The numbers that the shares `SHARES` of its pixels do not exceed; the first is the least there is.
    """

    least: int
    most: int
    quantiles: tuple[int, ...]


def is_deep(picture: Image.Image) -> bool:
    """Return whether an open picture, its pixels not yet decoded, has more than 8 bits a channel."""
    if picture.mode == "I" or picture.mode.startswith("I;16") or signed_bytes(picture):
        return True
    if picture.format == "PPM":
        args = picture.tile[0].args  # type: ignore[attr-defined]
        return isinstance(args, tuple) and len(args) == 2 and args[1] > 255
    return picture.format in ("PNG", "TIFF") and TWO_BYTES.fullmatch(_raw_mode(picture)) is not None


def numbers_of(encoded: Encoded | None, picture: Image.Image | None, frame: int = 0) -> Numbers:
    """Return the numbers of a picture that is deep, upright; raises whatever decoders do on damaged data.

    Args:
        encoded: Its file or array, or None for a picture of Pillow that a Python caller gave.
        picture: It, opened; not of an array.
        frame: Which one of its file.
    """
    if isinstance(encoded, np.ndarray):
        return _of_array(encoded)
    assert picture is not None
    if picture.format == "PPM" and encoded is not None:
        return _of_portable(encoded, picture)
    raw = _raw_mode(picture)
    if signed_bytes(picture):
        return Numbers(np.asarray(upright(picture)).view(np.int8), None, -128, 127)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        if raw in NATIVE and picture.tile[0].codec_name == "libtiff":  # type: ignore[attr-defined]
            picture.tile = [_with_raw_mode(tile, NATIVE[raw]) for tile in picture.tile]  # type: ignore[attr-defined]
        values = np.asarray(upright(picture))
        if raw in ("I;32N", "I;32", "I;32B", "I;32L"):
            values = values.view(np.uint32)
        least, most = _bounds(picture.mode, raw)
    else:
        assert encoded is not None
        low = open_picture(encoded, "")
        low.seek(frame)
        low.tile = [_in_other_order(tile) for tile in low.tile]  # type: ignore[attr-defined]
        halves = [np.asarray(upright(each)).astype(np.uint16) for each in (picture, low)]
        values, least, most = halves[0] << 8 | halves[1], 0, 65535
        if raw.startswith("LA"):  # the four bytes of a pixel are grey and alpha
            values = np.stack([_pair(halves[1], 0), _pair(halves[1], 2)], axis=-1)
    offset = _offset(picture)
    if offset:
        values, least, most = values.astype(np.int64) + offset, least + offset, most + offset
    return _with_alpha(values, picture.info.get("transparency"), least, most)


def _pair(pixels: NDArray[Any], first: int) -> NDArray[Any]:
    """Return the numbers of two bytes each that stand in channels `first` and `first + 1`."""
    return pixels[..., first] << 8 | pixels[..., first + 1]


def _raw_mode(picture: Image.Image) -> str:
    """Return how the bytes of a picture that is not decoded are arranged, as Pillow calls it; else nothing."""
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return ""
    args = tiles[0].args
    return str(args if isinstance(args, str) else args[0])


def _in_other_order(tile: Any) -> Any:
    match = TWO_BYTES.fullmatch(tile.args if isinstance(tile.args, str) else tile.args[0])
    assert match is not None
    return _with_raw_mode(tile, "RGBA" if match[1] == "LA" else f"{match[1]};16{OTHER_ORDER[match[2]]}")


def _with_raw_mode(tile: Any, raw: str) -> Any:
    return tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))


def _bounds(mode: str, raw: str) -> tuple[int, int]:
    """Return the least and largest number that a file of grey numbers could hold."""
    if raw == "I;12":
        return 0, 4095
    if raw in ("I;16S", "I;16BS", "I;16NS"):
        return -(2**15), 2**15 - 1
    if raw in ("I;32N", "I;32", "I;32B", "I;32L"):
        return 0, 2**32 - 1
    if mode.startswith("I;16") or raw.startswith("I;16"):
        return 0, 2**16 - 1
    return -(2**31), 2**31 - 1


def _of_array(array: NDArray[Any]) -> Numbers:
    kind = np.iinfo(array.dtype)
    values = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (2, 3, 4)):
        raise ValueError(f"numbers {list(array.shape)} are no picture")
    return _with_alpha(values, None, int(kind.min), int(kind.max))


def _of_portable(encoded: bytes, picture: Image.Image) -> Numbers:
    """Return the numbers of a PGM or PPM file, which Pillow spreads over 16 bits, or 8 in colour."""
    tile = picture.tile[0]  # type: ignore[attr-defined]
    most = 65535 if tile.codec_name == "raw" else int(tile.args[1])
    shape = (picture.height, picture.width, 3)[: 3 if picture.mode == "RGB" else 2]
    values: NDArray[Any]
    if tile.codec_name == "ppm_plain":
        values = np.array(encoded[tile.offset :].split(), dtype=np.int64).reshape(shape)
    else:
        count = int(np.prod(shape))
        values = np.frombuffer(encoded, ">u2", count=count, offset=tile.offset).astype(np.uint16).reshape(shape)
    return Numbers(np.minimum(values, most), None, 0, most)


def _with_alpha(values: NDArray[Any], key: Any, least: int, most: int) -> Numbers:
    """Return numbers and how opaque they are, from the last of two or four channels, or from the one transparent
    colour.
    """
    if values.ndim == 3 and values.shape[-1] in (2, 4):
        alpha = values[..., -1].astype(np.float32) / np.float32(most)
        return Numbers(values[..., 0] if values.shape[-1] == 2 else values[..., :3], alpha, least, most)
    if isinstance(key, int | tuple):
        differs = values != np.asarray(key)
        return Numbers(values, (differs if values.ndim == 2 else differs.any(axis=-1)).astype(np.float32), least, most)
    return Numbers(values, None, least, most)


def deep_header(numbers: Numbers, *, several: bool) -> DeepHeader:
    """Return what is to be known of a picture before it is brought to a range; transparent pixels do not count."""
    values, alpha = numbers.values, numbers.alpha
    seen = values if alpha is None or not alpha.any() else values[alpha > 0]
    flat = seen.reshape(-1)
    some = np.quantile(flat[:: max(1, flat.size // SEEN_AT_MOST)], SHARES, method="nearest")
    quantiles = (int(flat.min()), *map(int, some[1:-1]), int(flat.max()))
    channels = 1 if values.ndim == 2 else 3
    shape, bounds = (values.shape[0], values.shape[1]), {"least": numbers.least, "most": numbers.most}
    return DeepHeader(shape, channels, several, alpha is not None, quantiles=quantiles, **bounds)


def range_of(headers: Sequence[Header]) -> Range | None:
    """Return the least and largest number of pictures that all have more than 8 bits; None if one has not.

    Raises:
        UsageError: If these are too far apart for 16 bits.
    """
    deep = [header for header in headers if isinstance(header, DeepHeader)]
    if not deep or len(deep) < len(headers):
        return None
    low, high = min(header.quantiles[0] for header in deep), max(header.quantiles[-1] for header in deep)
    if high - low > MAX_STEPS:
        raise UsageError(
            f"the images hold numbers from {low} to {high}, which 16 bits cannot; "
            f"say by --range LOW..HIGH which {MAX_STEPS + 1} of them count"
        )
    return low, max(high, low + 1)


def told_of_range(headers: Sequence[Header], chosen: Range | None) -> list[str]:
    """Return which numbers of pictures with these headers a codec sees, and what is cut; nothing where all have 8 bits.

    Args:
        headers: Of all pictures.
        chosen: The codec's range; None is that of a byte.
    """
    deep = [header for header in headers if isinstance(header, DeepHeader)]
    plain, said = len(headers) - len(deep), []
    if deep:
        least, most = min(header.least for header in deep), max(header.most for header in deep)
        low, high = chosen or (0, 65535)
        line = f"range {low}..{high} of {least}..{most}"
        if chosen is None:
            some = f"{len(deep)} of {len(headers)} images" if plain else "images"
            line += f", in 8 bits: {some} of more bits lose the rest"
        elif png_offset(chosen):
            line += f"; PNGs that are written hold each number plus {-png_offset(chosen)}"
        said = [line, *_number_notes(deep, low, high)]
    if plain and chosen is not None:
        said.append(f"{plain} of {len(headers)} images have 8 bits: their 0..255 is taken for {chosen[0]}..{chosen[1]}")
    return said


def _number_notes(deep: Sequence[DeepHeader], low: int, high: int) -> list[str]:
    """Return what pictures have beyond a range, and how little of it they use."""
    least, most = min(header.quantiles[0] for header in deep), max(header.quantiles[-1] for header in deep)
    said = []
    if least < low or most > high:
        shares = [_share_beyond(header, low, high) for header in deep]
        said.append(
            f"{percent(sum(shares) / len(shares))} of the numbers, which reach from {least} to {most}, "
            f"are cut to {low}..{high}"
        )
    usual = min(header.quantiles[1] for header in deep), max(header.quantiles[-2] for header in deep)
    if 2 * (usual[1] - usual[0]) < high - low:
        said.append(
            f"99.8% of the numbers of every image lie in {usual[0]}..{usual[1]}; "
            f"train-vqvae --range {usual[0]}..{usual[1]} spreads these over the whole range"
        )
    return said


def _share_beyond(header: DeepHeader, low: int, high: int) -> float:
    """Return about which share of a picture's numbers lies beyond a range."""
    numbers, least, most = header.quantiles, header.quantiles[0], header.quantiles[-1]
    below = float(np.interp(low, numbers, SHARES)) if least < low else 0.0
    return below + (1 - float(np.interp(high, numbers, SHARES)) if most > high else 0.0)


def stored_numbers(
    numbers: Numbers, chosen: Range, shape: tuple[int, int], channels: int, fit: str, resize: str
) -> NDArray[Any]:
    """Return numbers cut to a range and brought to a size and channels, [height, width, C], in their own units.

    Transparency is laid over white, the largest number of the range.
    """
    low, high = chosen
    dtype, span = dtype_of(chosen), np.float32(high - low)
    values = np.clip(numbers.values, low, high)
    grey = values.ndim == 2
    if numbers.alpha is None and values.shape[:2] == shape and (channels == 3 or grey):
        return np.repeat(values.astype(dtype)[..., None], channels, axis=2) if grey else values.astype(dtype)
    part = (values.astype(np.int64) - low).astype(np.float32) / span
    if not grey and channels == 1:
        part, grey = part @ LUMA, True
    if numbers.alpha is not None:
        alpha = numbers.alpha if grey else numbers.alpha[..., None]
        part = part * alpha + (1 - alpha)
    layers = [part] if grey else [part[..., channel] for channel in range(3)]
    pictures = [fitted(Image.fromarray(np.ascontiguousarray(x)), shape, fit, resize=resize) for x in layers]
    brought = np.stack([np.asarray(picture) for picture in pictures], -1)
    whole = np.floor(brought.clip(0, 1) * span + np.float32(0.5)).astype(np.int64) + low
    return np.repeat(whole, channels // whole.shape[-1], axis=2).astype(dtype)


def widened(pixels: NDArray[np.uint8], chosen: Range) -> NDArray[Any]:
    """Return pixels of a byte each, 0..255, spread over a range."""
    low, high = chosen
    return (np.floor(pixels.astype(np.float64) * ((high - low) / 255) + 0.5).astype(np.int64) + low).astype(
        dtype_of(chosen)
    )


def dtype_of(chosen: Range) -> np.dtype[Any]:
    """Return the smallest dtype of at least 16 bits that holds a range."""
    low, high = chosen
    fitting = [name for name in ("uint16", "int16") if np.iinfo(name).min <= low and high <= np.iinfo(name).max]
    return np.dtype((*fitting, "int32")[0])


def png_offset(chosen: Range) -> int:
    """Return what is to be added to the numbers of a 16-bit PNG, which has none below 0: 0 where it holds the range."""
    return 0 if chosen[0] >= 0 and chosen[1] <= 65535 else chosen[0]


def deep_png(stored: NDArray[Any], offset: int) -> bytes:
    """Return the 16-bit PNG file of numbers [height, width, 1 or 3], of which `offset` is taken away.

    Pillow writes no colour of 16 bits. An offset that is not 0 stands in a text chunk.
    """
    height, width, channels = stored.shape
    lines = (stored.astype(np.int64) - offset).astype(">u2").reshape(height, -1).view(np.uint8)
    differences = np.diff(lines, axis=0, prepend=np.zeros((1, lines.shape[1]), np.uint8))  # filter 2: to the line above
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), differences], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if channels == 1 else 2, 0, 0, 0)
    text = [(b"tEXt", f"{OFFSET}\0{offset}".encode("latin-1"))] if offset else []
    chunks = [(b"IHDR", header), *text, (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _offset(picture: Image.Image) -> int:
    """Return what a PNG of ours says is to be added to its numbers."""
    text = picture.info.get(OFFSET) if picture.format == "PNG" else None
    return int(text) if isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,10}", text) else 0
