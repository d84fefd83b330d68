"""What a perceptual term is, and what it is made from. Letters: B batch, C channels, n rows."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1_vqvae.blocks import local_means
from vq_prior.core.spec import CodeSpec


class Rows(Protocol):
    """Training rows, as networks see them."""

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """Return rows by number, [n, C, *shape] float32 on the host."""
        ...


@dataclass(frozen=True)
class Making:
    """What a term may be made from.

    Attributes:
        name: As typed.
        spec: Of the codec.
        labels: Class of each training row, [n]; None where there are no classes.
        num_classes: Of the labels.
        seed: Of the run.
        say: Tells the person something.
    """

    name: str
    spec: CodeSpec
    labels: NDArray[np.int64] | None
    num_classes: int
    seed: int
    say: Callable[[str], object] = print


class Perceptual(nn.Module):
    """The contract of a perceptual term: made before the first step, then frozen, and no part of the codec.

    Attributes:
        weight: In the loss, where the person gives none.
        fitted: Whether its tensors were fitted to the data, so that checkpoints have to hold them.
    """

    weight: ClassVar[float] = 1.0
    fitted: ClassVar[bool] = False

    def __init__(self, _making: Making) -> None:
        """Make it untrained.

        Raises:
            UsageError: If it does not suit the data.
            EnvironmentFault: If something that it needs is not installed.
        """
        super().__init__()

    @property
    def fit_steps(self) -> int:
        """Optimiser steps of `fit`; 0 where nothing is learnt."""
        return 0

    def fit(self, making: Making, rows: Rows, *, steps: int | None = None) -> None:
        """Fit it to training rows, on the host with one thread; a function of seed and data. Nothing to do for most.

        Args:
            making: What it was made from.
            rows: Training rows.
            steps: For a trial; None is `fit_steps`.
        """

    @abstractmethod
    def forward(self, images: Tensor, copies: Tensor) -> Tensor:
        """Return the distance of reconstructions from the data, [B, C, *shape] each: a scalar, a mean over rows."""

    def frozen(self) -> "Perceptual":
        """Return itself, in eval mode, whose weights get no gradient."""
        return self.eval().requires_grad_(False)

    def inputs(self) -> dict[str, Any]:
        """Return what a run that continues must have, too, as JSON values: hashes of files that it was made from."""
        return {}


def local_statistics(features: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of features [B, C, *places] over windows, [B, C, *fewer places] each."""
    features = features.float()
    mean = local_means(features, window)
    variance = local_means(features.square(), window) - mean.square()
    return mean, variance.clamp_min(0).add(1e-4).sqrt()


def statistics_distance(first: Tensor, second: Tensor, scale: Tensor, window: int) -> Tensor:
    """Return the mean squared difference of local means and deviations of features, [B, C, *places] each, a scalar.

    Args:
        first: Of the data.
        second: Of the reconstructions.
        scale: What one deviation of each feature is, [C].
        window: Places of a window along an axis.
    """
    with torch.no_grad():
        wanted = local_statistics(first, window)
    by = scale.reshape(-1, *(1 for _ in first.shape[2:]))
    found = local_statistics(second, window)
    parts = [((have - want) / by).square().mean() for have, want in zip(found, wanted, strict=True)]
    return parts[0] + parts[1]
