"""Codecs of other programs: an image tokeniser of transformers or diffusers behind the `Codec` protocol.

Their own loaders are not used: the config is read by us, the class is built from it
without memory, and its tensors come from safetensors files, checked by name and shape
before they are read. Of a whole model nothing but its tokeniser is read.

Letters: B batch, C channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.foreign.kinds import DIFFUSERS_STAGES, KINDS, LIMITS, MAX_STAGES, Kind
from stage1_vqvae.foreign.weights import read_module_tensors
from stage1_vqvae.given import require_codes, require_images
from stage1_vqvae.halves import Decoder, Encoder
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.settings import MAX_SIDE
from stage1_vqvae.modalities.pictures.values import Transform
from vq_prior.core.config import pretty_json, read_json, to_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.components import MAX_DIMENSION, WEIGHTS, check_sealed
from vq_prior.core.disk.tensors import write_tensors
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError, in_one_line
from vq_prior.core.identity import content_id
from vq_prior.core.processes.fixed_calls import map_rows_frozen, rows_per_call
from vq_prior.core.processes.runtime import full_state
from vq_prior.core.spec import CodeSpec, LevelSpec

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
MAX_CONFIG_BYTES = 32 << 20  # whole models list their vocabulary there
IDENTITY_PREFIXES = ("encoder.", "quant_conv.", "quantize.")


@dataclass(frozen=True)
class Normalization:
    """How bytes 0..255 become what the tokeniser sees: (byte * rescale - mean) / std, a channel each.

    Attributes:
        rescale: Factor of a byte.
        mean: Subtracted, one a channel.
        std: Divides, one a channel.
        image_size: (height, width) that the file names in our own entry, else None.
    """

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None = None

    def affine(self) -> tuple[list[float], list[float]]:
        """Return scale and shift of images in [-1, 1], a channel each."""
        scale = [127.5 * self.rescale / std for std in self.std]
        shift = [(127.5 * self.rescale - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return scale, shift


class ForeignCodec(nn.Module):
    """A tokeniser of another library; implements `vq_prior.core.spec.Codec`.

    Attributes:
        tokenizer: Which kind of tokeniser.
        module: The library's own module, its encoder, quantiser and decoder.
        normalization: How images enter it.
        entries: Its config, resolved.
        shape: Height and width of the images.
        modality: What its values are: pictures.
        notes: What a user should be told about where it came from.
        loaded_from: The folder of a codec of ours that it was loaded from; None here.
    """

    def __init__(
        self,
        kind: Kind,
        module: nn.Module,
        entries: dict[str, Any],
        normalization: Normalization,
        shape: tuple[int, int],
    ) -> None:
        super().__init__()
        self.tokenizer, self.module, self.normalization = kind, module, normalization
        self.entries, self.shape = entries, shape
        self.modality = PICTURES
        self.notes: tuple[str, ...] = ()
        self.loaded_from: Path | None = None

    @property
    def kind(self) -> str:
        """What a MODEL's index calls this kind of codec."""
        return self.tokenizer.name

    @property
    def separable(self) -> bool:
        """Whether `decode` can leave levels out: never."""
        return False

    @property
    def can_decode(self) -> bool:
        """Whether its library has a decoder for it."""
        return self.tokenizer.images is not None

    @property
    def latent(self) -> None:
        """None: libraries have no one way to ask for latents."""
        return

    def save(self, folder: Path) -> None:
        """Write its files into a staging folder of the caller."""
        save_foreign(self, folder)

    @property
    def spec(self) -> CodeSpec:
        """Shapes of the images and of the codes."""
        level = LevelSpec(self.grid, self.entries[self.tokenizer.codes_key])
        return CodeSpec(self.entries["in_channels"], self.shape, (level,))

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the one code grid that these tokenisers have."""
        factor = downsampling_of(self.tokenizer, self.entries)
        return tuple(side // factor for side in self.shape)

    @property
    def transform(self) -> Transform:
        """The size and channels that pictures are brought to."""
        return Transform(*self.shape, self.entries["in_channels"])

    @property
    def codec_id(self) -> str:
        """Hash of preprocessing, encoder and quantiser, their weights as float32; computed anew at each call."""
        scale, shift = self.normalization.affine()
        description = {
            "preprocessing": {**self.transform.describe(), "scale": scale, "shift": shift},
            "kind": self.tokenizer.name,
            "encoder": {key: self.entries[key] for key in self.tokenizer.encoder_keys},
        }
        tensors = {
            name: tensor
            for name, tensor in self.module.state_dict().items()
            if name.startswith(IDENTITY_PREFIXES) and tensor.is_floating_point()
        }
        return content_id(description, tensors)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of the one level, [B, *grid] int64; a row does not depend on the rest of the batch.

        Args:
            images: [B, C, height, width] in [-1, 1], B at least 1.

        Raises:
            UsageError: If the images have another shape than the codec's, are no floating-point numbers, not finite, or
                more than 1% beyond the bounds: nothing is converted.
        """
        require_images(self, self.module, images)
        codes: tuple[Tensor, ...] = self._map(self.codes_of, images)
        return codes

    @torch.inference_mode()
    def decode(self, codes: tuple[Tensor, ...]) -> Tensor:
        """Return images [B, C, height, width] float32 in [-1, 1]; a row does not depend on the rest of the batch.

        Args:
            codes: One tensor of integers [B, *grid], B at least 1.

        Raises:
            UsageError: If the codes do not fit, or the kind has no decoder.
        """
        require_decoder(self.tokenizer)
        require_codes(self, self.module, codes)
        (grid,) = codes
        images: Tensor = self._map(self.images_of, grid.to(torch.int64))
        return images

    def _map(self, function: Any, tensor: Tensor) -> Any:
        device = next(self.module.parameters()).device
        frames = self.entries[self.tokenizer.frames_key] if self.tokenizer.frames_key else 1
        rows = rows_per_call(device, prod(self.shape) * frames)
        return map_rows_frozen(self, function, rows, tensor.to(device))

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = (torch.tensor(n, device=like.device)[:, None, None] for n in self.normalization.affine())
        return scale, shift

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of its values."""
        return (-1.0, 1.0)

    def halves(self) -> tuple[nn.Module, nn.Module | None]:
        """Return encoder with quantiser, and decoder, in eval mode; None where it cannot decode."""
        return Encoder(self).eval(), Decoder(self).eval() if self.can_decode else None

    def compared(self, values: Tensor, theirs: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """Return which cells, [B, *grid] bool, have other codes, and that none is a tie: libraries tell no latents."""
        other = self.encode(values)[0] != theirs[0]
        return [(other, torch.zeros_like(other))]

    def codes_of(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of images in one call, unchecked: what `encode` calls with a fixed number of rows."""
        pixels = images.float().clone(memory_format=torch.contiguous_format)
        scale, shift = self._affine(pixels)
        codes = self.tokenizer.codes(self.module, pixels * scale + shift)
        return (codes.reshape(images.shape[0], *self.grid).to(torch.int64),)

    def images_of(self, codes: Tensor) -> Tensor:
        """Return the images of codes in one call, unchecked: what `decode` calls with a fixed number of rows."""
        assert self.tokenizer.images is not None
        pixels = self.tokenizer.images(self.module, codes.clone(memory_format=torch.contiguous_format))
        scale, shift = self._affine(pixels)
        return ((pixels - shift) / scale).clamp(-1, 1)


def downsampling_of(kind: Kind, entries: Mapping[str, Any]) -> int:
    """Return the pixels of one code along each axis."""
    return 2 ** (len(entries[kind.stages_key]) - 1)


def require_decoder(kind: Kind) -> None:
    """Raise `UsageError` if codes of this kind cannot become images."""
    if kind.images is None:
        raise UsageError(
            f"a codec of kind {kind.name} cannot decode: {kind.library} has no decoder for it; "
            "extract-codes takes it, and train-prior without --codec takes its codes"
        )


def kind_of_config(config: Mapping[str, Any]) -> Kind | None:
    """Return the kind of tokeniser that a config.json is of, or holds as a part; None if it is of no known kind."""
    for kind in KINDS.values():
        if config.get(kind.type_key) == kind.name or (kind.whole and config.get("model_type") == kind.whole):
            return kind
    return None


def load_foreign(folder: Path, config: dict[str, Any], *, shape: tuple[int, int] | None = None) -> ForeignCodec:
    """Return the tokeniser in a folder, in eval mode on the host, as float32.

    Args:
        folder: As its library saved it, alone or as a part of a whole model.
        config: Its config.json, of a known kind.
        shape: Height and width of the images; None takes what the folder names.

    Raises:
        ArtifactError: If it is damaged, holds no safetensors, or its weights do not fit its config.
        UsageError: If the image size is missing or does not fit.
        EnvironmentFault: If its library is not installed.
    """
    kind = kind_of_config(config)
    assert kind is not None
    notes = check_sealed(folder)
    where = str(folder / CONFIG)
    own = _own_entries(kind, config, where)
    try:
        with torch.device("meta"):
            module = kind.build(own)
    except EnvironmentFault:
        raise
    except Exception as error:  # libraries and their validators raise many kinds
        raise ArtifactError(f"{where} describes no {kind.name}: {in_one_line(error)}") from error
    resolved: Any = module.config
    entries = {
        key: to_json(resolved[key] if kind.config_name is None else getattr(resolved, key)) for key in given_keys(kind)
    }
    _check_entries(kind, entries, where)
    if entries["in_channels"] not in (1, 3):
        raise ArtifactError(f"{where}: in_channels must be 1 or 3 (pictures), got {entries['in_channels']}")
    normalization = read_normalization(folder, entries["in_channels"])
    shape = _shape(kind, entries, shape or normalization.image_size, folder)
    codec = ForeignCodec(kind, module, entries, normalization, shape).eval()
    _check_computes(codec, where)
    whole = config.get("model_type") == kind.whole and kind.whole is not None
    tensors, unused = read_module_tensors(folder, module.state_dict(), whole=whole, spare=_spare(kind))
    module.load_state_dict(tensors, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    module.requires_grad_(False)
    if unused:
        notes = [*notes, f"{unused} decoder tensors in {folder} are not used: {kind.class_name} has no decoder"]
    codec.notes = tuple(notes)
    return codec


def given_keys(kind: Kind) -> tuple[str, ...]:
    """Return the entries of a config that describe a tokeniser of this kind."""
    return (*kind.encoder_keys, *kind.decoder_keys)


def _spare(kind: Kind) -> str | None:
    """Return the prefix of tensors that a checkpoint may have though the class has no place for them."""
    return "decoder." if kind.images is None else None


def _own_entries(kind: Kind, config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the tokeniser's entries of a config.json, checked for size."""
    part = config
    if kind.whole is not None and config.get("model_type") == kind.whole:
        part = config.get("vq_config")  # type: ignore[assignment]
        if not isinstance(part, dict) or "auto_map" in part:
            raise ArtifactError(f"{where}: vq_config must be an object without auto_map")
        where += ": vq_config"
        part = dict(part)
        vision = config.get("vision_config")
        if "num_patches" in kind.decoder_keys and isinstance(vision, dict):
            side, patch = vision.get("image_size"), vision.get("patch_size")
            if isinstance(side, int) and isinstance(patch, int) and patch > 0:
                part["num_patches"] = side // patch  # as its library does
    entries = {key: part[key] for key in given_keys(kind) if key in part}
    _check_entries(kind, entries, where)
    return entries


def _check_entries(kind: Kind, entries: dict[str, Any], where: str) -> None:
    """Raise `ArtifactError` naming the first entry that is beyond reason, before anything is built from it."""
    for key, value in entries.items():
        items = value if isinstance(value, list) else [value]
        if len(items) > MAX_STAGES or not all(isinstance(n, (int, float, str, type(None))) for n in items):
            raise ArtifactError(f"{where}: {key} must be a value or a list of at most {MAX_STAGES}")
        most = LIMITS.get(key, MAX_DIMENSION)
        for item in items:
            if isinstance(item, (int, float)) and not 0 <= item <= most:
                raise ArtifactError(f"{where}: {key} must be between 0 and {most}, got {item}")
            if key.endswith("_block_types") and item not in DIFFUSERS_STAGES:
                raise ArtifactError(f"{where}: {key} must be of {', '.join(DIFFUSERS_STAGES)}, got {str(item)[:60]!r}")
    stages = entries.get(kind.stages_key, [1])
    if not isinstance(stages, list) or not stages:
        raise ArtifactError(f"{where}: {kind.stages_key} must be a list with an item for each resolution")


def read_normalization(folder: Path, channels: int) -> Normalization:
    """Return what a folder's preprocessor_config.json says of pixel values; [-1, 1] if it says nothing.

    Raises:
        ArtifactError: If an entry is no number, or there are neither 1 nor `channels` of them.
    """
    path, entries = folder / PREPROCESSOR, None
    if path.exists():
        entries = read_json(path)
    elif (folder / PROCESSOR).exists():  # newer transformers keep it there for models of several kinds of input
        path = folder / PROCESSOR
        document = read_json(path)
        entries = document.get("image_processor") if isinstance(document, dict) else document
    if entries is None:
        entries = {}
    if not isinstance(entries, dict):
        raise ArtifactError(f"{path} must hold an object")

    def numbers(key: str, default: float) -> tuple[float, ...]:
        value = entries.get(key, default)
        items = value if isinstance(value, list) else [value]
        if len(items) not in (1, channels) or any(
            isinstance(n, bool) or not isinstance(n, (int, float)) for n in items
        ):
            raise ArtifactError(f"{path}: {key} must be 1 or {channels} numbers, got {str(value)[:60]}")
        return tuple(float(n) for n in items) * (channels // len(items))

    rescale = numbers("rescale_factor", 1 / 255)[0] if entries.get("do_rescale", True) else 1.0
    plain = not entries.get("do_normalize", True)
    mean = (0.0,) * channels if plain else numbers("image_mean", 0.5)
    std = (1.0,) * channels if plain else numbers("image_std", 0.5)
    if not (1e-6 <= rescale <= 1e6 and all(1e-6 <= n <= 1e6 for n in std) and all(abs(n) <= 1e6 for n in mean)):
        raise ArtifactError(f"{path}: rescale_factor, image_mean or image_std is out of range")
    size = entries.get("image_size")
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size):
        return Normalization(rescale, mean, std, (size[0], size[1]))
    return Normalization(rescale, mean, std)


def _shape(kind: Kind, entries: dict[str, Any], size: tuple[int, int] | None, folder: Path) -> tuple[int, int]:
    """Return height and width of the images: as given, else as the config says; raises `UsageError` if unfit."""
    factor = downsampling_of(kind, entries)
    if size is None:
        named = kind.size(entries, factor)
        if named is None:
            raise UsageError(
                f"{folder} names no image size; give one (--image-size of extract-codes), a multiple of {factor}"
            )
        sides = named if isinstance(named, list) else [named, named]
        if len(sides) != 2 or not all(type(side) is int for side in sides):
            raise ArtifactError(f"{folder / CONFIG}: the image size must be one or two integers, got {named}")
        size = (sides[0], sides[1])
    if not all(0 < side <= MAX_SIDE and side % factor == 0 for side in size):
        raise UsageError(
            f"image size {size[0]}x{size[1]} does not fit {folder}: "
            f"each side must be a multiple of {factor}, at most {MAX_SIDE}"
        )
    return size


def _check_computes(codec: ForeignCodec, where: str) -> None:
    """Run a module without memory, so that a config whose parts do not fit is found before any work."""
    kind, spec = codec.tokenizer, codec.spec
    images = torch.empty(1, spec.channels, *spec.shape, device="meta")
    try:
        with torch.inference_mode():
            codes = kind.codes(codec.module, images)
            if codes.numel() != spec.num_tokens:
                raise ValueError(f"{codes.numel()} codes an image, {spec.num_tokens} expected")
            grid = torch.empty(1, *codec.grid, dtype=torch.int64, device="meta")
            back = images if kind.images is None else kind.images(codec.module, grid)
            if back.shape != images.shape:
                raise ValueError(f"it decodes to {list(back.shape)} instead of {list(images.shape)}")
    except Exception as error:  # whatever a library raises on parts that do not fit
        raise ArtifactError(f"{where} describes no working {kind.name}: {in_one_line(error)}") from error


def save_foreign(codec: ForeignCodec, folder: Path) -> None:
    """Write the tokeniser alone, as its library would read it, into a staging folder of the caller."""
    kind, n = codec.tokenizer, codec.normalization
    preprocessor = codec.transform.describe() | {
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": n.rescale,
        "image_mean": list(n.mean),
        "image_std": list(n.std),
    }
    write_atomic(folder / CONFIG, pretty_json({kind.type_key: kind.name, **dict(sorted(codec.entries.items()))}))
    write_atomic(folder / PREPROCESSOR, pretty_json(preprocessor))
    write_tensors(folder / WEIGHTS, full_state(codec.module))
