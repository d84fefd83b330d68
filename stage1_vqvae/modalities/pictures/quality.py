"""How near pictures come to their originals.

Letters: B batch, C channels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_vqvae.modalities.pictures.alpha import on_white, share_transparent
from stage1_vqvae.modalities.pictures.settings import Range
from vq_prior.core.errors import EnvironmentFault, in_one_line
from vq_prior.core.modality import Measure
from vq_prior.core.processes.packages import bring_in, broken

OF_ALPHA = "colour over white and alpha"
MS_SSIM_SIDE = 176  # five scales of an 11-pixel window, as torchmetrics counts
Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def mse(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared error of each image, [B], from images [B, C, *shape] in [-1, 1]."""
    return (first.float() - second.float()).square().flatten(1).mean(1)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, [B]; the peak-to-peak range is 2."""
    return 10 * torch.log10(4.0 / mse(first, second).clamp_min(1e-12))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of each image, [B] (Wang et al. 2004, eq. 13).

    Images [B, C, height, width] in [-1, 1]. Gaussian window of 11 pixels and sigma 1.5 (of the
    largest odd size that fits, on smaller images), K1 = 0.01, K2 = 0.03, population statistics,
    averaged over the positions at which the whole window lies inside. The same number as on pixels from 0 to 255.
    """
    window = min(11, *(size - 1 + size % 2 for size in first.shape[2:]))
    offsets = torch.arange(window, dtype=torch.float64, device=first.device) - window // 2
    kernel = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = (kernel / kernel.sum()).to(torch.float64)
    C = first.shape[1]

    def smooth(x: Tensor) -> Tensor:
        x = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(C, 1, -1, 1), groups=C)
        return F.conv2d(x, kernel.view(1, 1, 1, -1).expand(C, 1, 1, -1), groups=C)

    x, y = first.double() + 1, second.double() + 1  # the luminance term is defined for intensities from 0
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    score = score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return score.flatten(1).mean(1).float()


def perceptual_distance(network: str) -> Any:
    """Return LPIPS (Zhang et al. 2018) of a network: "alex", "vgg" or "squeeze".

    Raises:
        EnvironmentFault: If torchvision or its weights cannot be had.
    """
    bring_in()
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type=network, reduction="mean", sync_on_compute=False)
    except Exception as error:  # a missing package, no network, a damaged download
        raise broken(error) or EnvironmentFault(
            f"--lpips {network} needs torchvision and its weights ({in_one_line(error)}); leave it out"
        ) from error


class PictureQuality:
    """The quality of pictures; implements `vq_prior.core.modality.Quality`.

    Args:
        range: Of pictures of more than 8 bits, which the signal-to-noise ratio is of; None is 8 bits.
        alpha: Whether pictures have alpha: errors are then those of the colour over white and of alpha, channels that
            count alike, and perceptual distances those of the colour over white.
    """

    def __init__(self, range: Range | None = None, *, alpha: bool = False) -> None:
        of = "" if range is None else " of the range {}..{}".format(*range)
        also = f", {OF_ALPHA}" if alpha else ""
        decibel = f"dB{of}" + (f" ({OF_ALPHA})" if alpha else "")
        self.measures = {
            "mse": Measure(mse, f"mean squared error of reconstructions, of values in [-1, 1]{also}", ".5f"),
            "psnr": Measure(psnr, f"PSNR of reconstructions (dB{of}{also})", ".2f", decibel),
            "ssim": Measure(ssim, f"SSIM of reconstructions{also}", ".4f"),
        }
        self.statistics = {"transparent": share_transparent} if alpha else {}

    losses = {f"lpips-{name}": partial(perceptual_distance, name) for name in ("alex", "vgg", "squeeze")}  # noqa: RUF012

    def of_set(self, pairs: Pairs, shape: tuple[int, ...], *, network: str) -> dict[str, float | None]:
        """Return MS-SSIM (Wang et al. 2003), null on images it has no five scales for, and LPIPS if asked for."""
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

        large = min(shape) >= MS_SSIM_SIDE
        lpips = None if network == "none" else perceptual_distance(network)
        scores, count = 0.0, 0
        for images, copies in pairs() if large or lpips is not None else ():
            copies = copies.clamp(-1, 1)
            if large:
                scores += float(ms_ssim(copies + 1, images + 1, data_range=2.0, reduction="sum"))
                count += len(images)
            if lpips is not None:
                lpips = lpips.to(images.device)
                lpips.update(*(on_white(x).expand(-1, 3, -1, -1) for x in (copies, images)))
        return {
            "ms_ssim": scores / count if count else None,
            "lpips": None if lpips is None else float(lpips.compute()),
        }
