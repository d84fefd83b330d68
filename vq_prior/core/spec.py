"""What the two stages say to each other: the code spec and the codec protocol.

Letters: B batch, C channels, K codes of a level, T tokens of a sequence.
"""

import math
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Form, Modality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

MAX_CHANNELS = 65_536
MAX_AXIS = 2**28  # an hour and a half of sound at 48 kHz
MAX_NUMBERS = 2**28  # of one item, all channels together: a gigabyte as float32
MAX_CODES = 2**31 - 1
MAX_LEVELS = 64
MAX_TOKENS = 2**24


@dataclass(frozen=True)
class LevelSpec:
    """One code grid: its shape (1 to 3 axes) and the number of codes a cell can hold."""

    grid: tuple[int, ...]
    num_codes: int

    @property
    def num_tokens(self) -> int:
        """Cells of the grid."""
        return prod(self.grid)


@dataclass(frozen=True)
class CodeSpec:
    """The shape of the data and of every code grid, coarse to fine.

    Attributes:
        channels: Channels of the data (3 for RGB).
        shape: Size of the data along each spatial axis, `(height, width)` for images.
        levels: One entry a code grid. Residual quantisation of depth d is d levels of the same grid.

    Raises:
        ArtifactError: If a size is out of range or the ranks differ.
    """

    channels: int
    shape: tuple[int, ...]
    levels: tuple[LevelSpec, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= 3:
            raise ArtifactError(f"spec.shape must have 1 to 3 axes, got {list(self.shape)}")
        if not 1 <= len(self.levels) <= MAX_LEVELS:
            raise ArtifactError(f"spec.levels must hold 1 to {MAX_LEVELS} levels, got {len(self.levels)}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ArtifactError(f"spec.channels must be between 1 and {MAX_CHANNELS}, got {self.channels}")
        for size in self.shape:
            if not 1 <= size <= MAX_AXIS:
                raise ArtifactError(f"spec.shape must be between 1 and {MAX_AXIS} along each axis, got {size}")
        if self.channels * prod(self.shape) > MAX_NUMBERS:
            raise ArtifactError(
                f"spec.shape {list(self.shape)} times {self.channels} channels are more than {MAX_NUMBERS} numbers"
            )
        for number, level in enumerate(self.levels):
            if len(level.grid) != self.rank:
                raise ArtifactError(
                    f"spec.levels[{number}].grid must have {self.rank} axes like the data, got {list(level.grid)}"
                )
            if not all(1 <= size <= MAX_AXIS for size in level.grid):
                raise ArtifactError(f"spec.levels[{number}].grid must be between 1 and {MAX_AXIS}, got {level.grid}")
            if not 1 <= level.num_codes <= MAX_CODES:
                raise ArtifactError(
                    f"spec.levels[{number}].num_codes must be between 1 and {MAX_CODES}, got {level.num_codes}"
                )
        if self.num_tokens > MAX_TOKENS:
            raise ArtifactError(f"spec.levels hold {self.num_tokens} tokens, more than {MAX_TOKENS}")

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    @property
    def num_tokens(self) -> int:
        """Codes of one item, all levels together."""
        return sum(level.num_tokens for level in self.levels)


class Codec(Protocol):
    """Stage one as the rest of the program sees it.

    A codec need not have a codebook tensor. Shapes are those of `spec`.
    """

    @property
    def spec(self) -> CodeSpec:
        """Shapes of the data and of the codes."""
        ...

    @property
    def modality(self) -> Modality:
        """What its values are."""
        ...

    @property
    def transform(self) -> Form:
        """The form that its values are in."""
        ...

    @property
    def codec_id(self) -> str:
        """Hash that binds codes and priors to this codec."""
        ...

    @property
    def kind(self) -> str:
        """What a MODEL's index calls its kind: "vqvae" is our own."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should be told about where it came from."""
        ...

    @property
    def loaded_from(self) -> "Path | None":
        """The folder of a codec alone that it was read from; None if it was none, or held more than the codec."""
        ...

    @property
    def can_decode(self) -> bool:
        """Whether codes can become data again."""
        ...

    @property
    def separable(self) -> bool:
        """Whether `decode` takes the first levels alone, and None in place of the codes of a level."""
        ...

    @property
    def latent(self) -> "Latent | None":
        """Itself where it can tell its latents, else None."""
        ...

    def encode(self, images: "Tensor") -> "tuple[Tensor, ...]":
        """Return the codes of each level, `[B, *grid]` int64, from images `[B, C, *shape]` in [-1, 1]."""
        ...

    def decode(self, codes: Any, /) -> "Tensor":
        """Return images `[B, C, *shape]` float32 in [-1, 1] from the codes of each level."""
        ...

    def to(self, device: Any, /) -> Any:
        """Move it to a device."""
        ...

    def eval(self) -> Any:
        """Leave training mode."""
        ...

    def save(self, folder: "Path", /) -> None:
        """Write its files into a staging folder of the caller."""
        ...


class Latent(Protocol):
    """What a codec can do whose encoder gives one latent vector a cell of the grid, and whose decoder takes them."""

    @property
    def decodes_latents(self) -> bool:
        """Whether the decoder knows what to make of latents that were not quantised."""
        ...

    def encode_latents(self, images: "Tensor") -> "Tensor":
        """Return latents `[B, *grid, D]` float32 of images `[B, C, *shape]`."""
        ...

    def decode_latents(self, latents: "Tensor") -> "Tensor":
        """Return the images `[B, C, *shape]` of latents `[B, *grid, D]`."""
        ...

    def encode_in_bfloat16(self, images: "Tensor") -> "tuple[Tensor, ...]":
        """Return the codes of each level that a bfloat16 copy of the encoder gives images `[B, C, *shape]`."""
        ...


BEYOND = 0.01  # of the bounds' distance: what rounding and resampling make of a value, and no more


def check_images(spec: CodeSpec, images: "Tensor", bounds: tuple[float, float] | None = None, how: str = "") -> None:
    """Raise `UsageError` unless images are a floating-point tensor `[B, C, *shape]`, B at least 1, of finite values.

    Args:
        spec: Of the codec.
        images: What it was given.
        bounds: Least and largest value of its kind, which nothing may be more than 1% beyond; None where there is none.
        how: How other numbers become such values, in words.
    """
    import torch

    low, high = bounds or (-math.inf, math.inf)
    range_ = f"in [{low:g}, {high:g}]" if bounds else "that are finite"
    how = f"; {how}" if how else ""
    if not isinstance(images, torch.Tensor):
        raise UsageError(
            f"images must be a tensor, got {type(images).__name__}; torch.from_numpy makes one of an array"
        )
    if not images.is_floating_point():
        raise UsageError(f"images must be floating-point values {range_}, got {str(images.dtype)[6:]}{how}")
    if tuple(images.shape[1:]) != (spec.channels, *spec.shape) or images.shape[0] < 1:
        wanted = ", ".join(map(str, (spec.channels, *spec.shape)))
        raise UsageError(f"images must have shape [B, {wanted}], got {list(images.shape)}")
    least, most = (float(value) for value in images.aminmax())
    if math.isnan(least) or math.isnan(most):
        raise UsageError(f"images must be values {range_}, got NaN; mend what made them")
    beyond = BEYOND * (high - low) if bounds else 0.0
    if not (low - beyond <= least and most <= high + beyond and math.isfinite(least) and math.isfinite(most)):
        raise UsageError(f"images must be values {range_}, got {least:g} to {most:g}{how}")


def by(sizes: tuple[int, ...], times: str = " x ") -> str:
    """Return sizes as people write them.

    >>> by((48, 40)), by((48, 40), "x")
    ('48 x 40', '48x40')
    """
    return times.join(map(str, sizes))


def check_codes(spec: CodeSpec, codes: "Sequence[Tensor | None]", *, separable: bool = False) -> None:
    """Raise `UsageError` unless there is one tensor `[B, *grid]` a level, B at least 1, of codes in range.

    Args:
        spec: Of the codec.
        codes: What it was given.
        separable: Whether the first levels alone will do, and None stands for one that is left out; one must be there.
    """
    import torch

    there = [level for level in codes if not (separable and level is None)]
    if isinstance(codes, torch.Tensor) or not all(isinstance(level, torch.Tensor) for level in there):
        raise UsageError(
            "codes must be a tuple with a tensor of integers for each level; torch.from_numpy(x) makes one"
        )
    if not there or len(codes) > len(spec.levels) or (len(codes) < len(spec.levels) and not separable):
        most = "1 to " if separable and len(spec.levels) > 1 else ""
        raise UsageError(f"codes must be a tuple of {most}{len(spec.levels)} level(s), got {len(there)}")
    if len({len(level) for level in there if level is not None and level.ndim}) > 1:
        counts = ", ".join(str(len(level)) for level in there if level is not None and level.ndim)
        raise UsageError(f"codes must be of as many images in every level, got {counts}")
    for number, (level, level_codes) in enumerate(zip(spec.levels, codes, strict=False)):
        if level_codes is None:
            continue
        if level_codes.is_floating_point() or level_codes.is_complex():
            raise UsageError(f"codes[{number}] must be integers, got {str(level_codes.dtype)[6:]}")
        if tuple(level_codes.shape[1:]) != level.grid or level_codes.shape[0] < 1:
            raise UsageError(
                f"codes[{number}] must have shape [B, {', '.join(map(str, level.grid))}], got {list(level_codes.shape)}"
            )
        low, high = (int(value) for value in level_codes.long().aminmax())
        if low < 0 or high >= level.num_codes:
            raise UsageError(f"codes[{number}] must lie in [0, {level.num_codes}), got {low} to {high}")
