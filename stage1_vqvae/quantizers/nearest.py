"""The codebook that learns by gradient: van den Oord et al. 2017, eq. 3.

Letters: D code dimension, K number of codes.
"""

import numpy as np
import torch
from torch import Tensor, nn

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers.codebook import BatchStatistics, CodebookQuantizer, replacements


class NearestQuantizer(CodebookQuantizer):
    """Codes are parameters, drawn to their latents by the codebook term |sg[z] - e|^2.

    The use of codes is averaged all the same, to revive dead ones.
    """

    use: Tensor

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.codebook = nn.Parameter(self.place(torch.randn(self.num_codes, self.code_dim)))
        self.register_buffer("use", torch.ones(self.num_codes))
        self._statistics = BatchStatistics()

    def table(self) -> Tensor:
        """Return the codebook where the distance is measured, [K, D]."""
        return self.place(self.codebook)

    def observe(self, vectors: Tensor, codes: Tensor) -> None:
        """Add latents [N, D] and their codes [N] to what the next update uses."""
        self._statistics.add(vectors, codes, self.num_codes)

    @torch.no_grad()
    def set_codes(self, vectors: Tensor) -> None:
        """Make these vectors [K, D] the codes, each as if it had been chosen once."""
        super().set_codes(vectors)
        self.use.fill_(1.0)

    @torch.no_grad()
    def update(self, rng: np.random.Generator) -> dict[str, float]:
        """Average the use of codes, then move dead ones onto vectors of the batch."""
        table, seen = self._statistics.take(self.codebook)
        self.use.mul_(self.settings.decay).add_(table[:, 0], alpha=1 - self.settings.decay)
        dead, vectors = replacements(self.use, self.settings.revive_below, seen, rng)
        if vectors.shape[0]:
            self.codebook[dead] = vectors
            self.use[dead] = self.use.mean() / 2
        return {"num_revived": float(vectors.shape[0])}
