"""Files of several frames: the pages of a TIFF, the pictures of a GIF, WebP or APNG, each as a picture of its own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1_vqvae.modalities.pictures.deep import is_deep, numbers_of
from stage1_vqvae.modalities.pictures.opening import Encoded, open_picture, undecodable, upright
from vq_prior.core.errors import ArtifactError

MAX_NUMBERS = 1 << 28  # of all frames of a file together


def holds_several(picture: Image.Image) -> bool:
    """Return whether an open picture is the first of several frames of its file."""
    return bool(getattr(picture, "is_animated", False))


def all_frames(encoded: Encoded, name: str) -> list[Encoded]:
    """Return every frame of a file as an array [height, width] or [height, width, C]; a file of one frame as it is.

    Raises:
        ArtifactError: If it is no picture, damaged, or its frames are more than 2^28 pixels.
    """
    if isinstance(encoded, np.ndarray):
        return [encoded]
    picture = open_picture(encoded, name)
    if not holds_several(picture):
        return [encoded]
    try:
        count: int = picture.n_frames  # type: ignore[attr-defined]
    except Exception as error:  # decoders raise whatever they like
        raise undecodable(name, error) from error
    if count * picture.width * picture.height > MAX_NUMBERS:
        raise ArtifactError(f"{name} has {count} frames of {picture.width} x {picture.height} pixels; cut it in parts")
    try:
        return [_frame(encoded, picture, number) for number in range(count)]
    except Exception as error:
        raise undecodable(name, error) from error


def _frame(encoded: bytes, picture: Image.Image, number: int) -> NDArray[Any]:
    picture.seek(number)
    if is_deep(picture):
        numbers = numbers_of(encoded, picture, number)
        if numbers.alpha is None:
            return numbers.values
        alpha = np.rint(numbers.alpha * numbers.most)[..., None].astype(numbers.values.dtype)
        return np.concatenate([np.atleast_3d(numbers.values), alpha], axis=2)
    shown = upright(picture)
    if shown.mode not in ("L", "LA", "RGB", "RGBA"):
        covered = "transparency" in shown.info or shown.mode in ("PA", "La", "RGBa")
        shown = shown.convert("L" if shown.mode == "1" else "RGBA" if covered else "RGB")
    pixels = np.array(shown)
    if picture.format == "GIF" and pixels.ndim == 3:  # whose frames are of colours, grey ones too
        grey = (pixels[..., :3] == pixels[..., :1]).all()
        pixels = pixels[..., [0, *range(3, pixels.shape[-1])]] if grey else pixels
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return pixels
