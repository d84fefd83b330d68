"""Convolutional blocks in 1, 2 or 3 spatial dimensions, and the encoders and decoders made of them.

The only file, beside fast/convolutions.py, that knows how many spatial dimensions there are. Letters: B batch,
C channels, D code dimension, N places of a grid; `*shape` stands for the spatial axes.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_HEAD = 32
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_AnyConv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class Sizes:
    """What an encoder and the decoder that mirrors it have in common.

    Attributes:
        rank: Number of spatial dimensions.
        channels: C of the images.
        strides: Of each step from image to grid, along every axis; at least one step. See `factors.py`.
        width: Channels at the grid.
        hidden: Channels inside a residual branch there; in proportion at finer resolutions.
        num_blocks: Residual blocks at the grid, in each of the two.
        code_dim: D; 0 where what is there is as wide as the grid, and no vectors yet, or no longer.
        attention: Whether self-attention joins the blocks at the grid.
        blocks_per_resolution: Residual blocks at each resolution between image and grid.
    """

    rank: int
    channels: int
    strides: tuple[tuple[int, ...], ...]
    width: int
    hidden: int
    num_blocks: int
    code_dim: int
    attention: bool = False
    blocks_per_resolution: int = 0


def conv(rank: int, channels_in: int, channels_out: int, kernel: int) -> nn.Module:
    """Return a convolution of odd kernel size that keeps the spatial shape."""
    return _CONV[rank](channels_in, channels_out, kernel, padding=kernel // 2)


def local_means(x: Tensor, window: int) -> Tensor:
    """Return means over windows of so many places an axis, each half over the one before it, [B, C, *fewer places].

    A shorter axis is one window.
    """
    sizes = [min(window, size) for size in x.shape[2:]]
    pool: Any = _MEANS[len(sizes)]
    means: Tensor = pool(x, sizes, stride=[max(1, size // 2) for size in sizes])
    return means


def kernel_of(stride: int) -> int:
    """Return the kernel size along an axis of this stride: of an even stride twice as many, of an odd one one less.

    So every place is read by two steps of the stride, and one padding on both sides fits both directions. An axis that
    is not strided is read three places wide.
    """
    return 3 if stride == 1 else 2 * stride - stride % 2


def _geometry(strides: tuple[int, ...]) -> dict[str, Any]:
    kernel = tuple(map(kernel_of, strides))
    padding = tuple((size - stride + 1) // 2 for size, stride in zip(kernel, strides, strict=True))
    return {"kernel_size": kernel, "stride": strides, "padding": padding}


def reduce(channels_in: int, channels_out: int, strides: tuple[int, ...]) -> nn.Module:
    """Return a convolution that divides every side, a multiple of its stride, by that."""
    return _CONV[len(strides)](channels_in, channels_out, **_geometry(strides))


def enlarge(channels_in: int, channels_out: int, strides: tuple[int, ...]) -> nn.Module:
    """Return a transposed convolution that multiplies every side by its stride."""
    return _CONV_TRANSPOSE[len(strides)](channels_in, channels_out, **_geometry(strides))


def _down(stages: list[int], sizes: Sizes) -> nn.ModuleList:
    pairs = zip(pairwise(stages), sizes.strides, strict=True)
    return nn.ModuleList(reduce(*channels, strides) for channels, strides in pairs)


def _up(stages: list[int], sizes: Sizes) -> nn.ModuleList:
    pairs = zip(pairwise(stages), reversed(sizes.strides), strict=True)
    return nn.ModuleList(enlarge(*channels, strides) for channels, strides in pairs)


def norm(channels: int) -> nn.Module:
    """Return a group normalisation (Wu and He 2018) of 8 groups, or of as many as divide the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


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


class BottleneckBlock(nn.Module):
    """x + branch(x), [B, C, *shape] -> [B, C, *shape], as `ResidualBlock`; neighbours are read in few channels.

    He et al. 2016, "Deep residual learning for image recognition", figure 5 right, normalised once, in front.
    """

    def __init__(self, rank: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.conv_in = conv(rank, channels, hidden, 1)
        self.conv_mid = conv(rank, hidden, hidden, 3)
        self.conv_out = conv(rank, hidden, channels, 1)
        nn.init.zeros_(self.conv_out.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [B, C, *shape]."""
        hidden = F.silu(self.conv_in(F.silu(self.norm(x))))
        return x + self.conv_out(F.silu(self.conv_mid(hidden)))


class SelfAttention(nn.Module):
    """x + attention(x), [B, C, *shape] -> [B, C, *shape]: every place reads all places of its row; starts at zero.

    C is a multiple of 32; heads are of 64 channels where that divides C, else of 32. It knows of no positions: the
    zero padding of the convolutions tells them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head_size = math.gcd(2 * SMALLEST_HEAD, channels)
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [B, C, *shape]."""
        places = self.norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
        heads = self.qkv(places).unflatten(-1, (3, -1, self.head_size)).permute(2, 0, 3, 1, 4)  # [3, B, heads, N, size]
        # On a CPU the fused kernel takes twice as long in bfloat16 as in float32.
        on_cpu = x.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            query, key, value = (heads.float() if on_cpu else heads).unbind()
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(-1, x.shape[2:])


def has_norm(sizes: Sizes) -> bool:
    """Return whether a norm follows the blocks at the grid: not at a finer one of several, which has no blocks."""
    return sizes.code_dim > 0 or sizes.num_blocks > 0


class _Side(nn.Module):
    """What an encoder and its decoder have in common.

    Attributes:
        block: Class of the residual blocks.
        fewer: How many times fewer channels the next finer resolution has.
        last_norm: What makes the norm that follows the blocks at the grid.
    """

    block: type[ResidualBlock | BottleneckBlock] = ResidualBlock
    fewer = 2
    last_norm = staticmethod(norm)

    def widths(self, sizes: Sizes) -> list[int]:
        """Return the channels after each step; at finer resolutions at least 32 (or the width)."""
        width, least, steps = sizes.width, min(32, sizes.width), len(sizes.strides)
        return [max(least, width // self.fewer ** (steps - 1 - n)) for n in range(steps)]

    def grid_blocks(self, sizes: Sizes) -> nn.Sequential:
        """Return the blocks at the grid; attention stands in their middle, between what gathers and what uses it."""
        blocks: list[nn.Module] = [self.block(sizes.rank, sizes.width, sizes.hidden) for _ in range(sizes.num_blocks)]
        if sizes.attention:
            blocks.insert(sizes.num_blocks // 2, SelfAttention(sizes.width))
        return nn.Sequential(*blocks)

    def fine_blocks(self, sizes: Sizes, channels: int) -> nn.Sequential:
        """Return the blocks at a finer resolution, which has `channels`."""
        hidden = max(1, sizes.hidden * channels // sizes.width)
        return nn.Sequential(*(self.block(sizes.rank, channels, hidden) for _ in range(sizes.blocks_per_resolution)))


class Encoder(_Side):
    """Images [B, C, *shape] -> latents [B, D, *grid]; every side of `shape` is a multiple of its strides."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        rank = sizes.rank
        stages = [sizes.channels, *self.widths(sizes)]
        self.down = _down(stages, sizes)
        self.fine = nn.ModuleList(self.fine_blocks(sizes, channels) for channels in stages[1:-1])
        self.blocks = self.grid_blocks(sizes)
        self.norm = self.last_norm(sizes.width) if has_norm(sizes) else nn.Identity()
        self.out = conv(rank, sizes.width, sizes.code_dim, 1) if sizes.code_dim else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return latents, [B, D, *grid]; features of the width where the code dimension is 0."""
        x = self.down[0](images)
        for blocks, layer in zip(self.fine, self.down[1:], strict=True):
            x = layer(F.silu(blocks(x)))
        return self.out(F.silu(self.norm(self.blocks(x))))


class Decoder(_Side):
    """Vectors [B, D, *grid] -> images [B, C, *shape], each side as many times the grid's as its strides."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        rank = sizes.rank
        stages = [*reversed(self.widths(sizes)), sizes.channels]
        self.stem = conv(rank, sizes.code_dim, sizes.width, 3) if sizes.code_dim else nn.Identity()
        self.blocks = self.grid_blocks(sizes)
        self.norm = self.last_norm(sizes.width) if has_norm(sizes) else nn.Identity()
        self.up = _up(stages, sizes)
        self.fine = nn.ModuleList(self.fine_blocks(sizes, channels) for channels in stages[1:-1])

    def forward(self, vectors: Tensor) -> Tensor:
        """Return images, [B, C, *shape]."""
        x = self.up[0](F.silu(self.norm(self.blocks(self.stem(vectors)))))
        for blocks, layer in zip(self.fine, self.up[1:], strict=True):
            x = layer(F.silu(blocks(x)))
        return x


class BottleneckEncoder(Encoder):
    """`Encoder` that spends its multiplications at the grid: bottleneck blocks, a quarter of the channels at each finer
    resolution. What follows the blocks is not normalised: the latents may tell how much contrast there is.
    """

    block, fewer, last_norm = BottleneckBlock, 4, nn.Identity


class BottleneckDecoder(Decoder):
    """The mirror of `BottleneckEncoder`."""

    block, fewer, last_norm = BottleneckBlock, 4, nn.Identity


class SonnetStack(nn.Module):
    """Residual blocks without norms, and a ReLU after the last, [B, C, *shape] -> [B, C, *shape]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        rank, width, hidden = sizes.rank, sizes.width, sizes.hidden
        self.conv_in = nn.ModuleList(conv(rank, width, hidden, 3) for _ in range(sizes.num_blocks))
        self.conv_out = nn.ModuleList(conv(rank, hidden, width, 1) for _ in range(sizes.num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stack's output, [B, C, *shape]."""
        for conv_in, conv_out in zip(self.conv_in, self.conv_out, strict=True):
            x = x + conv_out(F.relu(conv_in(F.relu(x)), inplace=True))
        return F.relu(x)


def _draw_as_sonnet(module: nn.Module) -> None:
    """Draw weights from a normal of deviation 1 / sqrt(fan in) cut at two deviations, and set biases to 0."""
    for layer in module.modules():
        if isinstance(layer, _AnyConv):
            assert layer.bias is not None
            deviation = (layer.in_channels * math.prod(layer.kernel_size)) ** -0.5
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            nn.init.zeros_(layer.bias)


class SonnetEncoder(nn.Module):
    """Images [B, C, *shape] -> latents [B, D, *grid], as DeepMind's notebook of VQ-VAE on CIFAR-10 does it in Sonnet.

    The notebook's network has two halvings, width 128, hidden 32, two blocks and D 64 (van den Oord et al. 2017,
    section 4.1, made narrower).
    """

    joined: Callable[[Tensor], Tensor] | None = None  # does the same in less time; see joined.py

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        rank, width = sizes.rank, sizes.width
        stages = [sizes.channels, width // 2, *[width] * (len(sizes.strides) - 1)]
        self.down = _down(stages, sizes)
        self.mix = conv(rank, stages[-1], width, 3)
        self.stack = SonnetStack(sizes)
        self.out = conv(rank, width, sizes.code_dim, 1)
        _draw_as_sonnet(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return latents, [B, D, *grid]."""
        if self.joined is not None and not torch.is_grad_enabled():
            return self.joined(images)
        x = images
        for layer in self.down:
            x = F.relu(layer(x), inplace=True)  # a convolution's backward pass does not read what it gave
        return self.out(self.stack(F.relu(self.mix(x), inplace=True)))


class SonnetDecoder(nn.Module):
    """Vectors [B, D, *grid] -> images [B, C, *shape], the mirror of `SonnetEncoder`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        rank, width = sizes.rank, sizes.width
        steps = len(sizes.strides)
        finer = [*[width] * (steps - 2), width // 2] if steps > 1 else []
        self.stem = conv(rank, sizes.code_dim, width, 3)
        self.stack = SonnetStack(sizes)
        self.up = _up([width, *finer, sizes.channels], sizes)
        _draw_as_sonnet(self)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return images, [B, C, *shape]."""
        x = self.up[0](self.stack(self.stem(vectors)))
        for layer in self.up[1:]:
            x = layer(F.relu(x))
        return x


NETWORKS = {
    "residual": (Encoder, Decoder),
    "bottleneck": (BottleneckEncoder, BottleneckDecoder),
    "sonnet": (SonnetEncoder, SonnetDecoder),
}


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
        if images.shape[axis] != side:  # the gradient of a part that is all of it would be a copy
            images = images.narrow(axis, 0, side)
    return images


def ordered(images: Tensor) -> Tensor:
    """Return the same images [B, C, *shape] in the memory order that is the faster one for training.

    Each pixel's channels side by side; on a GPU in float32 each channel's pixels. Weights keep theirs.
    """
    if images.is_cuda and not torch.is_autocast_enabled("cuda"):
        return images.contiguous()
    return images.movedim(1, -1).contiguous().movedim(-1, 1)


def packed(rows: Tensor) -> Tensor:
    """Return a copy in plain memory order: kernels, and so the last bits, are chosen by strides."""
    return rows.clone(memory_format=torch.contiguous_format)
