"""What the quantisers with a table of code vectors share: lookup, gradient estimator, distance, revival.

Letters: D code dimension, K number of codes, N vectors.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers.contract import Quantized, Quantizer
from stage1_vqvae.quantizers.entropy import codebook_entropy
from stage1_vqvae.quantizers.gradients import ESTIMATORS
from stage1_vqvae.quantizers.lookup import drawn, kmeans, nearest_codes, sums_by_code
from stage1_vqvae.quantizers.residual import ResidualQuantizer
from vq_prior.core.processes.collectives import sum_over_processes, take_rows
from vq_prior.core.processes.ordered_sums import TreeSum


class CodebookQuantizer(Quantizer):
    """A quantiser that takes, for each latent vector, the nearest row of a table [K, D].

    With the distance "cosine", latents and rows are brought to length 1 first (Yu et al.
    2021, "Vector-quantized image modeling with improved VQGAN", section 3.2). How the
    table moves is what a subclass adds.
    """

    codebook: Tensor
    loss_terms: ClassVar[dict[str, float | None]] = {"commitment": None, "codebook": None, "entropy": None}

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.near_latents = settings.distance == "euclidean"
        self._estimate = ESTIMATORS[settings.gradient]

    @abstractmethod
    def table(self) -> Tensor:
        """Return the vectors that latents are compared with, [K, D] float32, with their gradient if they have one."""

    def place(self, vectors: Tensor) -> Tensor:
        """Return vectors [..., D] where the distance is measured: as they are, or at length 1."""
        return F.normalize(vectors, dim=-1) if self.settings.distance == "cosine" else vectors

    def observe(self, vectors: Tensor, codes: Tensor) -> None:
        """Take note of latents [N, D] and their codes [N] in training; `update` uses it."""

    def encode(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of the one level, [...] int64, of latents z [..., D]."""
        with torch.autocast(z.device.type, enabled=False):
            flat = self.place(z.float()).reshape(-1, self.code_dim)
            return (nearest_codes(flat, self.table()).view(z.shape[:-1]),)

    @classmethod
    def of(cls, settings: QuantizerSettings) -> Quantizer:
        """Return the quantiser of resolved settings: this one, or as many as the depth, each on what is left over."""
        return cls(settings.of_level(0)) if settings.depth == 1 else ResidualQuantizer(cls, settings)

    def forward(self, z: Tensor) -> Quantized:
        """Return vectors, codes and loss terms of latents z [..., D]."""
        assert z.shape[-1] == self.code_dim, f"last axis of z must be D = {self.code_dim}, got shape {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            z = self.place(z.float())
            result = self.choose(z)
            result.vectors = self.estimate(z, result.vectors)
        return result

    def choose(self, z: Tensor) -> Quantized:
        """Return the vectors of the codes without a gradient to z, and all else that `forward` does.

        Args:
            z: Latents [..., D] float32, where the distance is measured; called without autocast.
        """
        training = self.training and torch.is_grad_enabled()
        flat, table = z.reshape(-1, self.code_dim), self.table()
        codes = nearest_codes(flat, table)
        if training:
            self.observe(flat.detach(), codes)
        chosen = F.embedding(codes, table).view_as(z)
        loss = {"commitment": mean_square(z, chosen.detach())}
        if table.requires_grad:
            loss["codebook"] = mean_square(z.detach(), chosen)
        if training and self.settings.entropy_temperature is not None:
            loss["entropy"] = codebook_entropy(flat, table, self.settings.entropy_temperature, self.sums)
        return Quantized(chosen, (codes.view(z.shape[:-1]),), loss)

    def estimate(self, z: Tensor, chosen: Tensor) -> Tensor:
        """Return what was chosen for latents z [..., D], with a gradient to z."""
        return self._estimate(z, chosen)

    def embed(self, codes: tuple[Tensor, ...]) -> Tensor:
        """Return the vectors [..., D] float32 of the codes of the one level, [...] in [0, K)."""
        (chosen,) = codes
        return F.embedding(chosen, self.table()).float()

    @torch.no_grad()
    def start(self, vectors: Tensor, rng: np.random.Generator) -> None:
        """Set the codes from latent vectors [N, D]: k-means centres, or vectors drawn at random; None leaves them."""
        if self.settings.start is None:
            return
        iterations = 10 if self.settings.start == "kmeans" else 0
        self.set_codes(kmeans(self.place(vectors), self.num_codes, rng, iterations=iterations))

    @torch.no_grad()
    def set_codes(self, vectors: Tensor) -> None:
        """Make these vectors [K, D] the codes, and forget how the former ones were used."""
        self.codebook.copy_(self.place(vectors))

    def identity_config(self) -> dict[str, Any]:
        """Return the settings on which codes depend."""
        settings = self.settings
        return {
            "name": settings.name,
            "num_codes": self.num_codes,
            "code_dim": self.code_dim,
            "distance": settings.distance,
        }

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return the codebook."""
        return {"codebook": self.codebook}


class BatchStatistics:
    """What this process saw since the last optimiser step: per code, number and sum of its vectors, and all vectors.

    Not part of any state: it is empty between optimiser steps.
    """

    def __init__(self) -> None:
        self._table = TreeSum()
        self._seen: list[Tensor] = []

    def add(self, vectors: Tensor, codes: Tensor, num_codes: int) -> None:
        """Take in vectors [N, D] and their codes [N]."""
        self._table.add(sums_by_code(vectors, codes, num_codes))
        self._seen.append(vectors)

    def take(self, codebook: Tensor) -> tuple[Tensor, Tensor]:
        """Return the table [K, 1 + D] of all processes and this process's vectors [N, D], and forget them."""
        K, D = codebook.shape
        mine = self._table.total()
        none = sums_by_code(codebook.new_zeros((0, D)), torch.zeros(0, dtype=torch.int64, device=codebook.device), K)
        table = sum_over_processes(none if mine is None else mine).float()
        seen = self._seen[0] if len(self._seen) == 1 else torch.cat([codebook.new_zeros((0, D)), *self._seen])
        self._table, self._seen = TreeSum(), []
        return table, seen


def replacements(use: Tensor, share: float | None, seen: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return which codes are dead, [K] bool, and a vector of the batch for each, [number of dead, D].

    Args:
        use: Average use of each code, [K].
        share: Codes used less often than this share of the mean are dead; None leaves all alone.
        seen: This process's vectors of the step, [N, D]; the draw is from those of all processes, in their order.
        rng: The same on every process.
    """
    dead = torch.zeros_like(use, dtype=torch.bool) if share is None else use < share * use.mean()
    wanted = int(dead.sum())  # waits for a GPU
    if not wanted:
        return dead, seen[:0]
    vectors = take_rows(seen, lambda total: drawn(total, wanted if total else 0, rng))
    return dead if vectors.shape[0] else torch.zeros_like(dead), vectors


def mean_square(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference; 0, with a gradient of 0, if there is nothing to average."""
    return F.mse_loss(first, second, reduction="sum") / max(1, first.numel())
