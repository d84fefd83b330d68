"""A frozen codebook behind one trained linear map: no code can die while the map moves them all.

Zhu et al. 2024, "Addressing representation collapse in vector quantized models with one
linear layer" (SimVQ), eq. 6. Letters: D code dimension, K number of codes.
"""

import torch
from torch import Tensor, nn

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers.codebook import CodebookQuantizer


class SimVQQuantizer(CodebookQuantizer):
    """Code k stands at C_k W: C [K, D] stays where it started, W [D, D] learns from the codebook term."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        D = self.code_dim
        self.register_buffer("codebook", torch.randn(self.num_codes, D) / D**0.5)
        self.map = nn.Linear(D, D, bias=False)

    def table(self) -> Tensor:
        """Return the mapped codes where the distance is measured, [K, D]."""
        return self.place(self.map(self.codebook))

    @torch.no_grad()
    def set_codes(self, vectors: Tensor) -> None:
        """Freeze the codebook at these vectors [K, D] and let the map start as the identity."""
        super().set_codes(vectors)
        nn.init.eye_(self.map.weight)

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return codebook and map."""
        return {"codebook": self.codebook, "map.weight": self.map.weight}
