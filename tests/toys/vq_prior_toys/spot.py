"""A condition of three floats: a place and a size, as sines and cosines of two frequencies, in two places."""

import torch
from torch import Tensor, nn

from stage2_prior.conditions import Condition
from vq_prior.core.disk.code_store import Column
from vq_prior.core.errors import UsageError

FREQUENCIES = (1.0, 3.0)


class Spot(Condition):
    """Three floats in [-10, 10], as two vectors of the prompt."""

    num_places = 2

    def __init__(self, column: Column, width: int) -> None:
        super().__init__(column, width)
        self.out = nn.Linear(6 * len(FREQUENCIES), self.num_places * width)

    @classmethod
    def takes(cls, column: Column) -> bool:
        """Return whether the column is named `spot` and holds three floats."""
        return column.name == "spot" and column.dtype == "float32" and column.shape == (3,)

    def check(self, values: Tensor) -> None:
        """Raise `UsageError` if a value is out of range."""
        if bool((values.abs() > 10).any()):
            raise UsageError(f"spot must lie in [-10, 10], got {float(values.abs().max()):g}")

    def forward(self, values: Tensor) -> Tensor:
        """Return vectors [B, 2, D]."""
        angles = torch.cat([values * frequency for frequency in FREQUENCIES], dim=1)
        waves: Tensor = self.out(torch.cat([angles.sin(), angles.cos()], dim=1))
        return waves.view(len(values), self.num_places, self.width)
