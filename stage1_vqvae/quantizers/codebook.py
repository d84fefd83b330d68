"""What the quantisers with one codebook share: lookup, straight-through estimator, use of codes, revival.

Letters: D code dimension, K number of codes, N vectors.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_vqvae.quantizers.contract import Quantized, Quantizer
from stage1_vqvae.quantizers.lookup import draw_rows, kmeans, nearest_codes, sums_by_code
from vq_prior.core.runtime import gather_rows, sum_over_processes


class CodebookQuantizer(Quantizer):
    """A quantiser whose codes are the rows of a tensor `codebook` [K, D].

    A forward pass in training adds, per code, the number and the sum of its vectors to
    `pending` [K, 1 + D] and keeps the vectors for revival. Both are this process's own
    and live until `update`; neither is part of the state.
    """

    codebook: Tensor

    def _clear(self) -> None:
        self._pending: Tensor | None = None
        self._seen: list[Tensor] = []

    def forward(self, z: Tensor) -> Quantized:
        """Return vectors, codes and loss terms of latents z [..., D]."""
        assert z.shape[-1] == self.code_dim, f"last axis of z must be D = {self.code_dim}, got shape {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            flat = z.reshape(-1, self.code_dim)
            codes = nearest_codes(flat, self.codebook)
            if self.training and torch.is_grad_enabled():
                self._collect(flat.detach(), codes)
            chosen = F.embedding(codes, self.codebook).view_as(z)
            loss = self._loss(z, chosen)
            vectors = z + (chosen - z).detach()
        return Quantized(vectors, codes.view(z.shape[:-1]), loss)

    def _loss(self, z: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """Return the quantiser's loss terms; 0 for an empty batch."""
        return {"commitment": mean_square(z - chosen.detach())}

    def _collect(self, flat: Tensor, codes: Tensor) -> None:
        table = sums_by_code(flat, codes, self.num_codes)
        self._pending = table if self._pending is None else self._pending + table
        self._seen.append(flat)

    def _collected(self) -> tuple[Tensor, Tensor]:
        """Return the table [K, 1 + D] of all processes since the last update, and this process's vectors."""
        empty = self.codebook.new_zeros((self.num_codes, 1 + self.code_dim))
        table = sum_over_processes(empty if self._pending is None else self._pending)
        seen = torch.cat(self._seen) if self._seen else self.codebook.new_zeros((0, self.code_dim))
        self._clear()
        return table, seen

    def _replacements(self, use: Tensor, seen: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return which codes are dead, [K] bool, and a vector of the batch for each, [number of dead, D].

        Dead codes are those whose average use lies below `revive_below` times the mean. The
        vectors are drawn from those of all processes, in process order.
        """
        share = self.settings.revive_below
        dead = torch.zeros_like(use, dtype=torch.bool) if share is None else use < share * use.mean()
        if not bool(dead.any()):
            return dead, seen[:0]
        candidates = gather_rows(seen)
        if candidates.shape[0] == 0:
            return torch.zeros_like(dead), candidates
        return dead, draw_rows(candidates, int(dead.sum()), rng)

    def embed(self, codes: Tensor) -> Tensor:
        """Return the vectors [..., D] float32 of codes [...] in [0, K)."""
        return F.embedding(codes, self.codebook).float()

    @torch.no_grad()
    def start(self, vectors: Tensor, rng: np.random.Generator) -> None:
        """Set the codebook from latent vectors [N, D]: k-means centres, or vectors drawn at random."""
        centres = kmeans(vectors, self.num_codes, rng, iterations=10 if self.settings.start == "kmeans" else 0)
        self.codebook.copy_(centres)

    def identity_config(self) -> dict[str, Any]:
        """Return the settings on which codes depend."""
        return {"name": self.settings.name, "num_codes": self.num_codes, "code_dim": self.code_dim}

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return the codebook."""
        return {"codebook": self.codebook}


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean of the squares; 0, with a gradient of 0, if there is nothing to average."""
    return difference.square().sum() / max(1, difference.numel())
