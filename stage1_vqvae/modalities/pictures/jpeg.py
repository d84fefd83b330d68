"""The common JPEG, read without a detour: its header in a few steps, its pixels straight from the decoder.

Pixels are those of Pillow, bit for bit, whichever decoder is installed: the decoder of the extra `fast-jpeg` is used
for a kind of file once it gave the same pixels as Pillow's for the first of that kind, and never after it did not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import simplejpeg
except Exception:  # the extra `fast-jpeg` is not installed, or was made for another numpy
    simplejpeg = None

MODES = {1: "L", 3: "RGB"}
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all of Huffman codes
PASSED_OVER = (0xDB, 0xC4, 0xDD, 0xE0, 0xFE)  # tables, restart interval, JFIF, comment
TRUSTED: dict[bytes, bool] = {}  # kind of file -> whether the fast decoder's pixels are Pillow's


@dataclass(frozen=True)
class PlainJPEG:
    """What the header of a common JPEG says.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 or 3.
        kind: Frame type, components and their sampling: what decides how pixels are computed.
    """

    height: int
    width: int
    channels: int
    kind: bytes


_latest: tuple[bytes, PlainJPEG | None] = (b"\xff\xd8\xff\xda", None)  # a header as far as its data, what it says


def plain_jpeg(encoded: bytes) -> PlainJPEG | None:
    """Return what the header says of a grey or colour JPEG of 8 bits; None for any other picture.

    None also for what asks for more than decoding: EXIF, colour profiles, Adobe's and all other application markers.
    A file that begins with the very bytes of the header before it is not looked at again: so are most of a data set.
    """
    global _latest
    frame = None
    at, last = 2, len(encoded) - 10
    header, described = _latest
    if encoded.startswith(header) and len(header) - 2 < last:
        return described
    if encoded[:2] != b"\xff\xd8":
        return None
    while at < last and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in FRAMES and frame is None:
            frame = encoded[at + 1 : at + 2] + encoded[at + 4 : at + 10 + 3 * encoded[at + 9]]
        elif marker == 0xDA:
            plain = None if frame is None else _described(frame)
            if plain is not None:
                _latest = (encoded[: at + 2], plain)
            return plain
        elif marker not in PASSED_OVER:
            return None
        at += 2 + (encoded[at + 2] << 8 | encoded[at + 3])
    return None


def _described(frame: bytes) -> PlainJPEG | None:
    height, width = frame[2] << 8 | frame[3], frame[4] << 8 | frame[5]
    channels = frame[6]
    if frame[1] != 8 or channels not in MODES or not height or not width or len(frame) != 7 + 3 * channels:
        return None
    return PlainJPEG(height, width, channels, frame[:1] + frame[6:])


def decode_plain(encoded: bytes, plain: PlainJPEG) -> NDArray[np.uint8]:
    """Return Pillow's pixels of a common JPEG, [height, width] or [height, width, 3] uint8.

    Raises:
        ValueError: If it is damaged or truncated.
    """
    if simplejpeg is None:
        return _pillow(encoded, plain)
    trusted = TRUSTED.get(plain.kind)
    if trusted is False:
        return _pillow(encoded, plain)
    try:
        pixels = simplejpeg.decode_jpeg(encoded, "GRAY" if plain.channels == 1 else "RGB")
        pixels = pixels[..., 0] if plain.channels == 1 else pixels
    except ValueError:  # it refuses more than Pillow does: Pillow decides
        return _pillow(encoded, plain)
    if trusted is None:
        expected = _pillow(encoded, plain)
        TRUSTED[plain.kind] = np.array_equal(pixels, expected)
        return expected
    return pixels


def _pillow(encoded: bytes, plain: PlainJPEG) -> NDArray[np.uint8]:
    """Return the pixels from Pillow's decoder, called directly: its reading of the header costs as much again."""
    mode = MODES[plain.channels]
    picture = Image.frombytes(mode, (plain.width, plain.height), encoded, "jpeg", mode, "")
    shape = (plain.height, plain.width, 3) if plain.channels == 3 else (plain.height, plain.width)
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(shape)  # half the time of np.asarray(picture)
