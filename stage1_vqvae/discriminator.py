"""A discriminator of patches: it tells reconstructions from the data, and the codec learns to mislead it.

Huang et al. 2024, "The GAN is dead; long live the GAN! A modern baseline GAN": the relativistic loss with the
penalties R1 and R2, a network without normalisation; or the hinge loss (Lim and Ye 2017, "Geometric GAN").
Letters: B batch, C channels, P patches.
"""

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage1_vqvae.adversary import Adversary, MakeAdversary
from stage1_vqvae.blocks import conv, reduce
from stage1_vqvae.settings import LossSettings
from vq_prior.core.spec import CodeSpec

WIDTHS = (32, 64, 128)
LEAST_SIDE = 6  # of what is halved
PENALTY = 0.1  # gamma: half of it times the squared length of the gradient of a patch's logit, of data and copies


class Discriminator(Adversary):
    """Logits of overlapping patches, [B, C, *shape] -> [B, P]; each sees about 20 places of an axis."""

    name: ClassVar[str] = "discriminator"
    loss_terms: ClassVar[dict[str, float | None]] = {"adversarial": 1.0}
    told: ClassVar[tuple[str, ...]] = ("logit_of_data", "logit_of_copies", "accuracy")
    share = 0.3
    rises = 0.1

    def __init__(self, spec: CodeSpec, *, kind: str, pull: float, pulls_from: float) -> None:
        super().__init__()
        self.kind, self.pull = kind, pull
        self.pulls_from, self.starts = pulls_from, pulls_from / 2
        rank, side, before = len(spec.shape), min(spec.shape), spec.channels
        layers: list[nn.Module] = []
        for number, width in enumerate(WIDTHS):
            halves = number > 0 and side > LEAST_SIDE
            layers += [reduce(before, width, (2,) * rank) if halves else conv(rank, before, width, 3)]
            layers += [nn.LeakyReLU(0.2)]
            before, side = width, -(-side // 2) if halves else side
        self.layers = nn.Sequential(*layers, conv(rank, before, 1, 3))

    def logits(self, values: Tensor) -> Tensor:
        """Return the logits of patches, [B, P]."""
        logits: Tensor = self.layers(values)
        return logits.flatten(1)

    def judged(self, images: Tensor, copies: Tensor) -> dict[str, Tensor]:
        """Return how well it tells the reconstructions apart."""
        found = self.logits(copies).float()
        if self.kind == "hinge":
            return {"adversarial": -found.mean()}
        with torch.no_grad():
            real = self.logits(images).float()
        return {"adversarial": F.softplus(real - found).mean()}

    def forward(self, images: Tensor, copies: Tensor) -> dict[str, Tensor]:
        """Return its loss, both penalties, and what is told; computed in float32, for the second derivatives."""
        with torch.autocast(images.device.type, enabled=False):
            both = [values.detach().float().requires_grad_() for values in (images, copies)]
            real, found = (self.logits(values) for values in both)
            penalties = [self._penalty(*pair) for pair in zip(both, (real, found), strict=True)]
        if self.kind == "hinge":
            own = (1 - real).relu().mean() + (1 + found).relu().mean()
        else:
            own = F.softplus(found - real).mean()
        return {
            self.kind: own,
            "r1": penalties[0],
            "r2": penalties[1],
            "logit_of_data": real.detach().mean(),
            "logit_of_copies": found.detach().mean(),
            "accuracy": (real.detach() > found.detach()).float().mean(),
        }

    def _penalty(self, values: Tensor, logits: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(logits.sum(), values, create_graph=True)
        return PENALTY / 2 * gradient.square().flatten(1).sum(dim=1).mean() / logits.shape[1]


def adversary_of(settings: LossSettings) -> MakeAdversary | None:
    """Return what makes the discriminator that the settings ask for; None without one."""
    if settings.adversarial is None:
        return None
    options: dict[str, Any] = {"kind": settings.adversarial, "pull": settings.adversarial_weight}
    return partial(Discriminator, pulls_from=settings.adversarial_start, **options)
