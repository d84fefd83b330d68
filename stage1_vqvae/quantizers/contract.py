"""What a quantiser is.

The last axis is the vector, every other axis is batch: `z [2, 8, 8, 16]` gives
`vectors [2, 8, 8, 16]` and, of each level, `codes [2, 8, 8]`. A quantiser knows nothing of
height, width or time; channels-first latents are moved by the model before they come here.
If you see "last axis of z must be D", that move is what is missing.

Most quantisers have one level. One of several, such as residual quantisation, gives a tensor of codes for each, coarse
to fine, all of one shape; together they stand for the vector.

Letters: D code dimension, K number of codes, N vectors.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from stage1_vqvae.quantizer_settings import QuantizerSettings
from vq_prior.core.errors import UsageError
from vq_prior.core.processes.collectives import sum_over_processes


@dataclass
class Quantized:
    """What a quantiser makes of latents z [..., D].

    Attributes:
        vectors: [..., D] float32: the codes' vectors, with a gradient to z. In training a stochastic quantiser
            gives a soft draw of them instead.
        codes: Of each level, [...] int64 in [0, K) with the level's own K.
        loss: Unweighted terms (float32 scalars) by name, of those that `Quantizer.loss_terms` lists.
    """

    vectors: Tensor
    codes: tuple[Tensor, ...]
    loss: dict[str, Tensor]


def updated(quantizers: Iterable[Any], rng: np.random.Generator) -> dict[str, float]:
    """Do what follows an optimiser step for several quantisers; return the sums of their counts."""
    counts: dict[str, float] = {}
    for each in quantizers:
        for name, count in each.update(rng).items():
            counts[name] = counts.get(name, 0.0) + count
    return counts


def named_tensors(prefix: str, quantizers: Iterable[Any]) -> dict[str, Tensor]:
    """Return the tensors on which the codes of several quantisers depend, as they are called in their list."""
    return {
        f"{prefix}.{number}.{name}": tensor
        for number, each in enumerate(quantizers)
        for name, tensor in each.identity_tensors().items()
    }


class Quantizer(nn.Module):
    """The contract: latents in, vectors and codes out.

    In eval mode a forward pass changes nothing. In training it may collect
    statistics of this process, which `update` sums over processes and uses, once an
    optimiser step.

    Attributes:
        loss_terms: Name of every term that a forward pass may give -> its weight in the training loss, or None where
            `LossSettings` has one, NAME_weight.
        settings_used: Of the shared `--quantizer.*`, those that it reads beside number of codes and code dimension; any
            other that is given is refused. Ours are listed in `SUITS`.
        near_latents: Whether codes stand near the latents that choose them, so that a decoder can be handed latents.
        separable: Whether the vectors are sums over the levels: `embed` then takes None in place of the codes of a
            level, which adds nothing.
        settings: Of `--quantizer.*`, resolved.
        num_codes: K, the number of codes that was asked for.
        code_dim: D.
        level_sizes: K of each level.
        progress, noise, sums: What `begin_step` was told last.
    """

    loss_terms: ClassVar[dict[str, float | None]] = {}
    settings_used: ClassVar[frozenset[str]] = frozenset()
    near_latents: bool = False
    separable: bool = False

    @classmethod
    def sizes_of(cls, settings: QuantizerSettings) -> tuple[int, ...]:
        """Return the number of codes of each level, coarse to fine, that resolved settings of a grid ask for."""
        assert settings.num_codes is not None
        return settings.level_codes or (settings.num_codes,) * settings.depth

    @classmethod
    def of(cls, settings: QuantizerSettings) -> "Quantizer":
        """Return the quantiser for resolved settings; a class that allows a depth above 1 builds it here.

        Raises:
            UsageError: If a depth above 1 is asked for, and it takes none.
        """
        if settings.depth > 1:
            raise UsageError(f"--quantizer.depth does not apply to {settings.name}, got {settings.depth}; leave it out")
        return cls(settings)

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__()
        assert settings.num_codes is not None
        assert settings.code_dim is not None
        self.settings = settings
        self.num_codes: int = settings.num_codes
        self.code_dim: int = settings.code_dim
        self.level_sizes = self.sizes_of(settings)
        self.progress = 0.0
        self.noise: Callable[[int], np.random.Generator] | None = None
        self.sums: Callable[[Tensor], Tensor] = sum_over_processes

    def begin_step(
        self,
        *,
        progress: float,
        noise: Callable[[int], np.random.Generator],
        sums: Callable[[Tensor], Tensor],
    ) -> None:
        """Prepare for a forward pass in training; quantisers inside this one are told, too.

        Args:
            progress: How much of the training is behind, in [0, 1).
            noise: Generator of row i of the next batch, a function of seed, step and place in the global batch.
            sums: Gives the sum of a tensor over the processes that share the next batch.
        """
        for part in self.modules():
            if isinstance(part, Quantizer):
                part.progress, part.noise, part.sums = progress, noise, sums

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Return vectors, codes and loss terms of latents z [..., D]; float32 whatever the autocast."""

    def encode(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of each level, [...] int64, of latents z [..., D]: those of a forward pass in eval mode."""
        codes: tuple[Tensor, ...] = self(z).codes
        return codes

    @abstractmethod
    def embed(self, codes: Any) -> Tensor:
        """Return the vectors [..., D] float32 of the codes of each level, [...] in [0, K), a tuple of tensors."""

    def start(self, vectors: Tensor, rng: np.random.Generator) -> None:
        """Set the codebook, if there is one, before the first step from latent vectors [N, D], the same everywhere."""

    def update(self, rng: np.random.Generator) -> dict[str, float]:  # noqa: ARG002
        """Do what follows one optimiser step (averages, revival); call it on every process with the same `rng`.

        Returns:
            Counts by name, such as `num_revived`: the log tells their sums over its interval.
        """
        return {}

    @abstractmethod
    def identity_config(self) -> dict[str, Any]:
        """Return the settings on which codes depend."""

    @abstractmethod
    def identity_tensors(self) -> dict[str, Tensor]:
        """Return the tensors on which codes depend: a codebook, never the statistics that moved it."""
