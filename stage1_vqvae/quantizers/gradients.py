"""How a gradient gets past the choice of a code. Letters: D code dimension."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vq_prior.core.registry import Registry

Estimator = Callable[[Tensor, Tensor], Tensor]


class _StraightThrough(torch.autograd.Function):
    """`chosen` forwards, the identity with respect to z backwards."""

    @staticmethod
    def forward(_context: Any, _z: Tensor, chosen: Tensor) -> Tensor:
        return chosen.view_as(chosen)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(z: Tensor, chosen: Tensor) -> Tensor:
    """Return `chosen`, [..., D]; its gradient goes to z unchanged (Bengio et al. 2013; van den Oord et al. 2017)."""
    return _StraightThrough.apply(z, chosen.detach())


def rotation(z: Tensor, chosen: Tensor) -> Tensor:
    """Return `chosen`, [..., D]; its gradient goes to z by the rotation and scaling that take z to it.

    Fifty et al. 2024, "Restructuring vector quantization with the rotation trick", eq. 4 and
    section 4.2: R z = z - 2 r r'z + 2 q e'z with e = z / |z|, q = chosen / |chosen| and
    r = (e + q) / |e + q|, all but the trailing z held constant. Where e and q are
    opposite, no rotation is defined and the gradient goes straight through.
    """
    with torch.no_grad():
        length = z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        e = z / length
        long = chosen.norm(dim=-1, keepdim=True)
        q = chosen / long.clamp_min(1e-12)
        between = e + q
        size = between.norm(dim=-1, keepdim=True)
        r = between / size.clamp_min(1e-12)
        scale = long / length
        defined = (size > 1e-3) & (long > 1e-12)
    turned = scale * (z - 2 * r * (r * z).sum(-1, keepdim=True) + 2 * q * (e * z).sum(-1, keepdim=True))
    return straight_through(torch.where(defined, turned, z), chosen)


ESTIMATORS: Registry[Estimator] = Registry("gradient")
ESTIMATORS.add("straight-through", straight_through)
ESTIMATORS.add("rotation", rotation)
