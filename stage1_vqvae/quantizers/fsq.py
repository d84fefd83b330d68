"""Finite scalar quantisation: each axis is rounded to a few levels, and the grid of levels is the codebook.

Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple". Letters: D number
of axes, K number of codes, the product of their levels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stage1_vqvae.quantizer_settings import QuantizerSettings, fsq_levels
from stage1_vqvae.quantizers.contract import Quantized, Quantizer
from stage1_vqvae.quantizers.gradients import straight_through


class FSQQuantizer(Quantizer):
    """Axis d takes L_d evenly spaced values in [-1, 1]; nothing is learnt and no term is added to the loss.

    Latents are bounded by a tanh that reaches a little past the outermost levels (the
    paper's `bound`), then rounded; the gradient passes the rounding straight. With a depth, each further level cuts the
    cell that the levels before it chose into as many parts again.
    """

    separable = True

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.levels = fsq_levels(self.num_codes)
        assert len(self.levels) == self.code_dim

    def _axes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the levels of each axis, [D] float32, and what one step of it adds to the code, [D] int64."""
        levels = torch.tensor(self.levels, dtype=torch.int64, device=device)
        strides = [math.prod(self.levels[:axis]) for axis in range(self.code_dim)]
        return levels.float(), torch.tensor(strides, dtype=torch.int64, device=device)

    @classmethod
    def of(cls, settings: QuantizerSettings) -> Quantizer:
        """Return the quantiser of resolved settings, which makes as many levels as they are deep."""
        return cls(settings)

    def forward(self, z: Tensor) -> Quantized:
        """Return vectors and codes of latents z [..., D]; the loss has no terms."""
        assert z.shape[-1] == self.code_dim, f"last axis of z must be D = {self.code_dim}, got shape {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            levels, strides = self._axes(z.device)
            half = (levels - 1) * 1.001 / 2
            offset = (levels.remainder(2) == 0).float() / 2
            bounded = torch.tanh(z.float() + torch.atanh(offset / half)) * half - offset
            middle = torch.div(levels, 2, rounding_mode="floor")
            steps = (bounded.detach().round() + middle).clamp(min=torch.zeros_like(levels), max=levels - 1)
            codes, left = [steps], bounded.detach() + middle - steps
            for _ in range(1, self.settings.depth):  # each cell of a step, [-1/2, 1/2], is cut evenly again
                left = left * levels
                codes.append((left + (levels - 1) / 2).round().clamp(min=torch.zeros_like(levels), max=levels - 1))
                left = left - (codes[-1] - (levels - 1) / 2)
            chosen = tuple((steps.to(torch.int64) * strides).sum(-1) for steps in codes)
            vectors = straight_through(bounded / middle, self.embed(chosen))
        return Quantized(vectors, chosen, {})

    def embed(self, codes: Sequence[Tensor | None]) -> Tensor:
        """Return the vectors [..., D] float32 in [-1, 1] of the codes of every level that is not None."""
        there = {number: chosen for number, chosen in enumerate(codes) if chosen is not None}
        some = next(iter(there.values()))
        levels, strides = self._axes(some.device)
        middle = torch.div(levels, 2, rounding_mode="floor")
        total = torch.zeros((*some.shape, self.code_dim), device=some.device)
        for number, chosen in there.items():
            steps = torch.div(chosen[..., None], strides, rounding_mode="floor") % levels.to(torch.int64)
            total += steps.float() - middle if number == 0 else (steps - (levels - 1) / 2) / levels**number
        return total / middle

    def identity_config(self) -> dict[str, Any]:
        """Return the levels of each axis, and the depth where it is more than 1."""
        depth = {"depth": self.settings.depth} if self.settings.depth > 1 else {}
        return {"name": self.settings.name, "levels": list(self.levels), **depth}

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return nothing: the codes follow from the levels."""
        return {}
