"""What a user may give as an image, and what a completion keeps of it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_vqvae.data.rows import FileRows
from stage1_vqvae.modalities import told_of_form
from vq_prior.core.errors import UsageError
from vq_prior.core.spec import Codec, check_images

GivenImage = Any  # what the kind of data takes: a picture of Pillow or its pixels; a path; a tensor; a list of such
Keep = float | Literal["top half"]


def images_of(given: GivenImage, codec: Codec) -> Tensor:
    """Return values [B, C, *shape] of what was given, one or several.

    A tensor is taken as it is, [C, *shape] or [B, C, *shape]. A path, or what the codec's kind of data takes (of
    pictures one of Pillow, or pixels [height, width], [height, width, C] or [n, height, width, C]), is brought to the
    codec's form like training data.

    Raises:
        UsageError: If it is none of these, or a tensor of another shape.
        ArtifactError: If a file is missing or no picture.
    """
    if isinstance(given, Tensor):
        images = given[None] if given.ndim == codec.spec.rank + 1 else given
        if given.ndim == codec.spec.rank and codec.spec.channels == 1:
            images = given[None, None]
        values = codec.modality.values
        check_images(codec.spec, images, values.bounds, getattr(values, "conversion", ""))
        return images.float()
    if isinstance(given, np.ndarray):
        several: list[Any] = list(given[None] if _is_one(given, codec) else given)
    else:
        several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not several:
        raise UsageError("image must be at least one picture, got none")
    stored = np.stack([_stored(one, codec, number) for number, one in enumerate(several)])
    return codec.modality.values.to_values(torch.from_numpy(stored))


def _is_one(given: NDArray[Any], codec: Codec) -> bool:
    """Return whether an array is one image: [height, width, 1 or 3], of a codec with alpha 1 to 4, or grey without an
    axis of channels.
    """
    rank = codec.spec.rank
    if codec.modality.show.output != "images":
        return given.ndim == rank + 1
    channels = {1, 3, codec.spec.channels, 2 * (codec.spec.channels == 4)}
    return given.ndim == rank or (given.ndim == rank + 1 and given.shape[-1] in channels)


def _stored(given: Any, codec: Codec, number: int) -> Any:
    accept, transform = codec.modality.show.accept, codec.transform
    if isinstance(given, (str, Path)):
        file = FileRows([Path(given)])
        return accept(file.encoded(0), transform, lambda: file.name(0))
    return accept(given, transform, lambda: f"image {number}")


def told_of_file(path: Path, codec: Codec) -> list[str]:
    """Return what bringing a file to the codec's form takes away from it, a sentence each; often nothing."""
    file, modality = FileRows([path]), codec.modality
    header = modality.files.inspect(file.encoded(0), lambda: file.name(0))
    return [f"{path}: {each}" for each in told_of_form(modality, codec.transform, [header])]


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
