"""Opening an encoded picture: its header is read and checked, its pixels are not yet decoded."""

import io
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from stage1_vqvae.modalities.pictures.others import other_format
from stage1_vqvae.modalities.pictures.tiff import is_beyond_pillow, is_inverted_mask, is_tiff, read_by_tifffile
from vq_prior.core.errors import ArtifactError
from vq_prior.core.quiet import muted

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_SIDE = 16_384
MAX_PIXELS, MAX_WEBP_PIXELS = 64 << 20, 10 << 20  # the decoder of WebP takes 16 bytes for each pixel

DTYPES = ("uint16", "int16", "uint32", "int32")  # of arrays that are pictures of more than 8 bits
Encoded = bytes | NDArray[Any]


def open_picture(encoded: Encoded, name: str) -> Image.Image:
    """Return a picture whose header was read and checked, its pixels not yet decoded.

    Raises:
        ArtifactError: If it is no picture of a known format, or larger than 16384 a side or 64 megapixels (WebP: 10).
    """
    if isinstance(encoded, np.ndarray):
        try:
            return Image.fromarray(encoded[..., 0] if encoded.ndim == 3 and encoded.shape[-1] == 1 else encoded)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{name} is no picture: {encoded.dtype} {list(encoded.shape)}") from error
    if not encoded:
        raise ArtifactError(f"{name} is empty; remove or replace it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ArtifactError(f"{name} announces more than {MAX_PIXELS} pixels; remove or shrink it") from error
    except Exception as error:  # decoders raise whatever they like on damaged headers
        unread = f"{name} is not a readable picture ({', '.join(FORMATS)}); remove or replace it"
        raise Unreadable(other_format(encoded, name) or unread) from error
    most = MAX_WEBP_PIXELS if picture.format == "WEBP" else MAX_PIXELS
    if max(picture.size) > MAX_SIDE or picture.width * picture.height > most:
        raise ArtifactError(
            f"{name} has {picture.width} x {picture.height} pixels, "
            f"more than {MAX_SIDE} a side or {most} in all; remove or shrink it"
        )
    return picture


class Unreadable(ArtifactError):
    """A file that is no picture, as far as Pillow can tell."""


def opened(encoded: Encoded, name: str) -> tuple[Encoded, Image.Image | None]:
    """Return a picture opened beside its file; of a TIFF that Pillow cannot read, its array in place of the file.

    None stands for a picture of more than 8 bits whose array is all there is to know.

    Raises:
        ArtifactError: What `open_picture` raises, and of a TIFF what it is instead of a picture.
    """
    if isinstance(encoded, bytes) and is_tiff(encoded):
        try:
            picture = open_picture(encoded, name)
            if not is_beyond_pillow(picture):
                return encoded, picture
        except Unreadable:
            pass  # it has other words for it
        encoded = read_by_tifffile(encoded, name, most=MAX_PIXELS)
    if isinstance(encoded, np.ndarray) and encoded.dtype.name in DTYPES:
        return encoded, None
    return encoded, open_picture(encoded, name)


def undecodable(name: str, error: Exception) -> ArtifactError:
    """Return the error of a picture whose data are damaged; decoders raise whatever they like then."""
    return ArtifactError(f"{name} cannot be decoded ({str(error)[:80]}); remove or replace it")


def orientation(picture: Image.Image) -> int:
    """Return by which of the eight turns of EXIF a picture stands upright; 1 is none."""
    if not picture.info.get("exif") and picture.format not in ("TIFF", "PNG"):
        return 1
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF blocks are as good as none
        return 1


def upright(picture: Image.Image) -> Image.Image:
    """Return a picture decoded, and turned as its EXIF block says; in a mask True is white."""
    with muted() if picture.format == "TIFF" else nullcontext():  # libtiff speaks of every damaged file
        picture.load()
    turned = picture if orientation(picture) == 1 else ImageOps.exif_transpose(picture)
    return ImageChops.invert(turned) if is_inverted_mask(picture) else turned
