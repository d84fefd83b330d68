"""Finite scalar quantisation: each axis is rounded to a few levels, and the grid of levels is the codebook.

Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple". Letters: D number
of axes, K number of codes, the product of their levels.
"""

import math
from typing import Any

import torch
from torch import Tensor

from stage1_vqvae.quantizer_settings import QuantizerSettings, fsq_levels
from stage1_vqvae.quantizers.contract import Quantized, Quantizer
from stage1_vqvae.quantizers.gradients import straight_through


class FSQQuantizer(Quantizer):
    """Axis d takes L_d evenly spaced values in [-1, 1]; nothing is learnt and no term is added to the loss.

    Latents are bounded by a tanh that reaches a little past the outermost levels (the
    paper's `bound`), then rounded; the gradient passes the rounding straight.
    """

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.levels = fsq_levels(self.num_codes)
        assert len(self.levels) == self.code_dim

    def _axes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the levels of each axis, [D] float32, and what one step of it adds to the code, [D] int64."""
        levels = torch.tensor(self.levels, dtype=torch.int64, device=device)
        strides = [math.prod(self.levels[:axis]) for axis in range(self.code_dim)]
        return levels.float(), torch.tensor(strides, dtype=torch.int64, device=device)

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
            codes = (steps.to(torch.int64) * strides).sum(-1)
            vectors = straight_through(bounded / middle, self.embed((codes,)))
        return Quantized(vectors, (codes,), {})

    def embed(self, codes: tuple[Tensor, ...]) -> Tensor:
        """Return the vectors [..., D] float32 in [-1, 1] of the codes of the one level, [...] in [0, K)."""
        (chosen,) = codes
        levels, strides = self._axes(chosen.device)
        middle = torch.div(levels, 2, rounding_mode="floor")
        steps = torch.div(chosen[..., None], strides, rounding_mode="floor") % levels.to(torch.int64)
        return (steps.float() - middle) / middle

    def identity_config(self) -> dict[str, Any]:
        """Return the levels."""
        return {"name": self.settings.name, "levels": list(self.levels)}

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return nothing: the codes follow from the levels."""
        return {}
