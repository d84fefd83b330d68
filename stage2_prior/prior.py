"""The prior: a distribution over token sequences, its folder on disk, and its first kind.

Letters: B batch, T tokens of a sequence, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.architecture import initialise, model_config, model_of
from stage2_prior.decoder import Decoder
from stage2_prior.forward import Packed, logits, pack
from stage2_prior.layout import SequenceLayout
from stage2_prior.settings import PriorModel
from vq_prior.core.config import from_json, pretty_json, read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.components import (
    WEIGHTS,
    check_sealed,
    check_transformers_config,
    find_component,
    load_strictly,
)
from vq_prior.core.disk.tensors import check_header, read_header, write_tensors
from vq_prior.core.errors import ArtifactError
from vq_prior.core.hub.repository import local
from vq_prior.core.hub.shareable import Shareable
from vq_prior.core.processes.runtime import Precision, full_state
from vq_prior.core.spec import CodeSpec

PRIOR_CONFIG = "prior_config.json"
MAX_LAYERS = 1024
MAX_CONFIG_BYTES = 20 << 20  # a compacted vocabulary is listed, a code a line
SEVERAL_LEVELS = (
    "several code grids: transformers' generate() does not keep ids legal by position; sample with vq-prior generate"
)


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling settings chosen by measurement when the prior was trained."""

    temperature: float = 1.0
    guidance_scale: float = 1.0


class Prior(Protocol):
    """A distribution over token sequences, conditional on a class or not."""

    @property
    def layout(self) -> SequenceLayout:
        """How code grids become tokens."""
        ...

    @property
    def unconditional(self) -> bool:
        """Whether the null prompt was trained, which guidance needs."""
        ...

    def log_probs(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the log-probability in nats of each token given those before it, [B, T] float32."""
        ...

    def decoder(self, precision: Precision = "fp32") -> Decoder:
        """Return what draws sequences token by token, for the weights as they are now."""
        ...


@dataclass(frozen=True)
class PriorConfig:
    """`prior_config.json`: what transformers' own config.json does not say.

    Attributes:
        order: How the cells of a grid follow each other.
        trained_steps: Optimiser steps of the training that wrote it.
        unconditional: Whether the null prompt was trained, which guidance needs.
        kept: The compacted vocabulary, None when every code has a token; see `SequenceLayout`.
        note: What a reader without our sampler must know.
    """

    format_version: int
    kind: Literal["causal"]
    order: Literal["raster"]
    num_codes: int
    num_classes: int
    label_names: tuple[str, ...]
    spec: CodeSpec
    codec_id: str
    sampling: SamplingDefaults
    trained_steps: int
    unconditional: bool
    kept: tuple[tuple[int, ...] | None, ...] | None = None
    note: str | None = None


@dataclass
class CausalPrior(Shareable):
    """A stock transformers causal language model as a prior.

    Attributes:
        model: Qwen3ForCausalLM or LlamaForCausalLM.
        layout: How code grids become tokens.
        spec: Shapes of the data and the codes.
        codec_id: The codec whose codes it was trained on.
        label_names: Names of the classes; empty if they have none.
        sampling: Settings chosen by measurement.
        trained_steps: Optimiser steps of its training.
        unconditional: Whether the null prompt was trained.
        notes: Lines for the user about how it was loaded.
        loaded_from: The folder that it was loaded from, if it was.
    """

    model: nn.Module
    layout: SequenceLayout
    spec: CodeSpec
    codec_id: str
    label_names: tuple[str, ...] = ()
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    trained_steps: int = 0
    unconditional: bool = True
    notes: tuple[str, ...] = ()
    loaded_from: Path | None = None
    _decoders: tuple[Any, dict[str, Decoder]] | None = field(default=None, repr=False)
    _packed: Packed | None = field(default=None, repr=False)

    component: ClassVar[str] = "prior"

    @classmethod
    def _of_folder(cls, folder: Path) -> "CausalPrior":
        return load_prior(folder)

    def _write(self, staging: Path) -> None:
        save_prior(self, staging)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def null_label(self) -> int:
        """The label that means unconditional."""
        return self.layout.null_label

    def to(self, device: torch.device | str) -> "CausalPrior":
        """Move the weights and return the prior itself."""
        self.model.to(device)
        self._packed = None
        return self

    def decoder(self, precision: Precision = "fp32") -> Decoder:
        """Return the packed copy of the weights, its products in `precision`; built anew when a weight changed."""
        state = tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in self.model.parameters())
        if self._decoders is None or self._decoders[0] != state:
            self._decoders = (state, {})
        built = self._decoders[1]
        if precision not in built:
            built[precision] = Decoder(self.model, torch.bfloat16 if precision == "bf16" else torch.float32)
        return built[precision]

    @torch.no_grad()
    def log_probs(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the log-probability in nats of each token given its class and those before it.

        The softmax is over the ids legal at each position.

        Args:
            tokens: [B, T] int64.
            labels: [B] int64; `null_label` for unconditional.

        Returns:
            [B, T] float32, each at most 0.
        """
        return -token_nats(self.layout, self.logits(shifted(self.layout, tokens, labels)), tokens)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits, [B, S, V] float32, of whole sequences [B, S], prompt first."""
        return logits(self._packed or pack(self.model), inputs)

    @torch.no_grad()
    def packed(self) -> "CausalPrior":
        """Return this prior for many calls of `logits` and `log_probs` while no weight changes: it packs them once."""
        return replace(self, _packed=self._packed or pack(self.model))


def shifted(layout: SequenceLayout, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return what the model reads, [B, T] int64: the prompt and all tokens but the last."""
    return torch.cat([layout.prompt(labels)[:, None], tokens[:, :-1]], dim=1)


def token_nats(layout: SequenceLayout, logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each token, [B, T], under the ids legal at its position.

    Args:
        layout: Which ids are legal where.
        logits: [B, T, V] of any floating type; the softmax runs in float32.
        tokens: [B, T] int64.
    """
    parts = []
    for first, end, low, high in layout.segments:
        legal = logits[:, first:end, low:high].float()
        wanted = tokens[:, first:end] - low
        parts.append(F.cross_entropy(legal.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape))
    return torch.cat(parts, dim=1)


def build_prior(
    architecture: PriorModel,
    spec: CodeSpec,
    *,
    codec_id: str,
    label_names: Sequence[str] = (),
    num_classes: int | None = None,
    kept: tuple[tuple[int, ...] | None, ...] | None = None,
    seed: int = 0,
) -> CausalPrior:
    """Return an untrained prior.

    Args:
        architecture: Every size given; see `settings.resolve_model`.
        spec: Shapes of the data and the codes.
        codec_id: The codec of the codes.
        label_names: Names of the classes.
        num_classes: Classes; None counts the names.
        kept: Compacted vocabulary; None keeps every code.
        seed: Seed of the weights.
    """
    classes = len(label_names) if num_classes is None else num_classes
    layout = SequenceLayout(spec.levels, classes, kept)
    model = model_of(model_config(architecture, layout))
    initialise(model, seed)
    return CausalPrior(model.eval(), layout, spec, codec_id, tuple(label_names))


def save_prior(prior: CausalPrior, folder: Path) -> None:
    """Write the prior into an existing (staging) folder; the caller seals and publishes it.

    `config.json`, `generation_config.json` and `model.safetensors` are transformers'; `prior_config.json` is ours.
    """
    from transformers import GenerationConfig

    layout, model = prior.layout, prior.model
    config: Any = model.config
    config.dtype = next(model.parameters()).dtype
    config.save_pretrained(folder)
    generation = GenerationConfig(
        do_sample=True,
        temperature=prior.sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=layout.num_tokens,
        suppress_tokens=list(range(layout.num_codes, layout.vocab_size)),
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    generation.save_pretrained(folder)
    write_tensors(folder / WEIGHTS, full_state(model))
    ours = PriorConfig(
        format_version=1,
        kind="causal",
        order="raster",
        num_codes=layout.num_codes,
        num_classes=layout.num_classes,
        label_names=prior.label_names,
        spec=prior.spec,
        codec_id=prior.codec_id,
        sampling=prior.sampling,
        trained_steps=prior.trained_steps,
        unconditional=prior.unconditional,
        kept=layout.kept,
        note=SEVERAL_LEVELS if len(layout.levels) > 1 else None,
    )
    write_atomic(folder / PRIOR_CONFIG, pretty_json(ours))


def read_prior_config(folder: Path) -> PriorConfig:
    """Return the `prior_config.json` of a prior's folder.

    Raises:
        ArtifactError: If it is missing, malformed, of an unknown version or kind, or contradicts itself.
    """
    path = folder / PRIOR_CONFIG
    config = from_json(PriorConfig, read_json(path, max_bytes=MAX_CONFIG_BYTES), str(path))
    if config.format_version != 1:
        raise ArtifactError(f"{path} has format version {config.format_version}; this version reads 1")
    layout = SequenceLayout(config.spec.levels, config.num_classes, config.kept)
    if config.num_codes != layout.num_codes:
        raise ArtifactError(f"{path}: num_codes is {config.num_codes}, its spec has {layout.num_codes}")
    if config.label_names and len(config.label_names) != config.num_classes:
        raise ArtifactError(f"{path}: label_names has {len(config.label_names)} names for {config.num_classes} classes")
    if not (config.sampling.temperature > 0 and config.sampling.guidance_scale >= 0):
        raise ArtifactError(f"{path}: sampling is out of range, got {config.sampling}")
    return config


def load_prior(path: str | Path) -> CausalPrior:
    """Return the prior in a folder, a RUN or a MODEL, or of a Hub id, in eval mode on the CPU.

    Raises:
        ArtifactError: If it is missing, damaged, of an unknown kind, or its files contradict each other.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    with local(path, say=print) as found:
        return _load_folder(find_component(found, "prior"))


def _load_folder(folder: Path) -> CausalPrior:
    from transformers import LlamaConfig, Qwen3Config

    notes = check_sealed(folder)
    ours = read_prior_config(folder)
    values = check_transformers_config(folder / "config.json", model_types=("qwen3", "llama"))
    layout = SequenceLayout(ours.spec.levels, ours.num_classes, ours.kept)
    _check_architecture(values, layout, folder / "config.json")
    config_class: Any = {"qwen3": Qwen3Config, "llama": LlamaConfig}[values["model_type"]]
    _check_weights(folder, values)
    try:
        config = config_class.from_dict(values)
        with torch.device("meta"):
            expected = model_of(config).state_dict()
        check_header(folder / WEIGHTS, expected)
        model = model_of(config)
    except ArtifactError:
        raise
    except Exception as error:  # transformers and its validators raise many kinds
        raise ArtifactError(f"{folder / 'config.json'} describes no model: {str(error).splitlines()[0]}") from error
    load_strictly(model, folder / WEIGHTS)
    return CausalPrior(
        model.eval(),
        layout,
        ours.spec,
        ours.codec_id,
        ours.label_names,
        ours.sampling,
        ours.trained_steps,
        ours.unconditional,
        tuple(notes),
        folder,
    )


def _check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Compare what a config announces with the header of its weights, before anything of that size is built."""
    headers = read_header(folder / WEIGHTS)
    layers, blocks = config.get("num_hidden_layers"), sum(name.endswith("input_layernorm.weight") for name in headers)
    if isinstance(layers, int) and layers > min(blocks + 8, MAX_LAYERS):
        raise ArtifactError(f"{folder / 'config.json'}: num_hidden_layers is {layers}, {WEIGHTS} has {blocks}")
    announced = [config.get("vocab_size"), config.get("hidden_size")]
    table = headers.get("model.embed_tokens.weight")
    if table is not None and all(isinstance(size, int) for size in announced) and list(table.shape) != announced:
        raise ArtifactError(
            f"{folder / WEIGHTS}: tensor 'model.embed_tokens.weight' has shape {list(table.shape)}, "
            f"its config {announced}"
        )


def _check_architecture(config: dict[str, Any], layout: SequenceLayout, path: Path) -> None:
    """Check what the layout and our decoder demand of a transformers config; raises `ArtifactError`."""
    if config.get("vocab_size") != layout.vocab_size:
        raise ArtifactError(
            f"{path}: vocab_size is {config.get('vocab_size')}, {PRIOR_CONFIG} asks for {layout.vocab_size}"
        )
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < layout.num_tokens:
        raise ArtifactError(f"{path}: max_position_embeddings is {positions}, a sequence has {layout.num_tokens + 1}")
    rope = config.get("rope_parameters") or {}
    supported = {
        "hidden_act": config.get("hidden_act", "silu") == "silu",
        "attention_bias": not config.get("attention_bias", False),
        "mlp_bias": not config.get("mlp_bias", False),
        "use_sliding_window": not config.get("use_sliding_window", False),
        "rope_parameters": isinstance(rope, dict) and rope.get("rope_type", "default") == "default",
        "rope_scaling": not config.get("rope_scaling"),
        "quantization_config": "quantization_config" not in config,
    }
    for key, holds in supported.items():
        if not holds:
            raise ArtifactError(f"{path}: {key} is {config.get(key)!r}, which the sampler does not support")
