"""The quantisers of several code grids, one a grid."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from stage1_vqvae.quantizers.contract import Quantizer, named_tensors, updated


class GridQuantizers(nn.Module):
    """One quantiser a grid, coarse to fine, with what a training asks of a quantiser.

    Attributes:
        grids: The quantisers.
        level_sizes: K of each level of all grids.
        separable, near_latents, loss_terms, code_dim, num_codes: As of each of them.
    """

    near_latents = False  # the latents of a fine grid depend on the codes of the coarse ones

    def __init__(self, quantizers: list[Quantizer]) -> None:
        super().__init__()
        self.grids: Any = nn.ModuleList(quantizers)
        first = quantizers[0]
        self.settings, self.num_codes, self.code_dim = first.settings, first.num_codes, first.code_dim
        self.level_sizes = tuple(size for each in quantizers for size in each.level_sizes)
        self.loss_terms: Mapping[str, float | None] = first.loss_terms
        self.separable = all(each.separable or len(each.level_sizes) == 1 for each in quantizers)

    def begin_step(self, **step: Any) -> None:
        """Prepare every quantiser for a forward pass in training."""
        for each in self.grids:
            each.begin_step(**step)

    def update(self, rng: np.random.Generator) -> dict[str, float]:
        """Update every quantiser; return the sums of the counts."""
        return updated(self.grids, rng)

    def identity_config(self) -> dict[str, Any]:
        """Return the settings on which codes depend."""
        config: dict[str, Any] = self.grids[0].identity_config()
        return config | {"grids": len(self.grids)}

    def identity_tensors(self) -> dict[str, Tensor]:
        """Return the tensors on which codes depend."""
        return named_tensors("grids", self.grids)
