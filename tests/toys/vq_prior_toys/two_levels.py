"""A quantiser of two levels: a small codebook, and a smaller one for what the first leaves over.

Lee et al. 2022, "Autoregressive image generation using residual quantization", eq. 3, at depth 2.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers import QUANTIZERS, Quantized, Quantizer
from stage1_vqvae.quantizers.gradients import straight_through


class TwoLevels(Quantizer):
    """z is the sum of a code of the first codebook, of K, and one of the second, of K / 2; both follow averages."""

    settings_used: ClassVar[frozenset[str]] = frozenset({"decay", "revive_below", "start"})
    loss_terms: ClassVar[dict[str, float | None]] = {"commitment": None}

    @classmethod
    def sizes_of(cls, settings: QuantizerSettings) -> tuple[int, ...]:
        """Return K and K / 2."""
        assert settings.num_codes is not None
        return settings.num_codes, max(2, settings.num_codes // 2)

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        each = [replace(settings, name="ema", num_codes=size) for size in self.level_sizes]
        self.coarse, self.fine = (QUANTIZERS["ema"](own) for own in each)

    def forward(self, z: Tensor) -> Quantized:
        """Return vectors, the codes of both levels and the commitment to both, of latents z [..., D]."""
        z = z.float()
        first = self.coarse(z)
        second = self.fine(z - first.vectors.detach())
        codes = (*first.codes, *second.codes)
        loss = {name: first.loss[name] + second.loss[name] for name in first.loss}
        return Quantized(straight_through(z, self.embed(codes)), codes, loss)

    def embed(self, codes: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of the vectors of both codes, [..., D]."""
        coarse, fine = codes
        return self.coarse.embed((coarse,)) + self.fine.embed((fine,))

    @torch.no_grad()
    def start(self, vectors: Tensor, rng: np.random.Generator) -> None:
        """Set the first codebook from latent vectors [N, D], and the second from what it leaves over."""
        self.coarse.start(vectors, rng)
        self.fine.start(vectors - self.coarse.embed(self.coarse.encode(vectors)), rng)

    def update(self, rng: np.random.Generator) -> dict[str, float]:
        """Update both codebooks; return how many codes of both were revived."""
        coarse, fine = self.coarse.update(rng), self.fine.update(rng)
        return {name: coarse[name] + fine[name] for name in coarse}

    def identity_config(self) -> dict[str, Any]:
        """Return the settings on which codes depend."""
        return {"name": self.settings.name, "levels": [self.coarse.identity_config(), self.fine.identity_config()]}

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return both codebooks."""
        named = {"coarse": self.coarse, "fine": self.fine}
        return {f"{n}.{key}": tensor for n, part in named.items() for key, tensor in part.identity_tensors().items()}
