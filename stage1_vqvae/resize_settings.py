"""Settings of `resize-codebook`. Imports neither torch nor transformers."""

import math
from dataclasses import dataclass
from pathlib import Path

from vq_prior.core.errors import UsageError

MIN_CODES, MAX_CODES = 2, 2**20


@dataclass
class ResizeCodebook:
    """Give a trained codec a smaller or larger codebook; encoder and decoder stay. Prints rate against PSNR."""

    codec: str
    """Codec folder, RUN or MODEL, or a Hub id."""
    codebook_size: tuple[int, ...]
    """Number of codes, or several of them: each gives its rows of the table."""
    data: str
    """Images: a folder, parquet or arrow files, a Hub id owner/name, or the word digits."""
    out: Path | None = None
    """RUN folder; the codec of exactly one size is written to RUN/vqvae. With several sizes, or left out, only the
    table is printed."""
    steps: int | None = None
    """Optimiser steps for which decoder and codebook are tuned to each other, the encoder frozen; left out: none."""
    batch_size: int = 64
    """Images of one of these steps."""
    learning_rate: float = 1e-3
    """Peak learning rate of these steps."""
    seed: int = 0
    """Seed of the clustering and of the order of the images."""
    num_workers: int | None = None
    """Threads that read images; left out: one a core."""
    image_column: str | None = None
    """Column of the images in tables; left out: found by type."""
    label_column: str | None = None
    """Column of the labels in tables and metadata files; left out: `label` if there is one."""
    overwrite: bool = False
    """Replace the codec that is at RUN/vqvae."""


def check_resize(settings: ResizeCodebook) -> None:
    """Check every value that can be checked without codec and data.

    Raises:
        UsageError: Naming the first flag that is out of range, what is allowed and what was given.
    """
    if not settings.data:
        raise UsageError("--data must name a folder, a parquet file, a Hub id or the word digits, got nothing")
    sizes = settings.codebook_size
    if not sizes:
        raise UsageError("--codebook-size must be one number of codes or several, got none")
    for size in sizes:
        if not MIN_CODES <= size <= MAX_CODES:
            raise UsageError(f"--codebook-size must be between {MIN_CODES} and {MAX_CODES}, got {size}")
        if sizes.count(size) > 1:
            raise UsageError(f"--codebook-size must name each size once, got {size} twice")
    if settings.out is not None and settings.out.exists() and not settings.out.is_dir():
        raise UsageError(f"--out must be a folder to write, got the existing file {settings.out}")
    for flag, value, least, most in (
        ("--steps", settings.steps, 1, 10**9),
        ("--batch-size", settings.batch_size, 1, 10**6),
        ("--seed", settings.seed, 0, 2**63 - 1),
        ("--num-workers", settings.num_workers, 1, 1024),
    ):
        if value is not None and not least <= value <= most:
            raise UsageError(f"{flag} must be between {least} and {most}, got {value}")
    if not (math.isfinite(settings.learning_rate) and 1e-12 <= settings.learning_rate <= 10):
        raise UsageError(f"--learning-rate must be a number above 0, at most 10, got {settings.learning_rate}")
