"""TIFFs of science: what Pillow takes for something else, or cannot read, is read by tifffile or refused by name."""

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vq_prior.core.errors import ArtifactError
from vq_prior.core.quiet import muted

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS, PHOTOMETRIC, DESCRIPTION, PLANAR, SOFTWARE, SIGNED = 258, 262, 270, 284, 305, 339
MOST_BANDS = 32  # a last axis of no more than this is taken for bands, not for the width of pages
READS = "pictures have integers, 1 or 3 channels"


def is_tiff(encoded: bytes) -> bool:
    """Return whether a file begins as a TIFF does, one of more than 4 GB among them."""
    return encoded[:4] in MAGIC


def signed_bytes(picture: Image.Image) -> bool:
    """Return whether a TIFF holds numbers of -128..127, which Pillow takes for 0..255."""
    return picture.format == "TIFF" and picture.mode == "L" and _tag(picture, SIGNED) == (2,)


def is_inverted_mask(picture: Image.Image) -> bool:
    """Return whether a TIFF is a mask of tifffile: its file says that white is 0, and 0 is False."""
    if picture.format != "TIFF" or picture.mode != "1" or _tag(picture, PHOTOMETRIC) != 0:
        return False
    return str(_tag(picture, SOFTWARE)).startswith("tifffile")


def require_one_reading(picture: Image.Image, name: str) -> None:
    """Raise `ArtifactError` if an open TIFF may be an array of pages, bands or colours, and does not say which."""
    shape = _shape_of_array(picture)
    if picture.format != "TIFF" or shape is None or len(shape) != 3:
        return
    if _tag(picture, PLANAR) == 2:
        raise _pages_or_colour(shape, name)
    what = f"{name} holds an array {shape}"
    pages, height, width = shape
    like_bands = width < min(pages, height) and (width <= MOST_BANDS or pages == height)
    if getattr(picture, "is_animated", False) and like_bands:
        raise ArtifactError(
            f"{what}, which may be {width} bands or {pages} pages of {height} x {width}; {READS}: "
            "take three of the bands, or every page as an image by --frames all"
        )


def _pages_or_colour(shape: list[int], name: str) -> ArtifactError:
    return ArtifactError(
        f"{name} holds an array {shape}, which may be {shape[0]} pages or the channels of one picture; "
        f"write pages with photometric='minisblack', or a colour picture as [{shape[1]}, {shape[2]}, {shape[0]}]"
    )


def _shape_of_array(picture: Image.Image) -> list[int] | None:
    """Return the shape of the array that tifffile says it wrote, None if it does not."""
    text = _tag(picture, DESCRIPTION) if picture.format == "TIFF" else None
    try:
        shape = json.loads(text)["shape"] if isinstance(text, str) and text.startswith("{") else None
    except (ValueError, KeyError, RecursionError):
        return None
    return shape if isinstance(shape, list) and all(type(side) is int for side in shape) else None


def is_beyond_pillow(picture: Image.Image) -> bool:
    """Return whether Pillow opens a TIFF and cannot read it: 16 bits in separate planes."""
    return picture.format == "TIFF" and _tag(picture, PLANAR) == 2 and max(_tag(picture, BITS) or (8,)) > 8


def _tag(picture: Image.Image, number: int) -> Any:
    return getattr(picture, "tag_v2", {}).get(number)


def read_by_tifffile(encoded: bytes, name: str, *, most: int) -> NDArray[Any]:
    """Return the first page of a TIFF that Pillow cannot read, [height, width] or [height, width, 3 or 4] integers.

    Args:
        encoded: The file.
        name: What to call it.
        most: Pixels that it may have.

    Raises:
        ArtifactError: If it is no picture, too large, damaged, or tifffile is not there.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ArtifactError(
            f"{name} is a TIFF that Pillow cannot read ({_numbers_by_tags(encoded)}); "
            'pip install "vq-prior[tiff]" reads more of them'
        ) from error
    try:
        with muted(), tifffile.TiffFile(io.BytesIO(encoded)) as file:
            page: Any = file.pages[0]
            what = f"{page.dtype} {list(page.shape)}, axes {page.axes}"
            colour = page.axes in ("YXS", "SYX") and page.photometric == 2 and page.samplesperpixel in (3, 4)
            if page.dtype is None or page.dtype.kind not in "biu" or not (page.axes == "YX" or colour):
                raise ArtifactError(f"{name} is a TIFF of {what}; {READS}")
            if page.axes == "SYX" and page.is_shaped:
                raise _pages_or_colour(list(page.shape), name)
            if len(file.pages) > 1:
                raise ArtifactError(
                    f"{name} is a TIFF of {len(file.pages)} pages of {what}, which only tifffile reads; "
                    "save each as a file of its own"
                )
            if page.imagewidth * page.imagelength > most:
                raise ArtifactError(f"{name} is a TIFF of {what}, more than {most} pixels; shrink it")
            array = np.asarray(page.asarray())
            array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array
    except ArtifactError:
        raise
    except Exception as error:  # it raises whatever it likes on damaged files
        raise ArtifactError(f"{name} is not a readable TIFF ({str(error)[:80]}); remove or replace it") from error
    if array.dtype.itemsize > 4 and array.size:
        if array.min() < -(2**31) or array.max() >= 2**31:
            raise ArtifactError(f"{name} is a TIFF of {what}, with numbers beyond 32 bits")
        array = array.astype(np.int32)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    return array.astype(np.int16 if array.dtype == np.int8 else array.dtype.newbyteorder("="))


def _numbers_by_tags(encoded: bytes) -> str:
    """Return what a TIFF says of its numbers, for who has no tifffile."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file = io.BytesIO(encoded)
    try:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits, samples = tags.get(BITS, (1,)), tags.get(277, 1)
        kind = {1: "integers", 2: "signed integers", 3: "floating-point numbers"}.get(
            tags.get(SIGNED, (1,))[0], "numbers"
        )
        return f"{samples} channels of {bits[0]}-bit {kind}"
    except Exception:  # damaged beyond telling
        return "damaged, or of an unknown kind"
