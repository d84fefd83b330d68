"""Settings of `resize-codebook`. Imports neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vq_prior.core.errors import UsageError
from vq_prior.core.modality import KindSettings
from vq_prior.core.settings import (
    DATA_HELP,
    ImageColumn,
    LabelColumn,
    NumWorkers,
    Overwrite,
    Place,
    Seed,
    Within,
    check_ranges,
    require_data,
    require_folder_to_write,
)

MIN_CODES, MAX_CODES = 2, 2**20


@dataclass
class ResizeCodebook(KindSettings):
    """Give a trained codec a smaller or larger codebook; encoder and decoder stay. Prints rate against PSNR."""

    codec: Annotated[str, Place("CODEC")]
    """Codec folder, RUN or MODEL, or a Hub id."""
    codebook_size: Annotated[tuple[int, ...], Within(MIN_CODES, MAX_CODES)]
    """Number of codes, or several of them: each gives its rows of the table."""
    data: Annotated[str, Place(), DATA_HELP]
    out: Annotated[Path | None, Place("RUN")] = None
    """RUN folder; the codec of exactly one size is written to RUN/vqvae. With several sizes, or left out, only the
    table is printed."""
    level: Annotated[int | None, Within(0)] = None
    """Which level of a codec that has several gets them, counted from 0, the coarsest. Those behind it keep their sizes
    and are clustered anew, since it leaves other things for them."""
    steps: Annotated[int | None, Within(1, 10**9)] = None
    """Optimiser steps for which decoder and codebook are tuned to each other, the encoder frozen; left out: none."""
    batch_size: Annotated[int, Within(1, 10**6)] = 64
    """Images of one of these steps."""
    learning_rate: Annotated[float, Within(0, 10, above=True)] = 1e-3
    """Peak learning rate of these steps."""
    seed: Seed = 0
    """Seed of the clustering and of the order of the images."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    overwrite: Overwrite = False
    """Replace the codec that is at RUN/vqvae."""


def check_resize(settings: ResizeCodebook) -> None:
    """Check every value that can be checked without codec and data.

    Raises:
        UsageError: Naming the first flag that is out of range, what is allowed and what was given.
    """
    require_data(settings.data)
    sizes = settings.codebook_size
    if not sizes:
        raise UsageError("--codebook-size must be one number of codes or several, got none")
    for size in sizes:
        if sizes.count(size) > 1:
            raise UsageError(f"--codebook-size must name each size once, got {size} twice")
    if settings.out is not None:
        require_folder_to_write(settings.out)
    check_ranges(settings)
