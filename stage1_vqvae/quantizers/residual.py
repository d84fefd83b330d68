"""Residual quantisation: d quantisers one after another, each on what those before it leave over.

Lee et al. 2022, "Autoregressive image generation using residual quantization", section 3.1. Letters: B rows, D code
dimension, K number of codes, d depth.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers.contract import Quantized, Quantizer, named_tensors, updated


class ResidualQuantizer(Quantizer):
    """z is the sum of d codes, one of each level's own codebook; every level is a quantiser with a codebook.

    The loss terms are means over the levels. The gradient passes all choices at once, as it passes the choice of one
    code.
    """

    separable = True

    def __init__(self, kind: Any, settings: QuantizerSettings) -> None:
        """Take the class of the levels' quantisers, a `CodebookQuantizer`, and resolved settings."""
        super().__init__(settings)
        self.levels: Any = nn.ModuleList(kind(settings.of_level(number)) for number in range(settings.depth))
        self.near_latents = bool(self.levels[0].near_latents)
        self.num_kept = 0
        self.loss_terms = kind.loss_terms  # type: ignore[misc]  # of what it is made of

    def keep(self, count: int) -> None:
        """Leave the codebooks of the first levels as they are from now on; `start` and `update` pass them over."""
        self.num_kept = count
        for level in self.levels[:count]:
            level.requires_grad_(False)
        self.train(self.training)

    @staticmethod
    def is_behind(name: str, count: int) -> bool:
        """Return whether a tensor of a codec, by its name, is of a level behind the first `count`."""
        parts = name.split(".")
        return parts[:2] == ["quantizer", "levels"] and int(parts[2]) >= count

    def train(self, mode: bool = True) -> "ResidualQuantizer":
        """Set training mode, but for levels that are kept as they are."""
        super().train(mode)
        for level in self.levels[: self.num_kept]:
            level.eval()
        return self

    def forward(self, z: Tensor) -> Quantized:
        """Return vectors, the codes of every level and the mean loss terms of latents z [..., D]."""
        assert z.shape[-1] == self.code_dim, f"last axis of z must be D = {self.code_dim}, got shape {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            left, total = z, torch.zeros_like(z)
            codes: list[Tensor] = []
            loss: dict[str, Tensor] = {}
            for level in self.levels:
                chosen = level.choose(left)
                # What a soft draw leaves over is what its code does.
                left = left - (chosen.vectors if level.near_latents else level.embed(chosen.codes)).detach()
                total = total + chosen.vectors
                codes += chosen.codes
                for name, term in chosen.loss.items():
                    loss[name] = loss.get(name, 0.0) + term / len(self.levels)
            vectors = self.levels[0].estimate(z, total)
        return Quantized(vectors, tuple(codes), loss)

    def encode(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of every level, [...] int64, of latents z [..., D]."""
        codes: list[Tensor] = []
        left = z.float()
        for level in self.levels:
            codes += level.encode(left)
            left = left - level.embed(codes[-1:])
        return tuple(codes)

    def embed(self, codes: Sequence[Tensor | None]) -> Tensor:
        """Return the sum of the vectors, [..., D] float32, of the codes of every level that is not None."""
        there = [level.embed((chosen,)) for level, chosen in zip(self.levels, codes, strict=True) if chosen is not None]
        vectors: Tensor = sum(there[1:], there[0])
        return vectors

    @torch.no_grad()
    def start(self, vectors: Tensor, rng: np.random.Generator) -> None:
        """Set the first codebook from latent vectors [N, D], and each other one from what those before it leave."""
        left = vectors.float()
        for number, level in enumerate(self.levels):
            if number >= self.num_kept:
                level.start(left, rng)
            left = left - level.embed(level.encode(left))

    def update(self, rng: np.random.Generator) -> dict[str, float]:
        """Update every codebook; return the sums of the counts."""
        return updated(self.levels[self.num_kept :], rng)

    def identity_config(self) -> dict[str, Any]:
        """Return the settings on which codes depend."""
        return {**self.levels[0].identity_config(), "depth": len(self.levels)}

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return the codebooks."""
        return named_tensors("levels", self.levels)
