"""Perceptual terms of a codec's loss: distances that see what people see, texture and shape before single pixels.

A squared error asks for the mean of all pictures that a code could be, which is smooth. These terms ask that what a
reconstruction shows be of the same kind as the picture: the statistics of local features, of frequencies, of patches.
"""

from stage1_vqvae.perceptual.contract import Making, Perceptual
from vq_prior.core.registry import Registry

PERCEPTUAL: Registry[type[Perceptual]] = Registry("perceptual loss")
for _name, _home in {
    "own": "own:OwnFeatures",
    "turns": "own:TurnFeatures",
    "random": "own:RandomFeatures",
    "focal-frequency": "frequencies:FocalFrequency",
    "patches": "patches:SlicedPatches",
}.items():
    PERCEPTUAL.add_home(_name, f"stage1_vqvae.perceptual.{_home}")

__all__ = ["PERCEPTUAL", "Making", "Perceptual", "kind_of"]


def kind_of(name: str) -> type[Perceptual]:
    """Return the kind of term that `--loss.perceptual NAME` asks for; raises `UsageError` if there is none."""
    if name.startswith("lpips-"):
        from stage1_vqvae.perceptual.networks import Lpips

        return Lpips
    if name in PERCEPTUAL or not ("/" in name or "\\" in name or name.startswith(".")):
        return PERCEPTUAL[name]
    from stage1_vqvae.perceptual.networks import NetworkFeatures

    return NetworkFeatures
