"""From an encoded picture to uint8 pixels, by one written rule.

1. The first frame is taken and the EXIF rotation applied.
2. 16-bit grey becomes 8-bit: round(v * 255 / 65535).
3. Transparency (alpha, palette or colour key) is laid over white.
4. Anything else (palette, CMYK, YCbCr, ...) becomes RGB; grey codecs take the luma (ITU-R 601-2).
5. The largest centred part of the wanted proportions is resized to the wanted size by an
   antialiased bicubic filter: short side to size, then centre crop. A picture that has the size is left as it is.
   With `--fit pad` or `stretch` the whole picture is: see `fitting.py`.

Letters: C channels.
"""

import io
import warnings
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stage1_vqvae.modalities.pictures.fitting import fitted
from stage1_vqvae.modalities.pictures.jpeg import PlainJPEG, decode_plain, plain_jpeg
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.modalities.sheets import png_bytes, to_picture
from vq_prior.core.errors import ArtifactError
from vq_prior.core.modality import Called, Header
from vq_prior.core.quiet import muted

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_SIDE = 16_384
MAX_PIXELS, MAX_WEBP_PIXELS = 64 << 20, 10 << 20  # the decoder of WebP takes 16 bytes for each pixel

Encoded = bytes | NDArray[np.uint8]


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


def read_header(encoded: Encoded, name: Called) -> Header:
    """Return size (after EXIF rotation) and channels of a picture; see `open_picture` for what is refused."""
    if (plain := _plain(encoded)) is not None:
        return Header((plain.height, plain.width), plain.channels)
    called = name()
    picture = open_picture(encoded, called)
    width, height = picture.size
    if picture.format in ("JPEG", "TIFF", "WEBP", "PNG") and _orientation(picture) in (5, 6, 7, 8):
        width, height = height, width
    grey = picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")
    if picture.mode == "P" and (palette := _palette(picture, called)):
        colours = np.asarray(palette).reshape(-1, 3)
        grey = bool((colours == colours[:, :1]).all())
    return Header((height, width), 1 if grey else 3)


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


def read_picture(encoded: Encoded, transform: Transform, name: Called) -> NDArray[np.uint8]:
    """Return the pixels of a picture brought to the transform's size and channels, [height, width, C] uint8.

    Raises:
        ArtifactError: If the picture is damaged or truncated.
    """
    pixels = _whole_jpeg(encoded, transform)
    shape = (transform.height, transform.width, transform.channels)
    if pixels is not None and pixels.shape == (shape if transform.channels == 3 else shape[:2]):
        return pixels.reshape(shape)
    called = name()
    return picture_array(open_picture(encoded if pixels is None else pixels, called), transform, called)


def picture_array(picture: Image.Image, transform: Transform, name: str) -> NDArray[np.uint8]:
    """Return what `read_picture` does, of an open picture."""
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
        picture = fitted(picture, transform.shape, transform.fit)
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


class PictureFiles:
    """How pictures are read and written; implements `vq_prior.core.modality.Files`."""

    extension = ".png"
    read = staticmethod(read_picture)

    def inspect(self, encoded: Encoded, name: Called) -> Header:
        """Return size and channels of a picture."""
        return read_header(encoded, name)

    def own_transform(self, header: Header) -> Transform:
        """Return the picture's own size, grey or colour."""
        height, width = header.shape
        return Transform(height, width, header.channels)

    def encode(self, stored: NDArray[np.uint8]) -> bytes:
        """Return the PNG file of pixels [height, width, 1 or 3]."""
        return png_bytes(to_picture(stored))
