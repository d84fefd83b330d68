"""Pictures as numbers: uint8 pixels [height, width, C] in memory, float32 [B, C, height, width] in [-1, 1] to networks.

Letters: B batch, C channels, n pictures, V views.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_vqvae.modalities.pictures.alpha import keeps_alpha, pixels_of, values_of
from stage1_vqvae.modalities.pictures.deep import DeepHeader, dtype_of, range_of, told_of_range
from stage1_vqvae.modalities.pictures.fitting import told_of_cuts, told_of_nearest, told_of_scaling
from stage1_vqvae.modalities.pictures.settings import (
    ALPHAS,
    FITS,
    MAX_STEPS,
    RESIZES,
    PictureSize,
    Range,
    default_size,
    has_alpha,
    parse_range,
    parse_size,
)
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Facts, Header

Pixels = NDArray[np.uint8]
ENLARGED = 1.1  # sides of the picture that crops are taken from
PIXELS = "pixels x of 0..255 become such by x.float() / 127.5 - 1"
WITH_ALPHA = "colour c and alpha a of 0..255 become such by (c * a / 255 + 255 - a) / 127.5 - 1 and a / 127.5 - 1"
RULE = "exif, 16-bit to 8, alpha on white, bicubic cover, centre crop; 1"


@dataclass(frozen=True)
class Transform:
    """The size and channels that pictures are brought to; implements `vq_prior.core.modality.Form`.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 or 3, and one more where alpha is kept.
        fit: What becomes of other proportions: "crop", "pad" or "stretch", see `fitting.py`.
        range: Least and largest number of pictures of more than 8 bits that are told apart, see `deep.py`; None is
            8 bits.
        alpha: What becomes of transparency: "white" lies under it, or "keep", see `alpha.py`.
        resize: How other sizes become this one: "bicubic" or "nearest", see `fitting.py`.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"
    range: Range | None = None
    alpha: str = "white"
    resize: str = "bicubic"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def describe(self) -> dict[str, Any]:
        """Return the transform as JSON values, the rule's version included; entries with their original default are
        left out.
        """
        options: dict[str, Any] = {} if self.fit == "crop" else {"fit": self.fit}
        options |= {} if self.range is None else {"range": list(self.range)}
        options |= {} if self.alpha == "white" else {"alpha": self.alpha}
        options |= {} if self.resize == "bicubic" else {"resize": self.resize}
        return description_of(self.shape, self.channels) | options


def description_of(shape: tuple[int, ...], channels: int) -> dict[str, Any]:
    """Return the transform to pictures of a shape as JSON values."""
    return {"image_size": list(shape), "channels": channels, "rule": RULE}


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return images [B, C, height, width] float32 in [-1, 1] from uint8 pixels [B, height, width, C]."""
    return pixels.movedim(-1, 1).to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(images: Tensor) -> Pixels:
    """Return uint8 pixels [B, height, width, C] from images [B, C, height, width] in [-1, 1]; values beyond are cut."""
    scaled = images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()


def views_of(read: Callable[[Transform], Pixels], transform: Transform, views: str) -> Pixels:
    """Return the views of a picture, [V, height, width, C] uint8: first the picture, then its mirror image.

    "ten-crop" adds the four corners of the picture brought to 1.1 times the size, each followed by its mirror image
    (Sun et al. 2024, "LlamaGen", who extract the codes of ten crops of each image before they train).

    Args:
        read: Gives the picture in any form.
        transform: The form of the codec.
        views: "none", "flip" or "ten-crop".
    """
    pixels = read(transform)
    if views == "none":
        return pixels[None]
    crops = [pixels]
    if views == "ten-crop":
        height, width = (round(ENLARGED * side) for side in transform.shape)
        large = read(replace(transform, height=height, width=width))
        down, across = height - transform.height, width - transform.width
        corners = ((y, x) for y in (0, down) for x in (0, across))
        crops += [large[y : y + transform.height, x : x + transform.width] for y, x in corners]
    return np.stack([view for crop in crops for view in (crop, crop[:, ::-1])])


def shifted_and_mirrored(pixels: Pixels, rng: np.random.Generator, *, most: int, rows: slice) -> Pixels:
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


def _chosen_range(text: str | None, facts: Facts | None) -> Range | None:
    """Return the range that was asked for, that of the data where it is left to them; None is 8 bits."""
    headers = () if facts is None else facts.headers
    if text == "data":
        return range_of(headers)
    chosen = None if text is None else parse_range(text)
    if chosen is not None and headers and not any(isinstance(header, DeepHeader) for header in headers):
        raise UsageError(f"--range {text} is for images of more than 8 bits, and these have 8; leave it out")
    return chosen


def _described_range(saved: Any, where: str) -> Range | None:
    """Return the range of a description, None where it names none; raises `ArtifactError` if it is none."""
    if saved is None:
        return None
    if not (isinstance(saved, list) and len(saved) == 2 and all(type(each) is int for each in saved)):
        raise ArtifactError(f"{where}: range must be [low, high], got {str(saved)[:60]}")
    try:
        return parse_range("{}..{}".format(*saved))
    except UsageError as error:
        raise ArtifactError(f"{where}: range must be two numbers of at most {MAX_STEPS} apart, got {saved}") from error


def _require_alpha(text: str | None, facts: Facts | None) -> None:
    """Raise `UsageError` if no picture has alpha, or a range was asked for: alpha is kept of 8 bits."""
    if text not in (None, "data", "8-bit"):
        raise UsageError(f"--alpha keep keeps 8 bits of each number, and --range {text} asks for more; leave one out")
    headers = () if facts is None else facts.headers
    if headers and not any(map(has_alpha, headers)):
        none = f"none of these {len(headers)} has it"
        raise UsageError(f"--alpha keep is for images with alpha, and {none}; leave it out, or give other data")


def _told_of_alpha(headers: Sequence[Header], alpha: str) -> list[str]:
    """Return how many pictures with these headers may be transparent, and what becomes of it, in words."""
    count = sum(map(has_alpha, headers))
    some = f"{count} of {len(headers)} images have alpha"
    if alpha == "keep":
        return [f"{some}, which is kept" + ("" if count == len(headers) else "; the others are opaque")]
    return [f"{some}: white lies under it; train-vqvae --alpha keep keeps it"] if count else []


def _described(description: Mapping[str, Any], name: str, known: Sequence[str], where: str) -> str:
    """Return an entry of a description that is one of some words, the first where it is absent."""
    value = description.get(name, known[0])
    if value not in known:
        raise ArtifactError(f"{where}: {name} must be one of {', '.join(known)}, got {str(value)[:60]!r}")
    return str(value)


class PictureValues:
    """Pictures as numbers; implements `vq_prior.core.modality.Values`.

    Args:
        range: Of the numbers that are stored of pictures of more than 8 bits; None is 8 bits.
        alpha: Whether the last channel is alpha.
    """

    bounds = (-1.0, 1.0)
    views = {"none": 1, "flip": 2, "ten-crop": 10}  # noqa: RUF012

    def __init__(self, range: Range | None = None, *, alpha: bool = False) -> None:
        self.range = range
        self.conversion = WITH_ALPHA if alpha else PIXELS  # to values, for who gave something else
        if range is not None:
            low, high = range
            self.conversion = (
                f"numbers x of {low}..{high} become such by (x.float() - {low}) / {(high - low) / 2:g} - 1"
            )

    def to_values(self, stored: Tensor) -> Tensor:
        """Return images [B, C, height, width] float32 in [-1, 1] of what is stored, [B, height, width, C]."""
        if stored.dtype == torch.uint8:
            return values_of(stored) if keeps_alpha(stored.shape[-1]) else to_unit_range(stored)
        assert self.range is not None, "numbers of more than 8 bits belong to pictures in their form, see in_form"
        low, high = self.range
        part = stored.movedim(-1, 1).to(torch.float32).sub_(low)
        return part.mul_(2 / (high - low)).sub_(1.0).clamp_(-1.0, 1.0)

    def to_stored(self, values: Tensor) -> NDArray[Any]:
        """Return what is stored, [B, height, width, C], of images in [-1, 1]; values beyond are cut."""
        if self.range is None:
            return pixels_of(values) if keeps_alpha(values.shape[1]) else to_pixels(values)
        low, high = self.range
        part = values.detach().float().add(1.0).mul((high - low) / 2).round().clamp(0, high - low)
        numbers = part.to(torch.int32).add(low).movedim(1, -1).contiguous().cpu().numpy()
        return numbers.astype(dtype_of(self.range))

    read_views = staticmethod(views_of)
    augment = staticmethod(shifted_and_mirrored)

    def transform(
        self, settings: PictureSize, facts: Facts | None, *, channels: int | None, device_type: str
    ) -> Transform:
        """Return the size asked for, or one that fits most pictures, and grey where every picture is grey."""
        keep = settings.alpha == "keep"
        if channels not in ((None, 2, 4) if keep else (None, 1, 3)):
            allowed = "2 or 4 with --alpha keep" if keep else "1 or 3 for pictures (2 or 4 with --alpha keep)"
            raise UsageError(f"--model.channels must be {allowed}, got {channels}")
        fit = settings.fit or "crop"
        for flag, value, known in (
            ("fit", fit, FITS),
            ("alpha", settings.alpha or ALPHAS[0], ALPHAS),
            ("resize", settings.resize or RESIZES[0], RESIZES),
        ):
            if value not in known:
                raise UsageError(f"--{flag} must be one of {', '.join(known)}, got {value}")
        if settings.image_size:
            height, width = parse_size(settings.image_size)
        else:
            assert facts is not None
            height, width = default_size(facts, device_type, whole=fit != "crop")
        if channels is None:
            assert facts is not None
            channels = (1 if facts.channels == 1 else 3) + keep
        if keep:
            _require_alpha(settings.range, facts)
        chosen = None if keep else _chosen_range(settings.range, facts)
        return Transform(
            height, width, channels, fit, chosen, settings.alpha or ALPHAS[0], settings.resize or RESIZES[0]
        )

    def settings_of(self, transform: Transform) -> PictureSize:
        """Return the size as it is typed, and the other flags where they differ from the original defaults."""
        size = f"{transform.height}x{transform.width}"
        fit: Any = None if transform.fit == "crop" else transform.fit
        alpha: Any = None if transform.alpha == "white" else transform.alpha
        resize: Any = None if transform.resize == "bicubic" else transform.resize
        chosen = transform.range and "{}..{}".format(*transform.range)
        return PictureSize(image_size=size, fit=fit, range=chosen, alpha=alpha, resize=resize)

    def from_description(self, description: Mapping[str, Any], where: str) -> Transform:
        """Return the transform that `describe` told of."""
        size, channels = description.get("image_size"), description.get("channels")
        sides = size if isinstance(size, list) and len(size) == 2 else [0]
        if not all(type(side) is int and 1 <= side <= 65_536 for side in sides):
            raise ArtifactError(f"{where}: image_size must be [height, width], got {str(size)[:60]}")
        options = {
            name: _described(description, name, known, where)
            for name, known in (("fit", FITS), ("alpha", ALPHAS), ("resize", RESIZES))
        }
        some = (2, 4) if options["alpha"] == "keep" else (1, 3)
        if type(channels) is not int or channels not in some:
            allowed = f"{some[0]} or {some[1]} for pictures" + (" with alpha" if some[0] == 2 else "")
            raise ArtifactError(f"{where}: channels must be {allowed}, got {str(channels)[:60]}")
        if description.get("rule") != RULE:
            raise ArtifactError(f"{where}: rule must be {RULE!r}, got {str(description.get('rule'))[:80]!r}")
        chosen = _described_range(description.get("range"), where)
        if chosen is not None and options["alpha"] == "keep":
            raise ArtifactError(f"{where}: range must be left out with alpha, which has 8 bits")
        return Transform(sides[0], sides[1], channels, range=chosen, **options)

    def told(self, transform: Transform, headers: Sequence[Header]) -> list[str]:
        """Return what the transform takes away from pictures with these headers, a sentence each."""
        shapes, shape = [header.shape for header in headers], transform.shape
        cuts = told_of_cuts(shapes, shape) if transform.fit == "crop" else None
        several = sum(header.several for header in headers)
        first = f"{several} of {len(headers)} images are the first of several frames; --frames all takes every frame"
        colours = transform.channels - keeps_alpha(transform.channels)
        coloured = sum(header.channels > colours for header in headers)
        grey = f"{coloured} of {len(headers)} images lose their colour: the codec's are grey"
        nearest = transform.resize == "nearest"
        resized = told_of_nearest(shapes, shape, transform.fit) if nearest else told_of_scaling(shapes, shape)
        said = {cuts: cuts, resized: resized, grey: coloured, first: several}
        lines = [*told_of_range(headers, transform.range), *(line for line, holds in said.items() if line and holds)]
        return [*lines, *_told_of_alpha(headers, transform.alpha)]

    def stored_like(self, transform: Transform) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and dtype of pixels."""
        dtype = np.dtype(np.uint8) if transform.range is None else dtype_of(transform.range)
        return (*transform.shape, transform.channels), dtype
