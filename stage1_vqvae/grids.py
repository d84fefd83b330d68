"""Encoder and decoder of several code grids, of which the coarse ones condition the finer ones.

Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2", section 3.1 and figure 2a: the encoder
goes on from each grid to the next coarser one; what the coarse grid became is handed to the latents of the next finer
one, and the decoder reads all of them. Letters: B batch, C channels, D code dimension, W width of a grid.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from stage1_vqvae.blocks import NETWORKS, Sizes, conv, enlarge
from stage1_vqvae.factors import strides_of

NARROWEST = 32


def sizes_of_grids(sizes: Sizes, factors: tuple[int, ...], between: tuple[int, ...], levels: int) -> list[Sizes]:
    """Return what each grid's part of the network is made of, coarse to fine.

    Args:
        sizes: Of the network of the coarsest grid alone.
        factors: Values of one code of the coarsest grid along each axis.
        between: Cells of a grid along each axis for one of the next coarser grid.
        levels: Number of grids.

    Returns:
        Width and hidden width halve with every step of a finer grid, as at finer resolutions of one grid, and blocks
        and attention are those of the coarsest alone: width keeps more for its seconds (docs/log/2026-11-29-levels.md).
        `channels` are those of the next finer grid, or of the data.
    """
    each_grid = []
    for level in range(levels):
        part = 2 ** (level * len(strides_of(between)))
        width = max(min(NARROWEST, sizes.width), sizes.width // part // 8 * 8)
        hidden = max(8, sizes.hidden // part // 8 * 8) if level else sizes.hidden
        finest = level == levels - 1
        steps = tuple(f // b**level for f, b in zip(factors, between, strict=True)) if finest else between
        own = replace(sizes, num_blocks=0, attention=False) if level else sizes
        each_grid.append(replace(own, strides=strides_of(steps), width=width, hidden=hidden))
    channels = [each.width for each in each_grid[1:]] + [sizes.channels]
    return [replace(each, channels=number) for each, number in zip(each_grid, channels, strict=True)]


class GridsEncoder(nn.Module):
    """Values [B, C, *shape] -> features of every grid; and of these the latents of one grid after the other."""

    def __init__(self, grids: list[Sizes], network: str) -> None:
        super().__init__()
        encoder, _ = NETWORKS[network]
        rank, D = grids[0].rank, grids[0].code_dim
        self.down = nn.ModuleList(encoder(replace(each, code_dim=0)) for each in reversed(grids))
        self.coarser = nn.ModuleList(_steps(D, finer.width, coarse) for coarse, finer in pairwise(grids))
        self.out = nn.ModuleList(conv(rank, each.width, D, 1) for each in grids)

    def forward(self, values: Tensor) -> list[Tensor]:
        """Return features [B, W, *grid] of every grid, coarse to fine."""
        features = []
        for encoder in self.down:
            values = encoder(values)
            features.append(values)
        return features[::-1]

    def latents(self, level: int, features: list[Tensor], coarser: Tensor | None) -> Tensor:
        """Return the latents of a grid, [B, D, *grid].

        Args:
            level: Which grid; 0 is the coarsest.
            features: What `forward` gave.
            coarser: Vectors [B, D, *grid] of the next coarser grid; None at the coarsest.
        """
        own = features[level]
        if coarser is not None:
            own = own + self.coarser[level - 1](coarser)
        latents: Tensor = self.out[level](own)
        return latents


class GridsDecoder(nn.Module):
    """Vectors of every grid -> values: each finer grid is added to what the coarser ones became."""

    def __init__(self, grids: list[Sizes], network: str) -> None:
        super().__init__()
        _, decoder = NETWORKS[network]
        first, *others = grids
        self.stem = nn.ModuleList(conv(each.rank, each.code_dim, each.width, 3) for each in others)
        for name, bias in self.stem.named_parameters():
            if name.endswith("bias"):  # so that zeros, which stand for a grid that is left out, add nothing
                nn.init.zeros_(bias).requires_grad_(False)
        self.up: Any = nn.ModuleList([decoder(first), *(decoder(replace(each, code_dim=0)) for each in others)])

    def forward(self, vectors: list[Tensor]) -> Tensor:
        """Return values [B, C, *shape] of the vectors [B, D, *grid] of every grid, coarse to fine."""
        x: Tensor = self.up[0](vectors[0])
        for stem, decoder, finer in zip(self.stem, self.up[1:], vectors[1:], strict=True):
            x = decoder(x + stem(finer))
        return x

    def of_first(self, vectors: list[Tensor], rows: slice) -> list[Tensor]:
        """Return the values that the first 1, 2, ... grids make of some rows without the finer ones; last, of all rows,
        those of all grids.
        """
        x: Tensor = self.up[0](vectors[0])
        made = []
        for number, (stem, finer) in enumerate(zip(self.stem, vectors[1:], strict=True), start=1):
            alone = x[rows]
            for decoder in self.up[number:]:
                alone = decoder(alone)
            made.append(alone)
            x = self.up[number](x + stem(finer))
        return [*made, x]


def _steps(channels_in: int, channels_out: int, coarse: Sizes) -> nn.Sequential:
    """Return the layers that carry the vectors of a coarse grid to the next finer one."""
    layers: list[nn.Module] = []
    for strides in reversed(coarse.strides):
        layers += [nn.SiLU()] if layers else []
        layers.append(enlarge(channels_in, channels_out, strides))
        channels_in = channels_out
    return nn.Sequential(*layers)
