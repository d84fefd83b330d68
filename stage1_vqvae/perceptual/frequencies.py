"""A distance of spectra, which needs no network. Letters: B batch, C channels."""

from typing import ClassVar

import torch
from torch import Tensor

from stage1_vqvae.perceptual.contract import Perceptual


class FocalFrequency(Perceptual):
    """Squared differences of the spectra, those that are largest weighing most (Jiang et al. 2021, eq. 8 and 9)."""

    weight: ClassVar[float] = 1.0

    def forward(self, images: Tensor, copies: Tensor) -> Tensor:
        """Return the distance; the transform is orthonormal, alpha is 1."""
        axes = tuple(range(2, images.dim()))
        with torch.autocast(images.device.type, enabled=False):
            difference = torch.fft.fftn(copies.float() - images.float(), dim=axes, norm="ortho")
            error = difference.real.square() + difference.imag.square()
            with torch.no_grad():
                focus = error.sqrt()
                focus = focus / focus.amax(dim=axes, keepdim=True).clamp_min(1e-12)
            return (focus * error).mean()
