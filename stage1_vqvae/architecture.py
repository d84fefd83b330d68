"""What a codec of ours is made of, checked.

Letters: C channels, D code dimension.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from stage1_vqvae.blocks import SMALLEST_HEAD, Sizes, kernel_of
from stage1_vqvae.factors import ALLOWED, as_one, can_be_taken, factors_of, grid_of, strides_of
from stage1_vqvae.grids import sizes_of_grids
from stage1_vqvae.quantizer_settings import QuantizerSettings, check_quantizer_settings
from stage1_vqvae.quantizers import QUANTIZERS
from vq_prior.core.config import from_json, to_json
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.processes.stock import PretrainedConfig
from vq_prior.core.spec import CodeSpec, LevelSpec

MAX_TENSOR_ELEMENTS = 2**28
MAX_GRIDS = 8
LATER: dict[str, Any] = {"grids": 1, "grid_factor": 2}
LATER_OF_QUANTIZER: dict[str, Any] = {"depth": 1, "level_dropout": None, "level_codes": None}
CONFIG = "config.json"


@dataclass(frozen=True)
class Architecture:
    """What the codec is made of.

    Attributes:
        channels: C of the images.
        shape: Size of the images along each of 1 to 3 spatial axes.
        downsampling: Pixels of one code along every axis, or one number an axis; factors that are alike are one.
        width: Channels at the resolution of the grid, a multiple of 8, and of 32 with attention.
        residual_width: Channels inside a residual branch.
        num_residual_blocks: Residual blocks at the resolution of the grid, of the encoder, and of the decoder.
        quantizer: The quantiser, resolved.
        network: Which encoder and decoder.
        attention: Whether self-attention joins those blocks; not in sonnet.
        blocks_per_resolution: Residual blocks at each resolution between image and grid; not in sonnet.
        grids: Number of code grids, coarse to fine; `downsampling` and `width` are those of the coarsest.
        grid_factor: Cells of a grid along every axis, or one number an axis, for one of the next coarser grid.
    """

    channels: int
    shape: tuple[int, ...]
    downsampling: int | tuple[int, ...]
    width: int
    residual_width: int
    num_residual_blocks: int
    quantizer: QuantizerSettings
    network: Literal["residual", "bottleneck", "sonnet"] = "residual"
    attention: bool = False
    blocks_per_resolution: int = 0
    grids: int = 1
    grid_factor: int | tuple[int, ...] = 2

    def __post_init__(self) -> None:
        for name in ("downsampling", "grid_factor"):
            object.__setattr__(self, name, as_one(getattr(self, name), len(self.shape)))

    @property
    def factors(self) -> tuple[int, ...]:
        """Values of one code of the coarsest grid along each axis."""
        return factors_of(self.downsampling, len(self.shape))

    @property
    def padded(self) -> tuple[int, ...]:
        """Shape that values are padded to inside, a multiple of the factors."""
        grid = grid_of(self.shape, self.downsampling)
        return tuple(side * factor for side, factor in zip(grid, self.factors, strict=True))

    def grid_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of each grid, coarse to fine."""
        coarse, between = grid_of(self.shape, self.downsampling), factors_of(self.grid_factor, len(self.shape))
        return tuple(
            tuple(side * factor**level for side, factor in zip(coarse, between, strict=True))
            for level in range(self.grids)
        )

    def sizes(self) -> list[Sizes]:
        """Return what the network of each grid is made of, coarse to fine."""
        assert self.quantizer.code_dim is not None
        whole = Sizes(
            rank=len(self.shape),
            channels=self.channels,
            strides=strides_of(self.factors),
            width=self.width,
            hidden=self.residual_width,
            num_blocks=self.num_residual_blocks,
            code_dim=self.quantizer.code_dim,
            attention=self.attention,
            blocks_per_resolution=self.blocks_per_resolution,
        )
        if self.grids == 1:
            return [whole]
        return sizes_of_grids(whole, self.factors, factors_of(self.grid_factor, len(self.shape)), self.grids)

    def spec(self) -> CodeSpec:
        """Return the shapes of images and codes; raises `ArtifactError` if they are out of range."""
        sizes_of = QUANTIZERS[self.quantizer.name].sizes_of
        levels = tuple(
            LevelSpec(grid, size)
            for number, grid in enumerate(self.grid_shapes())
            for size in sizes_of(self.quantizer.of_grid(number))
        )
        return CodeSpec(self.channels, self.shape, levels)

    def check_grids(self, where: str) -> None:
        """Raise `ArtifactError` naming what of several grids cannot be built."""
        if not 1 <= self.grids <= MAX_GRIDS:
            raise ArtifactError(f"{where}.grids must be between 1 and {MAX_GRIDS}, got {self.grids}")
        between = factors_of(self.grid_factor, len(self.shape))
        if len(between) != len(self.shape) or not can_be_taken(self.grid_factor):
            raise ArtifactError(f"{where}.grid_factor must be {ALLOWED}, got {self.grid_factor}")
        if self.grids == 1:
            return
        if self.network == "sonnet":
            raise ArtifactError(f"{where}.network sonnet has one code grid, not {self.grids}")
        left = [f % b ** (self.grids - 1) for f, b in zip(self.factors, between, strict=True)]
        finest = [f // b ** (self.grids - 1) for f, b in zip(self.factors, between, strict=True)]
        if any(left) or max(finest) < 2:
            raise ArtifactError(
                f"{where}.downsampling {self.downsampling} must be {self.grid_factor} to the power {self.grids - 1} "
                f"times 2 or more for {self.grids} grids, so that the finest still has fewer cells than the data"
            )

    def check(self, where: str) -> None:
        """Raise `ArtifactError` naming the first entry that cannot be built."""
        limits = {
            "width": (8, 4096, SMALLEST_HEAD if self.attention else 8),
            "residual_width": (1, 4096, 1),
            "num_residual_blocks": (0, 64, 1),
            "blocks_per_resolution": (0, 64, 1),
            "channels": (1, 1024, 1),
        }
        for name, (low, high, multiple) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high or value % multiple:
                raise ArtifactError(f"{where}.{name} must be a multiple of {multiple} in {low}..{high}, got {value}")
        if not can_be_taken(self.downsampling):
            raise ArtifactError(f"{where}.downsampling must be {ALLOWED}, got {self.downsampling}")
        if not isinstance(self.downsampling, int) and len(self.downsampling) != len(self.shape):
            raise ArtifactError(f"{where}.downsampling must be {len(self.shape)} numbers, got {self.downsampling}")
        if self.network == "sonnet" and (self.attention or self.blocks_per_resolution):
            raise ArtifactError(f"{where}.network sonnet has neither attention nor blocks_per_resolution")
        self.check_grids(where)
        quantizer = self.quantizer
        if quantizer.name not in QUANTIZERS:
            known = ", ".join(QUANTIZERS.names())
            raise ArtifactError(f"{where}.quantizer.name must be one of {known}, got {quantizer.name!r}")
        if quantizer.num_codes is None or quantizer.code_dim is None:
            raise ArtifactError(f"{where}.quantizer must have num_codes and code_dim")
        try:
            check_quantizer_settings(quantizer, typed=False)
        except UsageError as error:
            raise ArtifactError(f"{where}.quantizer: {error}") from error
        levels, listed = self.grids * quantizer.depth, quantizer.level_codes
        if listed is not None and len(listed) != levels:
            raise ArtifactError(f"{where}.quantizer.level_codes must be {levels} numbers, a level each, got {listed}")
        spec = self.spec()
        factors = factors_of(self.downsampling, spec.rank)
        kernel = max(math.prod(map(kernel_of, strides)) for strides in strides_of(factors))
        padded = self.channels * math.prod(a * b for a, b in zip(factors, grid_of(self.shape, factors), strict=True))
        codes = sum(level.num_codes for level in spec.levels) * quantizer.code_dim
        largest = max(codes, self.width**2 * max(kernel, 3**spec.rank), padded)
        if largest > MAX_TENSOR_ELEMENTS:
            raise ArtifactError(f"{where} describes a tensor of {largest} numbers, beyond {MAX_TENSOR_ELEMENTS}")


def _without_later_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of an architecture without those that came later and say nothing: older programs read it."""
    whole = {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}
    quantizer = whole.get("quantizer")
    if isinstance(quantizer, dict):
        whole["quantizer"] = {
            name: value
            for name, value in quantizer.items()
            if name not in LATER_OF_QUANTIZER or value != LATER_OF_QUANTIZER[name]
        }
    if whole.get("grids", 1) == 1:
        whole.pop("grid_factor", None)
    return whole


class VQVAEConfig(PretrainedConfig):
    """The codec's `config.json`; what it is made of stands under `architecture`."""

    model_type = "vq_prior_vqvae"

    def __init__(self, architecture: dict[str, Any] | Architecture | None = None, **kwargs: Any) -> None:
        self.architecture = None if architecture is None else _without_later_keys(to_json(architecture))
        super().__init__(**kwargs)

    def parsed(self) -> Architecture:
        """Return the architecture, checked.

        Raises:
            ArtifactError: Naming the entry that is missing, unknown, of a wrong type or out of range.
        """
        architecture = from_json(Architecture, self.architecture, f"{CONFIG}: architecture")
        architecture.check(f"{CONFIG}: architecture")
        return architecture
