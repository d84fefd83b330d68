"""A stochastic posterior over codes, with its divergence from the uniform prior in the loss.

The variational objective of a discrete autoencoder in full: reconstruction, KL and
quantisation. Jang et al. 2016 and Maddison et al. 2016 (Gumbel-softmax); Takida et al.
2022, "SQ-VAE", eq. 6 (a posterior of squared distances and a trained precision); Ramesh
et al. 2021 (temperature schedule). Letters: D code dimension, K number of codes, N vectors.
"""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers.contract import Quantized
from stage1_vqvae.quantizers.lookup import nearest_codes
from stage1_vqvae.quantizers.nearest import NearestQuantizer


class GumbelQuantizer(NearestQuantizer):
    """q(k | z) = softmax over k of -s |z - e_k|^2 with a trained precision s.

    Codes are parameters, and dead ones are revived, as with `nearest`: a code far from all latents has a share of q so
    small that no gradient brings it back.

    In training the vectors are a soft draw from q: softmax((log q + Gumbel noise) / temperature)
    times the codebook, so gradients reach everything without an estimator. The N x K table of q is
    made whole. The temperature falls from the first to the second of the settings' `temperatures`
    along half a cosine. In eval mode the code is the likeliest, which is the nearest.
    """

    loss_terms: ClassVar[dict[str, float | None]] = {"commitment": None, "codebook": None, "kl": None}

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.near_latents = False
        self.log_precision = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start(self, vectors: Tensor, rng: np.random.Generator) -> None:
        """Set the codebook from latent vectors [N, D], and the precision to one over their mean squared error."""
        super().start(vectors, rng)
        error = F.mse_loss(vectors, self.embed(self.encode(vectors))) * self.code_dim
        self.log_precision.copy_(-error.clamp(1e-4, 1e4).log())

    def choose(self, z: Tensor) -> Quantized:
        """Return vectors, codes and loss terms of latents z [..., D]; the codes are the likeliest ones."""
        if not (self.training and torch.is_grad_enabled()):
            return super().choose(z)
        flat = z.reshape(-1, self.code_dim)
        log_q = F.log_softmax(-self.log_precision.exp() * _square_distances(flat, self.codebook), dim=1)
        q = log_q.exp()
        soft = F.softmax((log_q + self._gumbel(z)) / self.temperature, dim=1)
        N = max(1, flat.shape[0])
        loss = {
            "kl": (q * (log_q + np.log(self.num_codes))).sum() / N,
            "commitment": (q * _square_distances(flat, self.codebook.detach())).sum() / (N * self.code_dim),
            "codebook": (q * _square_distances(flat.detach(), self.codebook)).sum() / (N * self.code_dim),
        }
        vectors = (soft @ self.codebook).view_as(z)
        codes = nearest_codes(flat, self.codebook)
        self.observe(flat.detach(), codes)
        return Quantized(vectors, (codes.view(z.shape[:-1]),), loss)

    def estimate(self, z: Tensor, chosen: Tensor) -> Tensor:
        """Return a soft draw as it is, since it has a gradient; else what was chosen, with a gradient to z."""
        return chosen if self.training and torch.is_grad_enabled() else super().estimate(z, chosen)

    @property
    def temperature(self) -> float:
        """Temperature of the soft draw at this point of the training."""
        first, last = self.settings.temperatures
        return last + (first - last) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, self.progress))))

    def _gumbel(self, z: Tensor) -> Tensor:
        """Return Gumbel noise [N, K]; that of a row of z comes from the row's own generator."""
        shape = (z[..., 0].numel(), self.num_codes)
        if self.noise is None or z.ndim == 1 or 0 in shape:
            uniform = torch.rand(shape, device=z.device)
        else:
            each = (shape[0] // z.shape[0], self.num_codes)
            rows = [self.noise(row).random(each, dtype=np.float32) for row in range(z.shape[0])]
            uniform = torch.from_numpy(np.concatenate(rows)).to(z.device)
        return -(-uniform.clamp(1e-7, 1 - 1e-7).log()).log()


def _square_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return |z - e|^2 of every pair, [N, K]."""
    squares = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return (squares - 2 * vectors @ codebook.t()).clamp_min(0)
