"""From an encoded picture to the pixels of a codec's form, by one written rule.

1. The first frame is taken, or that which a row is of, and the EXIF rotation applied.
2. 16-bit grey becomes 8-bit: round(v * 255 / 65535). A codec with a range keeps the numbers of more than 8 bits that
   lie in it, see `deep.py`; pictures of 8 bits are spread over it.
3. Transparency (alpha, palette or colour key) is laid over white, or kept: see `alpha.py`.
4. Anything else (palette, CMYK, YCbCr, ...) becomes RGB; grey codecs take the luma (ITU-R 601-2).
5. The largest centred part of the wanted proportions is resized to the wanted size by an
   antialiased bicubic filter: short side to size, then centre crop. A picture that has the size is left as it is.
   With `--fit pad` or `stretch` the whole picture is, and `--resize nearest` mixes no pixels: see `fitting.py`.

Letters: C channels.
"""

from dataclasses import replace
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1_vqvae.modalities.pictures.alpha import is_transparent, resized, straight
from stage1_vqvae.modalities.pictures.deep import (
    DeepHeader,
    deep_header,
    deep_png,
    is_deep,
    numbers_of,
    png_offset,
    stored_numbers,
    widened,
)
from stage1_vqvae.modalities.pictures.fitting import fitted
from stage1_vqvae.modalities.pictures.frames import all_frames, holds_several
from stage1_vqvae.modalities.pictures.jpeg import PlainJPEG, decode_plain, plain_jpeg
from stage1_vqvae.modalities.pictures.opening import (
    MAX_PIXELS,
    MAX_SIDE,
    Encoded,
    open_picture,
    opened,
    orientation,
    undecodable,
    upright,
)
from stage1_vqvae.modalities.pictures.settings import MAX_STEPS, PictureHeader, Range
from stage1_vqvae.modalities.pictures.tiff import require_one_reading
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.modalities.sheets import png_bytes, to_picture
from vq_prior.core.modality import Called, Header


def read_header(encoded: Encoded, name: Called) -> Header:
    """Return size (after EXIF rotation) and channels of a picture; see `open_picture` for what is refused.

    One of more than 8 bits is decoded, for its numbers are part of what is to be known.
    """
    if (plain := _plain(encoded)) is not None:
        return PictureHeader((plain.height, plain.width), plain.channels)
    called = name()
    encoded, picture = opened(encoded, called)
    several = picture is not None and holds_several(picture)
    if picture is not None:
        require_one_reading(picture, called)
    if picture is None or is_deep(picture):
        try:
            return deep_header(numbers_of(encoded, picture), several=several)
        except Exception as error:
            raise undecodable(called, error) from error
    width, height = picture.size
    if picture.format in ("JPEG", "TIFF", "WEBP", "PNG") and orientation(picture) in (5, 6, 7, 8):
        width, height = height, width
    grey = picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")
    if picture.mode == "P" and (palette := _palette(picture, called)):
        colours = np.asarray(palette).reshape(-1, 3)
        grey = bool((colours == colours[:, :1]).all())
    return PictureHeader((height, width), 1 if grey else 3, several, is_transparent(picture))


def _palette(picture: Image.Image, name: str) -> list[int] | None:
    try:
        return picture.getpalette("RGB")  # decodes the pixels
    except Exception as error:
        raise undecodable(name, error) from error


def _plain(encoded: Encoded) -> PlainJPEG | None:
    """Return the header of a common JPEG of a size that is not refused, or None for any other picture."""
    plain = plain_jpeg(encoded) if isinstance(encoded, bytes) else None
    if plain is None or max(plain.height, plain.width) > MAX_SIDE or plain.height * plain.width > MAX_PIXELS:
        return None
    return plain


def read_picture(encoded: Encoded, transform: Transform, name: Called) -> NDArray[Any]:
    """Return the pixels of a picture brought to the transform's size and channels, [height, width, C].

    They are uint8, or of a codec with a range the numbers in it.

    Raises:
        ArtifactError: If the picture is damaged or truncated.
    """
    if transform.range is not None:
        return _read_numbers(*opened(encoded, name()), transform, name())
    pixels = _whole_jpeg(encoded, transform)
    shape = (transform.height, transform.width, transform.channels)
    if pixels is not None and pixels.shape == (shape if transform.channels == 3 else shape[:2]):
        return pixels.reshape(shape)
    called = name()
    encoded, picture = opened(encoded, called) if pixels is None else (encoded, open_picture(pixels, called))
    if picture is None:  # an array
        picture = open_picture(eight_bits(encoded), called)
    return picture_array(picture, transform, called)


def _read_numbers(
    encoded: Encoded | None, picture: Image.Image | None, transform: Transform, name: str
) -> NDArray[Any]:
    """Return the numbers of a picture, of its file or as it is open, that lie in the transform's range."""
    assert transform.range is not None
    if picture is not None and not is_deep(picture):
        return widened(picture_array(picture, replace(transform, range=None), name), transform.range)
    try:
        numbers = numbers_of(encoded, picture)
        form = transform.shape, transform.channels, transform.fit, transform.resize
        return stored_numbers(numbers, transform.range, *form)
    except Exception as error:
        raise undecodable(name, error) from error


def picture_array(picture: Image.Image, transform: Transform, name: str) -> NDArray[Any]:
    """Return what `read_picture` does, of an open picture."""
    if transform.range is not None:
        return _read_numbers(None, picture, transform, name)
    try:
        if picture.format == "JPEG" and transform.resize != "nearest":
            side = 2 * max(transform.height, transform.width)
            picture.draft(None, (side, side))
        if transform.alpha == "keep":
            pixels = straight(_with_key(upright(picture)), transform.channels)
            return resized(pixels, transform.shape, transform.fit, transform.resize)
        picture = _on_white(_eight_bits(upright(picture)))
        mode = "L" if transform.channels == 1 else "RGB"
        if picture.mode != mode:
            picture = picture.convert(mode)
        picture = fitted(picture, transform.shape, transform.fit, resize=transform.resize)
    except Exception as error:
        raise undecodable(name, error) from error
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels.reshape(transform.height, transform.width, transform.channels)


def _whole_jpeg(encoded: Encoded, transform: Transform) -> NDArray[np.uint8] | None:
    """Return the pixels of a common JPEG that is not to be shrunk while it is decoded; None for any other picture."""
    plain = _plain(encoded)
    shrunk = transform.resize != "nearest"  # by the decoder, if much is to be lost
    if plain is None or (shrunk and min(plain.height, plain.width) >= 4 * max(transform.height, transform.width)):
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
        return Image.fromarray(eight_bits(np.asarray(picture)))
    return picture


def _with_key(picture: Image.Image) -> Image.Image:
    """Return a picture in 8 bits; grey of 16 bits with a transparent number gets a channel of alpha."""
    eight, key = _eight_bits(picture), picture.info.get("transparency")
    if eight is picture or not isinstance(key, int):
        return eight
    opaque = np.where(np.asarray(picture) == key, 0, 255).astype(np.uint8)
    return Image.merge("LA", (eight, Image.fromarray(opaque)))


def eight_bits(numbers: Any) -> NDArray[np.uint8]:
    """Return numbers of 0..65535 as 0..255; those beyond are cut."""
    values = numbers.astype(np.float64).clip(0, 65535)
    pixels: NDArray[np.uint8] = np.floor(values * (255 / 65535) + 0.5).astype(np.uint8)
    return pixels


def _on_white(picture: Image.Image) -> Image.Image:
    if not is_transparent(picture):
        return picture
    grey = picture.mode in ("L", "LA", "La")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("L" if grey else "RGB")


@cache
def reader_version() -> str:
    """Return a text that differs wherever a header may be read in another way: of our own code and of libraries."""
    code = sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    versions = []
    for name in ("pillow", "numpy", "tifffile"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return ", ".join([code.hexdigest(), *versions])


class PictureFiles:
    """How pictures are read and written; implements `vq_prior.core.modality.Files`.

    Args:
        range: Of the numbers that are stored of pictures of more than 8 bits; None is 8 bits.
    """

    extension = ".png"
    read = staticmethod(read_picture)
    frames = staticmethod(all_frames)
    header_kinds = (PictureHeader, DeepHeader)
    reader_version = staticmethod(reader_version)

    def __init__(self, range: Range | None = None) -> None:
        self.range = range

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of files that are written."""
        offset = 0 if self.range is None else png_offset(self.range)
        return (f"the PNGs hold each number plus {-offset}, for they have none below 0",) if offset else ()

    def inspect(self, encoded: Encoded, name: Called) -> Header:
        """Return size and channels of a picture."""
        return read_header(encoded, name)

    def own_transform(self, header: Header) -> Transform:
        """Return the picture's own size, grey or colour, and all numbers it has of more than 8 bits."""
        height, width = header.shape
        low, high = (header.quantiles[0], header.quantiles[-1]) if isinstance(header, DeepHeader) else (0, 0)
        own = (low, max(high, low + 1)) if isinstance(header, DeepHeader) and high - low <= MAX_STEPS else None
        return Transform(height, width, header.channels, range=own)

    def encode(self, stored: NDArray[Any]) -> bytes:
        """Return the PNG file of pixels [height, width, C], of 16 bits in the source's units where these are."""
        if self.range is None or stored.dtype == np.uint8:
            return png_bytes(to_picture(stored))
        return deep_png(stored, png_offset(self.range))
