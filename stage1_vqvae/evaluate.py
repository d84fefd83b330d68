"""Judging a codec: errors of its reconstructions and use of its codes over a whole set, and pictures of both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.data.sources import open_data_of
from stage1_vqvae.modalities.pictures.pixels import PixelRows, Transform, load_pixels
from stage1_vqvae.settings import Reconstruct, check
from vq_prior.core import metrics
from vq_prior.core.disk.artifacts import new_folder, require_replaceable
from vq_prior.core.errors import UsageError
from vq_prior.core.media import picture_grid, save_png, to_picture, to_pixels, to_unit_range
from vq_prior.core.spec import Codec

ROWS_AT_ONCE = 256


def transform_of(codec: Codec) -> Transform:
    """Return how pictures become the codec's images; raises `UsageError` if it is not a codec of pictures."""
    if codec.spec.rank != 2 or codec.spec.channels not in (1, 3):
        raise UsageError(f"this codec is for data of shape {list(codec.spec.shape)}, not for pictures")
    height, width = codec.spec.shape
    return Transform(height, width, codec.spec.channels)


def evaluate_codec(codec: Codec, pixels: PixelRows, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return how well a codec keeps a whole set of pictures, and which codes it uses.

    Args:
        codec: In place on `device`.
        pixels: The set, brought to the codec's size.
        device: Where the codec is.

    Returns:
        `num_images`; means over images of `mse` ([-1, 1] scale), `psnr` (dB) and `ssim`; and per level, over the
        whole set, `usage` in [0, 1], `perplexity` and `num_codes`.
    """
    K = [level.num_codes for level in codec.spec.levels]
    counts = [torch.zeros(k, dtype=torch.int64) for k in K]
    scores: dict[str, list[Tensor]] = {"mse": [], "psnr": [], "ssim": []}
    for images in _images(pixels, device):
        codes = codec.encode(images)
        reconstruction = codec.decode(codes)
        for total, level in zip(counts, codes, strict=True):
            total += torch.bincount(level.reshape(-1), minlength=total.numel()).cpu()
        for name, values in scores.items():
            values.append(getattr(metrics, name)(images, reconstruction).double().cpu())
    means = {name: float(torch.cat(values).mean()) for name, values in scores.items()}
    levels = [
        {"usage": metrics.usage(n), "perplexity": metrics.perplexity(n), "num_codes": k}
        for n, k in zip(counts, K, strict=True)
    ]
    return {"num_images": len(pixels), **means, "levels": levels}


def _images(pixels: PixelRows, device: torch.device | str) -> Iterator[Tensor]:
    for first in range(0, len(pixels), ROWS_AT_ONCE):
        rows = range(first, min(first + ROWS_AT_ONCE, len(pixels)))
        yield to_unit_range(torch.from_numpy(pixels.batch(rows)).to(device))


def reconstruct_pixels(codec: Codec, pixels: NDArray[np.uint8], *, device: torch.device | str) -> NDArray[np.uint8]:
    """Return what the codec makes of uint8 pixels [n, height, width, C], in the same form."""
    return to_pixels(codec.decode(codec.encode(to_unit_range(torch.from_numpy(pixels)).to(device))))


def comparison_grid(
    originals: NDArray[np.uint8], reconstructions: NDArray[np.uint8], *, columns: int = 8
) -> Image.Image:
    """Return a grid in which every row of originals stands above the row of their reconstructions."""
    rows = []
    for first in range(0, len(originals), columns):
        for pictures in (originals, reconstructions):
            row = pictures[first : first + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), 255, dtype=np.uint8)
            rows.append(np.concatenate([row, blank]))
    return picture_grid(np.concatenate(rows), columns=columns)


def summary(result: dict[str, Any]) -> str:
    """Return one line on what `evaluate_codec` found."""
    use = ", ".join(
        f"{level['usage']:.0%} of {level['num_codes']} codes used, perplexity {level['perplexity']:.1f}"
        for level in result["levels"]
    )
    return (
        f"{result['num_images']} held-out images: mse {result['mse']:.5f}, psnr {result['psnr']:.2f} dB, "
        f"ssim {result['ssim']:.4f}; {use}"
    )


def reconstruct(settings: Reconstruct) -> Path:
    """Write originals beside their reconstructions: DIR/000000.png ... and DIR/grid.png; return DIR.

    Raises:
        UsageError: If a setting is out of range, or DIR exists and is not to be replaced.
        ArtifactError: If codec or data are missing or damaged.
    """
    check(settings)
    require_replaceable(settings.out, "grid.png", "reconstructions")
    if (settings.out / "grid.png").exists() and not settings.overwrite:
        raise UsageError(f"{settings.out} exists; choose another --out or pass --overwrite")
    codec = open_codec(settings.codec)
    transform = transform_of(codec)
    for note in codec.notes:
        print(note)
    data = open_data_of(settings, say=print)
    if settings.num_images > len(data.validation):
        print(f"the data holds out {len(data.validation)} images, fewer than the {settings.num_images} asked for")
    rows = data.validation.subset(range(min(settings.num_images, len(data.validation))))
    pixels = load_pixels(rows, transform, num_workers=settings.num_workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec.to(device)  # type: ignore[arg-type]
    originals = pixels.batch(range(len(pixels)))
    copies = reconstruct_pixels(codec, originals, device=device)
    with new_folder(settings.out, manifest=False) as staging:
        for number, (original, copy) in enumerate(zip(originals, copies, strict=True)):
            save_png(staging / f"{number:06d}.png", to_picture(np.concatenate([original, copy], axis=1)), durable=False)
        save_png(staging / "grid.png", comparison_grid(originals, copies))
    print(summary(evaluate_codec(codec, pixels, device=device)))
    print(f"wrote {len(originals)} pairs (original left, reconstruction right) and grid.png to {settings.out}")
    return settings.out
