"""What a user may say of pictures, and what is chosen where nothing is said. Imports nothing heavy."""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from vq_prior.core.errors import UsageError
from vq_prior.core.modality import Facts, Header
from vq_prior.core.settings import Unsaid

MAX_SIDE = 4096
FITS = ("crop", "pad", "stretch")
ALPHAS, RESIZES = ("white", "keep"), ("bicubic", "nearest")  # the first of each is what is done where nothing is said
Range = tuple[int, int]  # the least and the largest number of pictures of more than 8 bits that a codec tells apart
MAX_STEPS = 65_535
SQUARES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
COLUMNS = ("image", "img", "jpg", "png", "pixels")


@dataclass(frozen=True)
class PictureHeader(Header):
    """What is known of a picture before it is decoded.

    Attributes:
        alpha: Whether it says of its pixels how much they cover: by a channel, a palette or a transparent colour.
    """

    alpha: bool = False


def has_alpha(header: Header) -> bool:
    """Return whether a row with this header may be transparent."""
    return isinstance(header, PictureHeader) and header.alpha


@dataclass(kw_only=True)
class PictureSize:
    """The flag of a training on pictures."""

    image_size: str | None = None
    """Side in pixels ("32"), or height x width ("48x40"); left out: the size of the images, or a square near it."""
    fit: Annotated[Literal["crop", "pad", "stretch"] | None, Unsaid()] = None
    """How images of other proportions come into that size: crop (the largest centred part of them, and how much is cut
    away is said), pad (the whole, around it its border repeated, or with --alpha keep nothing) or stretch (the whole,
    out of proportion). Left out: crop."""
    resize: Annotated[Literal["bicubic", "nearest"] | None, Unsaid()] = None
    """How images of another size are resized: bicubic (smoothed) or nearest (pixel art: every pixel is one of the
    image, none is mixed; with --fit pad enlarged by whole factors). Left out: bicubic."""
    alpha: Annotated[Literal["white", "keep"] | None, Unsaid()] = None
    """What becomes of transparency: white (images are laid over it) or keep (the codec has alpha as one more channel,
    and its images come out as transparent as the data). Left out: white."""
    range: Annotated[str | None, Unsaid()] = field(default="data", metadata={"before": None})
    """Of images of more than 8 bits: which of their numbers are kept apart, LOW..HIGH (0..4095), others are cut to
    these; data (from the least to the largest number there is) or 8-bit (0..65535, as 256 steps)."""


@dataclass(kw_only=True)
class CodecSize:
    """The flag of a codec whose size is open."""

    image_size: str | None = None
    """Side in pixels ("256"), or height x width ("48x40"), for a codec of transformers or diffusers; left out: the size
    its folder names. That of our own codecs is fixed."""


def chosen_size(settings: PictureSize | CodecSize) -> tuple[int, int] | None:
    """Return the (height, width) that was asked for, None if it was left open; raises what `parse_size` does."""
    return None if settings.image_size is None else parse_size(settings.image_size)


def holds_pictures(dtype: str, shape: tuple[int, ...]) -> bool:
    """Return whether an array is pictures: [N, height, width] of 8 or 16 bits, or 1, 3 or 4 channels as a last axis."""
    return dtype in ("uint8", "uint16", "int16") and (len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3, 4)))


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "32" or "48x40" (height x width).

    Raises:
        UsageError: If it is neither, or a side is not between 4 and 4096.
    """
    match = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text.strip().lower())
    height = int(match[1]) if match else 0
    width = int(match[2] or match[1]) if match else 0
    if not (4 <= height <= MAX_SIDE and 4 <= width <= MAX_SIDE):
        raise UsageError(
            f"--image-size must be a side such as 32, or height x width such as 48x40, "
            f"each between 4 and {MAX_SIDE}, got {text}"
        )
    return height, width


def parse_range(text: str) -> Range | None:
    """Return (low, high) of "0..4095" or "-704..1408", None of "8-bit".

    Raises:
        UsageError: If it is none of these, or holds more numbers than 16 bits.
    """
    if text == "8-bit":
        return None
    match = re.fullmatch(r"(-?[0-9]{1,10})\.\.(-?[0-9]{1,10})", text.strip())
    low, high = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < high - low <= MAX_STEPS or not -(2**31) <= low < high < 2**31:
        raise UsageError(
            f"--range must be LOW..HIGH such as 0..4095 or -704..1408, LOW the smaller and at most {MAX_STEPS} apart, "
            f"or data, or 8-bit, got {text}"
        )
    return low, high


def default_size(facts: Facts, device_type: str, *, whole: bool = False) -> tuple[int, int]:
    """Return the size most images have if it is not too large, else the largest square that most images fill.

    At most 64 pixels a side on a CPU, 256 elsewhere. Where images are kept whole, a size that most of them have is
    made smaller, until it has no more pixels than such a square, instead of a square of it.
    """
    largest = 64 if device_type == "cpu" else 256
    common = facts.common_shape
    if common is not None and min(common) >= 4 and (whole or max(common) <= largest):
        scale = min(1.0, largest / math.sqrt(common[0] * common[1]))
        height, width = (min(MAX_SIDE, max(4, round(side * scale))) for side in common)
        return height, width
    side = max((side for side in SQUARES if side <= min(facts.short_side, largest)), default=SQUARES[0])
    return side, side
