"""How alike two sets of images are, in the features of a network; deterministic, in float64.

Letters: n, m images; D features; K classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5


class Overlap(NamedTuple):
    """How the manifolds of two sets overlap, each in [0, 1] but density, which may pass 1.

    Attributes:
        precision: Share of the samples that lie on the manifold of the reference: are they real-looking?
        recall: Share of the reference that lies on the manifold of the samples: is everything drawn?
        density: As precision, but counting in how many balls a sample lies, so that an outlier counts less.
        coverage: Share of the reference whose ball holds a sample at all.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def kernel_distance(samples: Tensor, reference: Tensor) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of features [n, D] and [m, D].

    The kernel is (x.y / D + 1)^3 (Bińkowski et al. 2018, "Demystifying MMD GANs", section 3), over all pairs rather
    than over random subsets: nothing is drawn. May fall a little below 0.
    """
    samples, reference = samples.double(), reference.double()

    def mean_within(x: Tensor) -> float:
        n = len(x)
        diagonal = _polynomial((x * x).sum(dim=1), x.shape[1]).sum()
        return float((_kernel_sum(x, x) - diagonal) / (n * (n - 1)))

    between = float(_kernel_sum(samples, reference)) / (len(samples) * len(reference))
    return mean_within(samples) + mean_within(reference) - 2 * between


def _polynomial(products: Tensor, D: int) -> Tensor:
    return (products / D + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([_polynomial(part @ y.T, x.shape[1]).sum() for part in x.split(ROWS_AT_ONCE)]).sum()


def overlap(samples: Tensor, reference: Tensor) -> Overlap:
    """Return precision, recall, density and coverage of samples [n, D] against a reference [m, D].

    Precision and recall after Kynkäänniemi et al. 2019 (eq. 1 and 2) with 3 neighbours, density and coverage after
    Naeem et al. 2020 (eq. 4 and 5) with 5. A point lies in a ball whose radius it reaches exactly.

    Raises:
        ValueError: With less than 6 features in a set.
    """
    if min(len(samples), len(reference)) <= DENSITY_NEIGHBOURS:
        raise ValueError(f"overlap needs more than {DENSITY_NEIGHBOURS} images in each set")
    samples, reference = samples.double(), reference.double()
    sample_radii = neighbour_distances(samples, NEIGHBOURS)[:, -1]
    radii = neighbour_distances(reference, DENSITY_NEIGHBOURS)
    near, far = radii[:, NEIGHBOURS - 1], radii[:, DENSITY_NEIGHBOURS - 1]
    inside, balls = [], 0
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    covered = torch.zeros_like(recalled)
    for rows, distances in _distances(samples, reference):
        inside.append((distances <= near).any(dim=1))
        recalled |= (distances <= sample_radii[rows, None]).any(dim=0)
        within = distances <= far
        balls += int(within.sum())
        covered |= within.any(dim=0)
    return Overlap(
        precision=float(torch.cat(inside).double().mean()),
        recall=float(recalled.double().mean()),
        density=balls / (DENSITY_NEIGHBOURS * len(samples)),
        coverage=float(covered.double().mean()),
    )


def neighbour_distances(x: Tensor, k: int) -> Tensor:
    """Return the squared distances of each point of [n, D] to its k nearest others, ascending, [n, k]."""
    nearest = []
    for rows, distances in _distances(x, x):
        distances[torch.arange(len(distances)), rows] = torch.inf
        nearest.append(distances.topk(k, largest=False).values)
    return torch.cat(nearest)


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for some rows of x at a time, their numbers and their squared distances to all of y."""
    middle = y.mean(dim=0)  # products of centred points lose fewer digits
    x, y = x - middle, y - middle
    lengths = (y * y).sum(dim=1)
    for rows in torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE):
        part = x[rows]
        yield rows, ((part * part).sum(dim=1)[:, None] - 2 * part @ y.T + lengths).clamp_min_(0)


def inception_score(probabilities: Tensor) -> float:
    """Return exp of the mean KL divergence of each row of class probabilities [n, K] from their mean: 1 to K.

    Salimans et al. 2016, section 4; over the whole set, without splits.
    """
    p = probabilities.double()
    divergence = torch.special.xlogy(p, p).sum(dim=1) - torch.special.xlogy(p, p.mean(dim=0)).sum(dim=1)
    return float(divergence.mean().exp())
