"""Numbers that judge images and codes.

Letters: B batch, C channels, K number of codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vq_prior.core.processes.collectives import sum_over_processes


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


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of the code distribution with these counts [K]: 1 to K, 0 without any count."""
    total = counts.sum()
    if total == 0:
        return 0.0
    p = counts.double() / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def usage(counts: Tensor) -> float:
    """Return the share of codes that occur at all, in [0, 1]."""
    return float((counts > 0).double().mean())


class CodeCounts:
    """How often each code of each level occurred, summed over processes when read.

    Perplexity depends on how many codes were counted, so it is read over a window
    of training or over a whole set, never over one batch.
    """

    def __init__(self, num_codes: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self._counts = [torch.zeros(K, dtype=torch.int64, device=device) for K in num_codes]

    def add(self, codes: tuple[Tensor, ...]) -> None:
        """Count one batch of codes, a tensor of integers a level."""
        for counts, level in zip(self._counts, codes, strict=True):
            flat = level.reshape(-1).to(torch.int64)
            counts.index_add_(0, flat, torch.ones_like(flat))  # bincount would wait for a GPU

    def state(self) -> list[list[int]]:
        """Return the counts of each level over all processes; every process must call it."""
        return [sum_over_processes(counts).tolist() for counts in self._counts]

    def load(self, state: list[list[int]], *, mine: bool) -> None:
        """Take counts over all processes as this one's (`mine`), or start from none; a sum counts them once.

        Raises:
            ValueError: If they are of other levels.
        """
        for counts, given in zip(self._counts, state, strict=True):
            values = torch.tensor(given, dtype=torch.int64, device=counts.device)
            if values.shape != counts.shape:
                raise ValueError(f"counts of {len(given)} codes, not of {counts.numel()}")
            counts.copy_(values if mine else torch.zeros_like(values))

    def read(self, *, reset: bool = False) -> list[dict[str, float]]:
        """Return `usage`, `perplexity` and `num_dead` of each level over all processes."""
        totals = [sum_over_processes(counts) for counts in self._counts]
        read = [{"usage": usage(n), "perplexity": perplexity(n), "num_dead": float((n == 0).sum())} for n in totals]
        if reset:
            for counts in self._counts:
                counts.zero_()
        return read
