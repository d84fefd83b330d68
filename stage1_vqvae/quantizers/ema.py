"""The codebook that follows exponential moving averages of its vectors.

Van den Oord et al. 2017, "Neural discrete representation learning", appendix A.1;
Razavi et al. 2019. Letters: D code dimension, K number of codes.
"""

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers.codebook import BatchStatistics, CodebookQuantizer, replacements


class EMAQuantizer(CodebookQuantizer):
    """Codes move to the running mean of the latents that chose them; no gradient reaches them.

    N_i <- decay N_i + (1 - decay) n_i, m_i <- decay m_i + (1 - decay) sum of z, e_i = m_i / N_i
    (eqs. 6 to 8), once an optimiser step over the global batch. A dead code restarts
    on a latent vector of the batch with half the mean use, so that it survives a while.
    """

    ema_counts: Tensor
    ema_sums: Tensor

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.register_buffer("codebook", self.place(torch.randn(self.num_codes, self.code_dim)))
        self.register_buffer("ema_counts", torch.ones(self.num_codes))
        self.register_buffer("ema_sums", self.codebook.clone())
        self._statistics = BatchStatistics()

    def table(self) -> Tensor:
        """Return the codebook, [K, D]."""
        return self.codebook

    def observe(self, vectors: Tensor, codes: Tensor) -> None:
        """Add latents [N, D] and their codes [N] to what the next update uses."""
        self._statistics.add(vectors, codes, self.num_codes)

    @torch.no_grad()
    def set_codes(self, vectors: Tensor) -> None:
        """Make these vectors [K, D] the codes, each as if it had been chosen once."""
        super().set_codes(vectors)
        self.ema_counts.fill_(1.0)
        self.ema_sums.copy_(self.codebook)

    @torch.no_grad()
    def update(self, rng: np.random.Generator) -> dict[str, float]:
        """Move averages and codebook by the vectors since the last update, then revive dead codes."""
        table, seen = self._statistics.take(self.codebook)
        decay = self.settings.decay
        self.ema_counts.mul_(decay).add_(table[:, 0], alpha=1 - decay)
        self.ema_sums.mul_(decay).add_(table[:, 1:], alpha=1 - decay)
        alive = self.ema_counts > 1e-6
        means = self.place(self.ema_sums / self.ema_counts.clamp_min(1e-6)[:, None])
        self.codebook.copy_(torch.where(alive[:, None], means, self.codebook))
        dead, vectors = replacements(self.ema_counts, self.settings.revive_below, seen, rng)
        if vectors.shape[0]:
            use = self.ema_counts.mean() / 2
            self.codebook[dead] = vectors
            self.ema_counts[dead] = use
            self.ema_sums[dead] = vectors * use
        return {"num_revived": float(vectors.shape[0])}
