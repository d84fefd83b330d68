"""Look-up free quantisation: a code is the signs of its latent vector.

Yu et al. 2023, "Language model beats diffusion: tokenizer is key to visual generation"
(MAGVIT-v2), section 3.1. Letters: D number of signs, K = 2^D codes.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from stage1_vqvae.quantizers.codebook import mean_square
from stage1_vqvae.quantizers.contract import Quantized, Quantizer
from stage1_vqvae.quantizers.entropy import sign_entropy
from stage1_vqvae.quantizers.gradients import straight_through


class LFQQuantizer(Quantizer):
    """Bit d of the code says whether axis d is positive; vectors have entries -1 and 1.

    The entropy term asks for sure signs and for all codes to be used; the commitment term
    keeps latents near -1 and 1.
    """

    loss_terms: ClassVar[dict[str, float | None]] = {"commitment": None, "entropy": None}

    def forward(self, z: Tensor) -> Quantized:
        """Return vectors, codes and loss terms of latents z [..., D]."""
        assert z.shape[-1] == self.code_dim, f"last axis of z must be D = {self.code_dim}, got shape {tuple(z.shape)}"
        temperature = self.settings.entropy_temperature
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = ((z.detach() > 0).to(torch.int64) * self._weights(z.device)).sum(-1)
            chosen = self.embed((codes,))
            loss = {"commitment": mean_square(z, chosen)}
            if self.training and torch.is_grad_enabled() and temperature is not None:
                loss["entropy"] = sign_entropy(z.reshape(-1, self.code_dim), temperature, self.sums)
        return Quantized(straight_through(z, chosen), (codes,), loss)

    def embed(self, codes: tuple[Tensor, ...]) -> Tensor:
        """Return the vectors [..., D] float32, entries -1 and 1, of the codes of the one level, [...] in [0, K)."""
        (chosen,) = codes
        bits = torch.div(chosen[..., None], self._weights(chosen.device), rounding_mode="floor") % 2
        return 2.0 * bits.float() - 1.0

    def _weights(self, device: torch.device) -> Tensor:
        """Return what each sign adds to the code, [D] int64."""
        return torch.tensor([1 << axis for axis in range(self.code_dim)], dtype=torch.int64, device=device)

    def identity_config(self) -> dict[str, Any]:
        """Return the number of signs."""
        return {"name": self.settings.name, "code_dim": self.code_dim}

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return nothing: the codes are signs."""
        return {}
