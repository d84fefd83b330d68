"""What a quantiser is.

The last axis is the vector, every other axis is batch: `z [2, 8, 8, 16]` gives
`codes [2, 8, 8]` and `vectors [2, 8, 8, 16]`. A quantiser knows nothing of height,
width or time; channels-first latents are moved by the model before they come here.
If you see "last axis of z must be D", that move is what is missing.

Letters: D code dimension, K number of codes, N vectors.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from stage1_vqvae.quantizer_settings import QuantizerSettings


@dataclass
class Quantized:
    """What a quantiser makes of latents z [..., D].

    Attributes:
        vectors: [..., D] float32: the codes' vectors, with a gradient to z. In training a stochastic quantiser
            gives a soft draw of them instead.
        codes: [...] int64 in [0, K).
        loss: Named, unweighted terms (float32 scalars), of those that `LossSettings` has a weight for.
        metrics: Named numbers for the log.
    """

    vectors: Tensor
    codes: Tensor
    loss: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module):
    """The contract: latents in, vectors and codes out.

    In eval mode a forward pass changes nothing. In training it may collect
    statistics of this process, which `update` sums over processes and uses, once an
    optimiser step.
    """

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__()
        assert settings.num_codes is not None
        assert settings.code_dim is not None
        self.settings = settings
        self.num_codes: int = settings.num_codes
        self.code_dim: int = settings.code_dim

    def begin_step(self, *, progress: float, noise: Callable[[int], np.random.Generator]) -> None:
        """Prepare for a forward pass in training; most quantisers have nothing to prepare.

        Args:
            progress: How much of the training is behind, in [0, 1).
            noise: Generator of row i of the next batch, a function of seed, step and place in the global batch.
        """

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Return vectors, codes and loss terms of latents z [..., D]; float32 whatever the autocast."""

    def encode(self, z: Tensor) -> Tensor:
        """Return the codes [...] int64 of latents z [..., D], those of a forward pass in eval mode, and no more."""
        return self(z).codes

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """Return the vectors [..., D] float32 of codes [...] in [0, K)."""

    def start(self, vectors: Tensor, rng: np.random.Generator) -> None:
        """Set the codebook, if there is one, before the first step from latent vectors [N, D], the same everywhere."""

    def update(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: ARG002
        """Do what follows one optimiser step (averages, revival); call it on every process with the same `rng`.

        Returns:
            Named numbers for the log: `num_revived` is summed over a log interval, others are taken as they are.
        """
        return {}

    @abstractmethod
    def identity_config(self) -> dict[str, Any]:
        """Return the settings on which codes depend."""

    @abstractmethod
    def identity_tensors(self) -> dict[str, Tensor]:
        """Return the tensors on which codes depend: a codebook, never the statistics that moved it."""
