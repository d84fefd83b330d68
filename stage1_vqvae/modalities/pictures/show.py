"""Pictures as people see and give them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stage1_vqvae.modalities.pictures.alpha import checkerboard, keeps_alpha, laid_over, pixels_of
from stage1_vqvae.modalities.pictures.files import picture_array, read_picture
from stage1_vqvae.modalities.pictures.opening import DTYPES
from stage1_vqvae.modalities.pictures.values import Transform, to_pixels
from stage1_vqvae.modalities.sheets import Sheets
from vq_prior.core.errors import UsageError

Pixels = NDArray[np.uint8]


class PictureShow(Sheets):
    """How pictures are shown; implements `vq_prior.core.modality.Show`."""

    output = "images"
    sampling_rate = None

    def pictures(self, values: Tensor) -> Pixels:
        """Return the pixels of each image, [B, height, width, 1 or 3] uint8; what is transparent lies over white."""
        return laid_over(pixels_of(values), 255) if keeps_alpha(values.shape[1]) else to_pixels(values)

    def on_sheet(self, values: Tensor) -> Pixels:
        """Return the pixels of each image on a sheet: what is transparent lies over a checkerboard."""
        if not keeps_alpha(values.shape[1]):
            return to_pixels(values)
        height, width = values.shape[2:]
        return laid_over(pixels_of(values), checkerboard((height, width)))

    def beside(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
        """Return two pictures side by side, as one."""
        return np.concatenate([first, second], axis=1)

    def accept(self, given: Any, transform: Transform, name: Callable[[], str]) -> NDArray[Any]:
        """Return the pixels of a PIL picture, of a picture file's bytes, or of pixels [height, width] or with channels.

        These are uint8; a codec of pictures of more than 8 bits takes their numbers too, and one that keeps alpha takes
        it as the second or fourth channel.
        """
        if isinstance(given, Image.Image):
            return picture_array(given.copy(), transform, name())
        dtypes = ("uint8",) if transform.range is None else ("uint8", *DTYPES)
        pixels = isinstance(given, np.ndarray) and given.dtype.name in dtypes
        channels = (1, 2, 3, 4) if transform.alpha == "keep" else (1, 3)
        if isinstance(given, bytes) or (
            pixels and (given.ndim == 2 or (given.ndim == 3 and given.shape[-1] in channels))
        ):
            return read_picture(given, transform, name)
        what = f"{given.dtype} {list(given.shape)}" if hasattr(given, "dtype") else type(given).__name__
        numbers, last = " or ".join(dtypes), "1 to 4" if transform.alpha == "keep" else "1 or 3"
        raise UsageError(
            f"{name()} must be a PIL picture, a path, or {numbers} pixels [height, width] or [height, width, {last}], "
            f"got {what}; numbers of 0..1 become pixels by (255 * x).round().astype('uint8')"
        )
