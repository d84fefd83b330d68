"""A distance of the distributions of patches, which needs no trained network. Letters: B batch, C channels."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from stage1_vqvae.blocks import conv
from stage1_vqvae.perceptual.contract import Making, Perceptual
from vq_prior.core.training.randomness import keyed_generator

KERNELS, PROJECTIONS = (3, 5), 32


class SlicedPatches(Perceptual):
    """Sliced Wasserstein distance of the patches of a value (Elnekave and Weiss 2022, "Generating natural images with
    direct patch distributions matching"): patches are projected on random directions, and sorted.
    """

    weight: ClassVar[float] = 1.0

    def __init__(self, making: Making) -> None:
        super().__init__(making)
        C, rank = making.spec.channels, len(making.spec.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_generator(making.seed, 0, "perceptual weights").integers(2**63)))
            self.projections = nn.ModuleList(conv(rank, C, PROJECTIONS, kernel) for kernel in KERNELS)
            for weight, bias in (each.parameters() for each in self.projections):
                kernels = torch.randn_like(weight.flatten(1))
                kernels -= kernels.mean(dim=1, keepdim=True)
                weight.data = (kernels / kernels.norm(dim=1, keepdim=True)).reshape(weight.shape)
                bias.data.zero_()

    def forward(self, images: Tensor, copies: Tensor) -> Tensor:
        """Return the mean squared difference of the sorted projections."""
        total = copies.new_zeros((), dtype=torch.float32)
        for projection in self.projections:
            with torch.no_grad():
                wanted = projection(images).float().flatten(2).sort(dim=2).values
            found = projection(copies).float().flatten(2).sort(dim=2).values
            total = total + (found - wanted).square().mean()
        return total / len(self.projections)
