"""How a picture comes into a size of other proportions: cut, with something around it, or stretched. Imports no torch.

Sizes are (height, width).
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
from PIL import Image

Shape = tuple[int, int]
Border = Literal["edge", "constant"]


def fitted(
    picture: Image.Image, shape: Shape, fit: str, *, resize: str = "bicubic", around: Border = "edge"
) -> Image.Image:
    """Return a picture brought to a size; one that has the size is left as it is.

    Args:
        picture: Of any size.
        shape: Height and width wanted.
        fit: "crop" takes the largest centred part of the wanted proportions; "pad" keeps the whole picture, centred,
            with something around it; "stretch" keeps the whole and changes its proportions.
        resize: "bicubic" is Pillow's antialiased filter; "nearest" takes pixels as they are, see `nearest_part`.
        around: What "pad" puts around a picture: the pixels of its border ("edge"), or zeros ("constant").
    """
    width, height = picture.size
    down, across = shape
    if (height, width) == shape:
        return picture
    if resize == "nearest":
        return _nearest(picture, shape, fit, around)
    if fit == "stretch":
        return picture.resize((across, down), Image.Resampling.BICUBIC)
    if fit == "pad":
        scale = min(across / width, down / height)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        return _bordered(picture.resize(inner[::-1], Image.Resampling.BICUBIC), shape, around)
    scale = min(width / across, height / down)
    wide, high = across * scale, down * scale
    left, top = (width - wide) / 2, (height - high) / 2
    box = (left, top, min(width, left + wide), min(height, top + high))
    return picture.resize((across, down), Image.Resampling.BICUBIC, box=box)


def _bordered(picture: Image.Image, shape: Shape, around: Border) -> Image.Image:
    """Return a picture of the size, the given one in its middle, the pixels of its border or zeros around it."""
    pixels = np.asarray(picture)
    missing = [wanted - side for wanted, side in zip(shape, pixels.shape[:2], strict=True)]
    margins = [(each // 2, each - each // 2) for each in missing] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, margins, mode=around))


def nearest_part(shape: Sequence[int], wanted: Sequence[int], fit: str) -> tuple[Shape, Shape]:
    """Return the size of the centred part that "nearest" takes of a picture, in whole pixels, and to which it brings
    that.

    "pad" enlarges by the largest whole factor with which the picture has room, so that its pixels stay alike.

    >>> nearest_part((16, 24), (64, 64), "pad"), nearest_part((16, 24), (64, 64), "crop")
    (((16, 24), (32, 48)), ((16, 16), (64, 64)))
    """
    (height, width), (down, across) = shape, wanted
    if fit == "pad":
        factor = min(down // height, across // width)
        scale = factor or min(down / height, across / width)
        return (height, width), (max(1, round(height * scale)), max(1, round(width * scale)))
    if fit == "stretch":
        return (height, width), (down, across)
    if height * across <= width * down:
        return (height, max(1, round(height * across / down))), (down, across)
    return (max(1, round(width * down / across)), width), (down, across)


def _nearest(picture: Image.Image, shape: Shape, fit: str, around: Border) -> Image.Image:
    """Return a picture brought to a size, each of its pixels the one in whose area its centre lies."""
    pixels = np.asarray(picture)
    part, inner = nearest_part(pixels.shape[:2], shape, fit)
    rows, columns = (
        (whole - side) // 2 + (2 * np.arange(wanted) + 1) * side // (2 * wanted)
        for whole, side, wanted in zip(pixels.shape, part, inner, strict=False)
    )
    return _bordered(Image.fromarray(pixels[rows][:, columns]), shape, around)


def cut_away(shape: Sequence[int], wanted: Sequence[int]) -> float:
    """Return the share of a picture that "crop" cuts away.

    >>> cut_away((32, 400), (32, 32)), cut_away((64, 64), (32, 32))
    (0.92, 0.0)
    """
    one, other = shape[0] * wanted[1], shape[1] * wanted[0]
    return 1 - min(one, other) / max(one, other)


def told_of_cuts(shapes: Sequence[Sequence[int]], wanted: Shape) -> str | None:
    """Return how much of pictures of these sizes "crop" cuts away, in words; None where it is nothing."""
    shares = [cut_away(shape, wanted) for shape in shapes]
    cut = [share for share in shares if share]
    if not cut:
        return None
    mean = percent(sum(shares) / len(shares))
    alike = len({tuple(shape) for shape in shapes}) == 1
    sizes = f"images of {shapes[0][0]} x {shapes[0][1]}" if alike else f"{len(cut)} of {len(shapes)} images"
    most = "" if alike else f" on the average, {percent(max(cut))} at most"
    return (
        f"{mean} cut away{most}: {sizes} are cut to the proportions of {wanted[0]} x {wanted[1]}; "
        "train-vqvae --fit pad or stretch keeps all"
    )


def told_of_nearest(shapes: Sequence[Sequence[int]], wanted: Shape, fit: str) -> str | None:
    """Return how many pictures of these sizes "nearest" resizes, and how evenly, in words; None where it is none."""
    parts = [nearest_part(shape, wanted, fit) for shape in shapes if tuple(shape) != wanted]
    resized = [(part, inner) for part, inner in parts if part != inner]
    if not resized:
        return None
    uneven = sum(any(a % b and b % a for a, b in zip(part, inner, strict=True)) for part, inner in resized)
    evenly = f"{uneven} of them by no whole factor, so that their pixels differ in size" if uneven else "whole factors"
    size = f"{wanted[0]} x {wanted[1]}"
    return f"{len(resized)} of {len(shapes)} images are resized to {size} by nearest, {evenly}"


def told_of_scaling(shapes: Sequence[Sequence[int]], wanted: Shape) -> str | None:
    """Return how many pictures of these sizes are scaled down to a smaller one, in words; None where none is."""
    larger = [tuple(shape) for shape in shapes if all(side > own for side, own in zip(shape, wanted, strict=True))]
    if not larger:
        return None
    height, width = max(larger, key=prod)
    return (
        f"{len(larger)} of {len(shapes)} images are scaled down to {wanted[0]} x {wanted[1]}, "
        f"the largest from {height} x {width}"
    )


def percent(share: float) -> str:
    """Return a share above 0 and below 1 as people read it.

    >>> percent(0.92), percent(0.001), percent(0.999)
    ('92%', 'less than 1%', 'more than 99%')
    """
    if round(100 * share) in (0, 100):
        return "less than 1%" if share < 0.5 else "more than 99%"
    return f"{share:.0%}"
