"""The Fréchet distance of two sets of features; deterministic, in float64. Letters: n, m images; D features."""

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 1024


class _AsTheyAre(nn.Module):
    """A feature network that gives what it gets: torchmetrics asks for a network, here features are at hand."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """Return the Fréchet distance of two sets of features [n, D] and [m, D] (Heusel et al. 2017, eq. 6).

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), by torchmetrics.

    0 is alike. It is biased upwards by about D / n: compare at equal n, and keep n well above D.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    # In one of several processes it would wait for the others, which have no features.
    distance = FrechetInceptionDistance(feature=_AsTheyAre(reference.shape[1]), sync_on_compute=False)
    distance.set_dtype(torch.float64)
    for real, features in ((True, reference), (False, samples)):
        for part in features.double().split(ROWS_AT_ONCE):
            distance.update(part, real=real)
    return float(distance.compute())
