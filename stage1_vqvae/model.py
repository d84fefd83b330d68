"""The codec: a VQ-VAE (van den Oord et al. 2017) as a transformers model.

Letters: B batch, C channels, D code dimension, K number of codes.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stage1_vqvae.blocks import NETWORKS, SMALLEST_HEAD, Sizes, crop_to, kernel_of, pad_to
from stage1_vqvae.factors import ALLOWED, as_one, can_be_taken, factors_of, grid_of, strides_of
from stage1_vqvae.given import require_codes, require_images
from stage1_vqvae.halves import Halved
from stage1_vqvae.modalities import preprocessing, read_preprocessing
from stage1_vqvae.modalities.pictures.values import description_of
from stage1_vqvae.quantizer_settings import QuantizerSettings, check_quantizer_settings
from stage1_vqvae.quantizers import QUANTIZERS
from vq_prior.core.config import from_json, pretty_json, read_json, to_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.components import (
    WEIGHTS,
    check_sealed,
    check_transformers_config,
    find_component,
    load_strictly,
    plain_config,
)
from vq_prior.core.disk.tensors import check_header, write_tensors
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.hub.repository import local
from vq_prior.core.hub.shareable import Shareable
from vq_prior.core.identity import content_id
from vq_prior.core.modality import Form, Modality
from vq_prior.core.processes.fixed_calls import map_rows_frozen, rows_per_call
from vq_prior.core.processes.runtime import full_state
from vq_prior.core.processes.stock import PretrainedConfig, PreTrainedModel
from vq_prior.core.spec import CodeSpec, LevelSpec

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MAX_TENSOR_ELEMENTS = 2**28


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "downsampling", as_one(self.downsampling, len(self.shape)))

    def spec(self) -> CodeSpec:
        """Return the shapes of images and codes; raises `ArtifactError` if they are out of range."""
        grid = grid_of(self.shape, self.downsampling)
        sizes = QUANTIZERS[self.quantizer.name].sizes_of(self.quantizer)
        return CodeSpec(self.channels, self.shape, tuple(LevelSpec(grid, size) for size in sizes))

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
        spec = self.spec()
        factors = factors_of(self.downsampling, spec.rank)
        kernel = max(math.prod(map(kernel_of, strides)) for strides in strides_of(factors))
        padded = self.channels * math.prod(a * b for a, b in zip(factors, grid_of(self.shape, factors), strict=True))
        codes = sum(level.num_codes for level in spec.levels) * quantizer.code_dim
        largest = max(codes, self.width**2 * max(kernel, 3**spec.rank), padded)
        if largest > MAX_TENSOR_ELEMENTS:
            raise ArtifactError(f"{where} describes a tensor of {largest} numbers, beyond {MAX_TENSOR_ELEMENTS}")


class VQVAEConfig(PretrainedConfig):
    """The codec's `config.json`; what it is made of stands under `architecture`."""

    model_type = "vq_prior_vqvae"

    def __init__(self, architecture: dict[str, Any] | Architecture | None = None, **kwargs: Any) -> None:
        self.architecture = None if architecture is None else to_json(architecture)
        super().__init__(**kwargs)

    def parsed(self) -> Architecture:
        """Return the architecture, checked.

        Raises:
            ArtifactError: Naming the entry that is missing, unknown, of a wrong type or out of range.
        """
        architecture = from_json(Architecture, self.architecture, f"{CONFIG}: architecture")
        architecture.check(f"{CONFIG}: architecture")
        return architecture


@dataclass
class VQVAEOutput:
    """What a training pass returns.

    Attributes:
        images: Reconstruction [B, C, *shape], not clamped, in the precision of the pass.
        codes: Codes of each level, [B, *grid] int64.
        loss: Unweighted terms of the quantiser.
    """

    images: Tensor
    codes: tuple[Tensor, ...]
    loss: dict[str, Tensor]


class VQVAE(Halved, Shareable, PreTrainedModel):  # type: ignore[misc]
    """Encoder, quantiser and decoder; implements `vq_prior.core.spec.Codec`.

    Sides that are no multiple of their factor are padded inside by repeating the
    last pixel, and cropped after decoding.

    Attributes:
        preprocessing: How rows become its values, what they are included, as JSON values.
        notes: What a user should be told about where it came from.
        loaded_from: The folder that it was loaded from, if it was.
        padded: Size that values are padded to inside, an axis each.
    """

    component = "vqvae"
    config_class = VQVAEConfig
    main_input_name = "images"

    def __init__(self, config: VQVAEConfig, preprocessing: dict[str, Any] | None = None) -> None:
        """Take a config, and how rows become its values; None is pictures of the config's shape."""
        super().__init__(config)
        self.notes: tuple[str, ...] = ()
        self.loaded_from: Path | None = None
        a = self.architecture = config.parsed()
        self.preprocessing = of_shape(a) if preprocessing is None else preprocessing
        assert a.quantizer.code_dim is not None
        factors = factors_of(a.downsampling, len(a.shape))
        self.padded = tuple(side * factor for side, factor in zip(self.grid, factors, strict=True))
        sizes = Sizes(
            rank=len(a.shape),
            channels=a.channels,
            strides=strides_of(factors),
            width=a.width,
            hidden=a.residual_width,
            num_blocks=a.num_residual_blocks,
            code_dim=a.quantizer.code_dim,
            attention=a.attention,
            blocks_per_resolution=a.blocks_per_resolution,
        )
        encoder, decoder = NETWORKS[a.network]
        self.encoder = encoder(sizes)
        self.quantizer = QUANTIZERS[a.quantizer.name](a.quantizer)
        self.decoder = decoder(sizes)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave weights as their layers drew them."""

    @classmethod
    def _of_folder(cls, folder: Path) -> "VQVAE":
        return load_codec(folder)

    def _write(self, staging: Path) -> None:
        save_codec(self, staging)

    @property
    def kind(self) -> str:
        """What a MODEL's index calls this kind of codec."""
        return "vqvae"

    @property
    def can_decode(self) -> bool:
        """Whether codes can become images: yes."""
        return True

    @property
    def latent(self) -> "VQVAE":
        """Itself: it can tell its latents."""
        return self

    @property
    def decodes_latents(self) -> bool:
        """Whether codes stand near the latents that choose them, so that the decoder knows such vectors."""
        return self.quantizer.near_latents

    def to(self, *where: Any, **options: Any) -> "VQVAE":  # type: ignore[override]
        """Return the codec itself, moved as `nn.Module.to` moves it."""
        super().to(*where, **options)
        return self

    def save(self, folder: Path) -> None:
        """Write its files into a staging folder of the caller."""
        save_codec(self, folder)

    @property
    def spec(self) -> CodeSpec:
        """Shapes of the images and of the codes."""
        return self.architecture.spec()

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid of latents, and so of the codes of every level."""
        return grid_of(self.architecture.shape, self.architecture.downsampling)

    @property
    def modality(self) -> Modality:
        """What its values are; raises `UsageError` if it was made for none in particular."""
        return self._form[0]

    @property
    def transform(self) -> Form:
        """The form that its values are in; raises `UsageError` if it was made for none in particular."""
        return self._form[1]

    @cached_property
    def _form(self) -> tuple[Modality, Form]:
        if self.preprocessing.keys() == {"shape", "channels"}:
            raise UsageError(
                f"this codec is for data of shape {list(self.spec.shape)}, which are of no kind with a name"
            )
        return read_preprocessing(self.preprocessing, PREPROCESSOR)

    @property
    def codec_id(self) -> str:
        """Hash of preprocessing, encoder, and what the quantiser's codes depend on; computed anew at each call."""
        a = self.architecture
        description = {
            "preprocessing": self.preprocessing,
            "encoder": {
                "downsampling": a.downsampling,
                "width": a.width,
                "residual_width": a.residual_width,
                "num_residual_blocks": a.num_residual_blocks,
                "network": a.network,
                "attention": a.attention,
                "blocks_per_resolution": a.blocks_per_resolution,
            },
            "quantizer": self.quantizer.identity_config(),
        }
        tensors = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        tensors |= {f"quantizer.{name}": tensor for name, tensor in self.quantizer.identity_tensors().items()}
        return content_id(description, tensors)

    def prepared(self, images: Tensor) -> Tensor:
        """Return what the encoder gets of images [B, C, *shape] in training: padded, in the faster memory order."""
        return pad_to(ordered(images), self.padded)

    def latents(self, images: Tensor) -> Tensor:
        """Return continuous latents, vector last, [B, *grid, D], of images [B, C, *shape]."""
        return self.encoder(pad_to(images, self.padded)).movedim(1, -1)

    def _images(self, vectors: Tensor) -> Tensor:
        return crop_to(self.decoder(vectors.movedim(-1, 1)), self.architecture.shape)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Bounds of its values: those of their kind, [-1, 1] where it is not named; None where there are none."""
        return self.modality.values.bounds if "modality" in self.preprocessing else (-1.0, 1.0)

    def _within(self, images: Tensor) -> Tensor:
        return images if self.bounds is None else images.clamp(*self.bounds)

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Return reconstruction, codes and quantiser losses of images [B, C, *shape] in [-1, 1]."""
        quantized = self.quantizer(self.encoder(self.prepared(images)).movedim(1, -1))
        copies = self.decoder(ordered(quantized.vectors.movedim(-1, 1)))
        return VQVAEOutput(crop_to(copies, self.architecture.shape), quantized.codes, quantized.loss)

    def _apart(self, function: Any, *inputs: Tensor) -> Any:
        """Return `function` of the rows, in eval mode, float32, and calls of one fixed row count."""
        rows = rows_per_call(self.device, math.prod(self.padded))
        return map_rows_frozen(self, function, rows, *(tensor.to(self.device) for tensor in inputs))

    def _latents_apart(self, rows: Tensor) -> Tensor:
        """Return latents of images of any memory order, from a copy in the order that the encoder is fastest in."""
        return self.latents(_packed(rows.float().movedim(1, -1)).movedim(-1, 1))

    @torch.inference_mode()
    def encode_latents(self, images: Tensor) -> Tensor:
        """Return continuous latents [B, *grid, D] float32; a row does not depend on the rest of the batch."""
        require_images(self, self.encoder, images)
        latents: Tensor = self._apart(self._latents_apart, images)
        return latents

    @torch.inference_mode()
    def encode_in_bfloat16(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of each level that a bfloat16 copy of the encoder gives images [B, C, *shape]."""
        halved = deepcopy(self)
        halved.encoder.bfloat16()
        latents = [halved.latents(part.to(self.device).bfloat16()).float() for part in images.split(64)]
        parts = [self.quantizer.encode(part) for part in latents]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of each level, [B, *grid] int64; a row does not depend on the rest of the batch.

        Args:
            images: [B, C, *shape] in [-1, 1], B at least 1.

        Raises:
            UsageError: If the images have another shape than the codec's, are no floating-point numbers, not finite, or
                more than 1% beyond the bounds: nothing is converted.
        """
        require_images(self, self.encoder, images)
        codes: tuple[Tensor, ...] = self._apart(lambda r: self.quantizer.encode(self._latents_apart(r)), images)
        return codes

    @torch.inference_mode()
    def decode(self, codes: tuple[Tensor, ...]) -> Tensor:
        """Return images [B, C, *shape] float32 in [-1, 1]; a row does not depend on the rest of the batch.

        Args:
            codes: One tensor of integers [B, *grid] for each level, B at least 1.

        Raises:
            UsageError: If the number of levels, a grid or a code is out of range.
        """
        require_codes(self, self.decoder, codes)
        rows = (level.to(torch.int64) for level in codes)
        images: Tensor = self._apart(lambda *c: self._within(self._images(_packed(self.quantizer.embed(c)))), *rows)
        return images

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the images [B, C, *shape] of continuous latents [B, *grid, D], as `decode` gives those of codes."""
        images: Tensor = self._apart(lambda rows: self._within(self._images(_packed(rows.float()))), latents)
        return images


def ordered(images: Tensor) -> Tensor:
    """Return the same images [B, C, *shape] in the memory order that is the faster one for training.

    Each pixel's channels side by side; on a GPU in float32 each channel's pixels. Weights keep theirs.
    """
    if images.is_cuda and not torch.is_autocast_enabled("cuda"):
        return images.contiguous()
    return images.movedim(1, -1).contiguous().movedim(-1, 1)


def _packed(rows: Tensor) -> Tensor:
    """Return a copy in plain memory order: kernels, and so the last bits, are chosen by strides."""
    return rows.clone(memory_format=torch.contiguous_format)


def of_shape(architecture: Architecture) -> dict[str, Any]:
    """Return the preprocessing of a codec that was given none: that of pictures, or of data of no kind with a name."""
    if len(architecture.shape) == 2:
        return description_of(architecture.shape, architecture.channels)
    return {"shape": list(architecture.shape), "channels": architecture.channels}


def save_codec(codec: VQVAE, folder: Path) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json into a staging folder of the caller."""
    config = plain_config(codec.config.to_diff_dict()) | {"architectures": [type(codec).__name__]}
    write_atomic(folder / CONFIG, pretty_json(dict(sorted(config.items()))))
    write_atomic(folder / PREPROCESSOR, pretty_json(codec.preprocessing))
    write_tensors(folder / WEIGHTS, full_state(codec))


def load_codec(path: str | Path) -> VQVAE:
    """Return the codec in a codec folder, RUN or MODEL, or of a Hub id, in eval mode on the host.

    Raises:
        ArtifactError: If it is missing, damaged, of another kind, or its weights do not fit its config.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    with local(path, say=print) as found:
        return _load_folder(find_component(found, "vqvae"))


def _preprocessing_beside(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """Return the preprocessing in a codec's folder; raises `ArtifactError` unless it is that of the codec beside it."""
    path, plain = folder / PREPROCESSOR, of_shape(architecture)
    described = read_json(path) if path.exists() else plain
    if described == plain:
        return plain
    if isinstance(described, dict) and ("modality" in described or len(architecture.shape) == 2):
        modality, transform = read_preprocessing(described, str(path))
        fits = (transform.shape, transform.channels) == (architecture.shape, architecture.channels)
        if fits and ("modality" in described or preprocessing(modality, transform) == described):
            return described
    raise ArtifactError(f"{path} is not the preprocessing of the codec beside it")


def _load_folder(folder: Path) -> VQVAE:
    notes = check_sealed(folder)
    document = check_transformers_config(folder / CONFIG, model_types=(VQVAEConfig.model_type,))
    config = VQVAEConfig(architecture=document.get("architecture"))
    architecture = config.parsed()
    described = _preprocessing_beside(folder, architecture)
    with torch.device("meta"):
        expected = VQVAE(config).state_dict()
    check_header(folder / WEIGHTS, expected)  # before any tensor of that size is made
    codec = VQVAE(config, described)
    load_strictly(codec, folder / WEIGHTS)
    codec.notes, codec.loaded_from = tuple(notes), folder
    return codec.eval()
