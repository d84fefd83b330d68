"""What a user may give as an image, and what a completion keeps of it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stage1_vqvae.data.rows import FileRows
from stage1_vqvae.evaluate import transform_of
from stage1_vqvae.modalities.pictures.pixels import Transform, open_picture, picture_array
from vq_prior.core.errors import UsageError
from vq_prior.core.media import to_unit_range
from vq_prior.core.spec import Codec, check_images

GivenImage = Image.Image | str | Path | np.ndarray | Tensor | Sequence[Any]
Keep = float | Literal["top half"]


def images_of(given: GivenImage, codec: Codec) -> Tensor:
    """Return images [B, C, *shape] in [-1, 1] of what was given, one or several.

    A tensor is taken as it is, [C, *shape] or [B, C, *shape]. A PIL picture, the path of one, or uint8 pixels
    [height, width, C] or [n, height, width, C] is brought to the codec's size and channels like training data.

    Raises:
        UsageError: If it is none of these, or a tensor of another shape.
        ArtifactError: If a file is missing or no picture.
    """
    if isinstance(given, Tensor):
        images = given[None] if given.ndim == codec.spec.rank + 1 else given
        check_images(codec.spec, images)
        if not images.is_floating_point() or not bool(((images >= -1) & (images <= 1)).all()):
            raise UsageError("images in a tensor must be floating-point values in [-1, 1]")
        return images.float()
    transform = transform_of(codec)
    if isinstance(given, np.ndarray):
        several: list[Any] = list(given[None] if given.ndim == 3 else given)
    else:
        several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not several:
        raise UsageError("image must be at least one picture, got none")
    pixels = np.stack([_pixels(one, transform, number) for number, one in enumerate(several)])
    return to_unit_range(torch.from_numpy(pixels))


def _pixels(given: Any, transform: Transform, number: int) -> Any:
    name = f"image {number}"
    if isinstance(given, Image.Image):
        return picture_array(given.copy(), transform, name)
    if isinstance(given, (str, Path)):
        files = FileRows([Path(given)])
        return picture_array(open_picture(files.encoded(0), files.name(0)), transform, files.name(0))
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim == 3 and given.shape[-1] in (1, 3):
        return picture_array(open_picture(given, name), transform, name)
    what = f"{given.dtype} {list(given.shape)}" if isinstance(given, (np.ndarray, Tensor)) else type(given).__name__
    raise UsageError(f"{name} must be a PIL picture, a path, or uint8 pixels [height, width, 1 or 3], got {what}")


def kept_rows(keep: Keep, grid_rows: int) -> int:
    """Return how many rows of the grid lie within the kept part of an image.

    Args:
        keep: "top half", or the share of the image that is kept, from the top, in [0, 1].
        grid_rows: Rows of the grid.

    Raises:
        UsageError: If it is out of range, or above 0 and less than a row.
    """
    share = 0.5 if keep == "top half" else keep
    if isinstance(share, str) or not 0 <= share <= 1:
        raise UsageError(f'keep must be "top half" or a share of the rows between 0 and 1, got {keep}')
    rows = math.floor(share * grid_rows + 1e-9)  # 0.29 of 100 rows is 29, whatever floating point makes of it
    if share > 0 and not rows:
        raise UsageError(
            f"keep {keep} holds no whole row of this model's {grid_rows} rows of codes; "
            f"give 0 or at least {1 / grid_rows:.4g}"
        )
    return rows
