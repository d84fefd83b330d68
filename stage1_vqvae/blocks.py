"""Convolutional blocks in 1, 2 or 3 spatial dimensions, and the encoder and decoder made of them.

The only file that knows how many spatial dimensions there are. Letters: B batch,
C channels, D code dimension; `*shape` stands for the spatial axes.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv(rank: int, channels_in: int, channels_out: int, kernel: int) -> nn.Module:
    """Return a convolution of odd kernel size that keeps the spatial shape."""
    return _CONV[rank](channels_in, channels_out, kernel, padding=kernel // 2)


def halve(rank: int, channels_in: int, channels_out: int) -> nn.Module:
    """Return a strided convolution that halves every (even) side."""
    return _CONV[rank](channels_in, channels_out, 4, stride=2, padding=1)


def double(rank: int, channels_in: int, channels_out: int) -> nn.Module:
    """Return a transposed convolution that doubles every side."""
    return _CONV_TRANSPOSE[rank](channels_in, channels_out, 4, stride=2, padding=1)


def norm(channels: int) -> nn.Module:
    """Return a group normalisation (Wu and He 2018) of 8 groups; `channels` is a multiple of 8."""
    return nn.GroupNorm(8, channels)


class ResidualBlock(nn.Module):
    """x + branch(x), [B, C, *shape] -> [B, C, *shape]; the branch starts at zero."""

    def __init__(self, rank: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.conv_in = conv(rank, channels, hidden, 3)
        self.conv_out = conv(rank, hidden, channels, 1)
        nn.init.zeros_(self.conv_out.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [B, C, *shape]."""
        return x + self.conv_out(F.silu(self.conv_in(F.silu(self.norm(x)))))


def widths(width: int, num_halvings: int) -> list[int]:
    """Return the channels after each halving: half as many at each finer resolution, at least 32 (or `width`)."""
    return [max(min(32, width), width >> (num_halvings - 1 - n)) for n in range(num_halvings)]


class Encoder(nn.Module):
    """Images [B, C, *shape] -> latents [B, D, *grid]; every side of `shape` is a multiple of 2 ** num_halvings."""

    def __init__(
        self, rank: int, *, channels: int, num_halvings: int, width: int, hidden: int, num_blocks: int, code_dim: int
    ) -> None:
        super().__init__()
        stages = [channels, *widths(width, num_halvings)]
        self.down = nn.ModuleList(halve(rank, a, b) for a, b in pairwise(stages))
        self.blocks = nn.ModuleList(ResidualBlock(rank, width, hidden) for _ in range(num_blocks))
        self.norm = norm(width)
        self.out = conv(rank, width, code_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return latents, [B, D, *grid]."""
        x = images
        for number, layer in enumerate(self.down):
            x = layer(F.silu(x) if number else x)
        for block in self.blocks:
            x = block(x)
        return self.out(F.silu(self.norm(x)))


class Decoder(nn.Module):
    """Vectors [B, D, *grid] -> images [B, C, *shape], each side 2 ** num_halvings times the grid's."""

    def __init__(
        self, rank: int, *, channels: int, num_halvings: int, width: int, hidden: int, num_blocks: int, code_dim: int
    ) -> None:
        super().__init__()
        stages = [*reversed(widths(width, num_halvings)), channels]
        self.stem = conv(rank, code_dim, width, 3)
        self.blocks = nn.ModuleList(ResidualBlock(rank, width, hidden) for _ in range(num_blocks))
        self.norm = norm(width)
        self.up = nn.ModuleList(double(rank, a, b) for a, b in pairwise(stages))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return images, [B, C, *shape]."""
        x = self.stem(vectors)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        for layer in self.up:
            x = layer(F.silu(x))
        return x


def pad_to(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return `images` [B, C, *smaller] grown to `shape` by repeating the last pixel of each axis."""
    missing = [after - before for before, after in zip(images.shape[2:], shape, strict=True)]
    if not any(missing):
        return images
    sides = [side for amount in reversed(missing) for side in (0, amount)]
    return F.pad(images, sides, mode="replicate")


def crop_to(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the first `shape` pixels of `images` [B, C, *larger] along each spatial axis."""
    for axis, side in enumerate(shape, start=2):
        images = images.narrow(axis, 0, side)
    return images
