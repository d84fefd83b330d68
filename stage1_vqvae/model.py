"""The codec: a VQ-VAE (van den Oord et al. 2017) as a transformers model.

Letters: B batch, C channels, D code dimension, K number of codes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stage1_vqvae.architecture import CONFIG, Architecture, VQVAEConfig
from stage1_vqvae.blocks import NETWORKS, crop_to, ordered, packed, pad_to
from stage1_vqvae.given import require_codes, require_images
from stage1_vqvae.grids import GridsDecoder, GridsEncoder
from stage1_vqvae.halves import Halved
from stage1_vqvae.level_dropout import of_first_levels
from stage1_vqvae.modalities import preprocessing, read_preprocessing
from stage1_vqvae.modalities.pictures.values import description_of
from stage1_vqvae.quantizers import QUANTIZERS
from stage1_vqvae.quantizers.grids import GridQuantizers
from vq_prior.core.config import pretty_json, read_json
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
from vq_prior.core.processes.stock import PreTrainedModel
from vq_prior.core.spec import CodeSpec

PREPROCESSOR = "preprocessor_config.json"


@dataclass
class VQVAEOutput:
    """What a training pass returns.

    Attributes:
        images: Reconstruction [B, C, *shape], not clamped, in the precision of the pass.
        codes: Codes of each level, [B, *grid] int64.
        loss: Unweighted terms of the quantiser.
        coarse: Reconstructions of some rows from the first 1, 2, ... grids alone, where these are trained.
    """

    images: Tensor
    codes: tuple[Tensor, ...]
    loss: dict[str, Tensor]
    coarse: tuple[Tensor, ...] = ()


class VQVAE(Halved, Shareable, PreTrainedModel):
    """Encoder, quantiser and decoder; implements `vq_prior.core.spec.Codec`.

    Sides that are no multiple of their factor are padded inside by repeating the
    last pixel, and cropped after decoding.

    Attributes:
        preprocessing: How rows become its values, what they are included, as JSON values.
        notes: What a user should be told about where it came from.
        loaded_from: The folder that it was loaded from, if it was.
        padded: Size that values are padded to inside, an axis each.
        first_levels: Of how many levels the next rows in training are made, [B] int64; None is all.
        coarse_rows: Of which rows a training pass of a codec of several grids returns what the first grids make, too.
    """

    component = "vqvae"
    config_class = VQVAEConfig
    main_input_name = "images"

    def __init__(self, config: VQVAEConfig, preprocessing: dict[str, Any] | None = None) -> None:
        """Take a config, and how rows become its values; None is pictures of the config's shape."""
        super().__init__(config)
        self.notes: tuple[str, ...] = ()
        self.loaded_from: Path | None = None
        self.first_levels: Tensor | None = None
        self.coarse_rows: slice | None = None
        a = self.architecture = config.parsed()
        self.preprocessing = of_shape(a) if preprocessing is None else preprocessing
        assert a.quantizer.code_dim is not None
        self.padded, sizes = a.padded, a.sizes()
        build = QUANTIZERS[a.quantizer.name].of
        self.encoder: Any
        self.quantizer: Any
        self.decoder: Any
        if len(sizes) == 1:  # in this order: each draws its weights from one stream of random numbers
            encoder, decoder = NETWORKS[a.network]
            self.encoder, self.quantizer = encoder(sizes[0]), build(a.quantizer.of_grid(0))
            self.decoder = decoder(sizes[0])
        else:
            quantizers = [build(a.quantizer.of_grid(number)) for number in range(len(sizes))]
            self.encoder, self.quantizer = GridsEncoder(sizes, a.network), GridQuantizers(quantizers)
            self.decoder = GridsDecoder(sizes, a.network)
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
    def latent(self) -> "VQVAE | None":
        """Itself, for it can tell its latents; None with several grids, whose latents depend on codes."""
        return self if self.architecture.grids == 1 else None

    @property
    def decodes_latents(self) -> bool:
        """Whether codes stand near the latents that choose them, so that the decoder knows such vectors."""
        return self.quantizer.near_latents

    def to(self, *where: Any, **options: Any) -> "VQVAE":
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
        """Shape of the coarsest grid of latents."""
        return self.architecture.grid_shapes()[0]

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
        several = {"grids": a.grids, "grid_factor": a.grid_factor} if a.grids > 1 else {}
        description = {
            "preprocessing": self.preprocessing,
            "encoder": several
            | {
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
        """Return continuous latents, vector last, [B, *grid, D], of images [B, C, *shape]; of a codec of one grid."""
        latents: Tensor = self.encoder(pad_to(images, self.padded)).movedim(1, -1)
        return latents

    @property
    def quantizers(self) -> Sequence[Any]:
        """The quantiser of each grid, coarse to fine."""
        return [self.quantizer] if self.architecture.grids == 1 else list(self.quantizer.grids)

    def walk(self, padded: Tensor, visit: Callable[[int, Any, Tensor], Tensor]) -> None:
        """Visit every grid, coarse to fine, with its latents; those of a finer one depend on the codes before it.

        Args:
            padded: Values [B, C, *padded].
            visit: Takes the number of a grid, its quantiser and latents [B, *grid, D]; returns the vectors of their
                codes, of that shape.
        """
        features, coarser = self.encoder(padded), None
        for number, quantizer in enumerate(self.quantizers):
            z = features if self.architecture.grids == 1 else self.encoder.latents(number, features, coarser)
            coarser = visit(number, quantizer, z.movedim(1, -1)).movedim(-1, 1)

    def _values(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return values [B, C, *shape] of the vectors of every grid, [B, *grid, D]."""
        first = [each.movedim(-1, 1) for each in vectors]
        return crop_to(self.decoder(first[0] if self.architecture.grids == 1 else first), self.architecture.shape)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Bounds of its values: those of their kind, [-1, 1] where it is not named; None where there are none."""
        return self.modality.values.bounds if "modality" in self.preprocessing else (-1.0, 1.0)

    def _within(self, images: Tensor) -> Tensor:
        return images if self.bounds is None else images.clamp(*self.bounds)

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Return reconstruction, codes and quantiser losses of images [B, C, *shape] in [-1, 1]."""
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        loss: dict[str, Tensor] = {}
        first = self.first_levels if self.training and torch.is_grad_enabled() else None

        def visit(_: int, quantizer: Any, latents: Tensor) -> Tensor:
            quantized = quantizer(latents)
            used = of_first_levels(quantizer, quantized.vectors, quantized.codes, first, len(codes))
            vectors.append(ordered(used.movedim(-1, 1)).movedim(1, -1))
            codes.extend(quantized.codes)
            for name, term in quantized.loss.items():
                loss[name] = loss.get(name, 0.0) + term / self.architecture.grids
            whole: Tensor = quantized.vectors
            return whole

        self.walk(self.prepared(images), visit)
        if self.coarse_rows is None or self.architecture.grids == 1:
            return VQVAEOutput(self._values(vectors), tuple(codes), loss)
        made = self.decoder.of_first([each.movedim(-1, 1) for each in vectors], self.coarse_rows)
        *coarse, whole = (crop_to(each, self.architecture.shape) for each in made)
        return VQVAEOutput(whole, tuple(codes), loss, tuple(coarse))

    def _in_fixed_calls(self, function: Any, *inputs: Tensor) -> Any:
        """Return `function` of the rows, in eval mode and float32, computed a fixed number of rows at a time."""
        rows = rows_per_call(self.device, math.prod(self.padded))
        return map_rows_frozen(self, function, rows, *(tensor.to(self.device) for tensor in inputs))

    def _fast(self, rows: Tensor) -> Tensor:
        """Return images, padded, in the memory order in which the encoder is fastest."""
        return pad_to(packed(rows.float().movedim(1, -1)).movedim(-1, 1), self.padded)

    @torch.inference_mode()
    def latents_of(self, grid: int, images: Tensor) -> Tensor:
        """Return the continuous latents of one grid, [B, *grid, D] float32; a row does not depend on the others."""

        def latents_of_rows(rows: Tensor) -> Tensor:
            of_grids: list[Tensor] = []

            def visit(number: int, quantizer: Any, latents: Tensor) -> Tensor:
                of_grids.append(latents)
                vectors: Tensor = latents if number >= grid else packed(quantizer.embed(quantizer.encode(latents)))
                return vectors

            self.walk(self._fast(rows), visit)
            return of_grids[grid]

        latents: Tensor = self._in_fixed_calls(latents_of_rows, images)
        return latents

    @torch.inference_mode()
    def encode_latents(self, images: Tensor) -> Tensor:
        """Return continuous latents [B, *grid, D] float32; a row does not depend on the rest of the batch."""
        require_images(self, self.encoder, images)
        return self.latents_of(0, images)

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
        codes: tuple[Tensor, ...] = self._in_fixed_calls(self.codes_of, images)
        return codes

    def codes_of(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of images in one call, unchecked: what `encode` calls with a fixed number of rows."""
        codes: list[Tensor] = []

        def visit(number: int, quantizer: Any, latents: Tensor) -> Tensor:
            level_codes = quantizer.encode(latents)
            codes.extend(level_codes)
            last = number == self.architecture.grids - 1
            vectors: Tensor = latents if last else packed(quantizer.embed(level_codes))
            return vectors

        self.walk(self._fast(images), visit)
        return tuple(codes)

    @property
    def separable(self) -> bool:
        """Whether `decode` can leave levels out."""
        return bool(self.quantizer.separable)

    @torch.inference_mode()
    def decode(self, codes: Sequence[Tensor | None]) -> Tensor:
        """Return images [B, C, *shape] float32 in [-1, 1]; a row does not depend on the rest of the batch.

        Args:
            codes: One tensor of integers [B, *grid] for each level, B at least 1. Where the codec is separable, the
                first levels alone will do, and None in place of a level leaves it out.

        Raises:
            UsageError: If the number of levels, a grid or a code is out of range.
        """
        require_codes(self, self.decoder, codes)
        there = [number for number, level in enumerate(codes) if level is not None]

        rows = (level.to(torch.int64) for level in codes if level is not None)
        images: Tensor = self._in_fixed_calls(lambda *some: self.images_of(*some, levels=there), *rows)
        return images

    def images_of(self, *codes: Tensor, levels: Sequence[int] | None = None) -> Tensor:
        """Return the images of codes of some levels, or of all, in one call, unchecked: what `decode` calls."""
        some = dict(zip(range(len(codes)) if levels is None else levels, codes, strict=True))
        return self._within(self._values([packed(each) for each in self._vectors(some, codes[0].shape[0])]))

    def _vectors(self, codes: Mapping[int, Tensor], num_rows: int) -> list[Tensor]:
        """Return the vectors of each grid, [B, *grid, D], of the codes of some levels; a grid without any has zeros."""
        vectors, start = [], 0
        for quantizer, grid in zip(self.quantizers, self.architecture.grid_shapes(), strict=True):
            own = [codes.get(start + number) for number in range(len(quantizer.level_sizes))]
            start += len(own)
            if all(each is None for each in own):
                vectors.append(torch.zeros((num_rows, *grid, quantizer.code_dim), device=self.device))
            else:
                vectors.append(quantizer.embed(tuple(own)))
        return vectors

    @torch.inference_mode()
    def vectors(self, codes: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Return the vectors [B, *grid, D] float32 of each grid, coarse to fine: the sums over its levels.

        Args:
            codes: As `decode` takes them.

        Raises:
            UsageError: If the number of levels, a grid or a code is out of range.
        """
        require_codes(self, self.decoder, codes)
        some = {number: level.to(self.device, torch.int64) for number, level in enumerate(codes) if level is not None}
        return tuple(self._vectors(some, len(next(iter(some.values())))))

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the images [B, C, *shape] of continuous latents [B, *grid, D], as `decode` gives those of codes."""
        images: Tensor = self._in_fixed_calls(lambda rows: self._within(self._values([packed(rows.float())])), latents)
        return images


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
    with local(path, say=print) as folder:
        return _load_folder(find_component(folder, "vqvae"))


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
