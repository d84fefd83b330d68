"""The folder of a prior on disk: written, read and checked.

`config.json`, `generation_config.json` and `model.safetensors` are transformers'; `prior_config.json` is ours.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stage2_prior.architecture import model_of
from stage2_prior.conditions import Condition, attach, build_condition, num_vectors
from stage2_prior.forward import depth_of
from stage2_prior.layout import Order, SequenceLayout
from stage2_prior.sampling_settings import Sampling, Temperature
from stage2_prior.tokenizer import write_tokenizer
from vq_prior.core.config import from_json, pretty_json, read_json, to_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.code_store import Column
from vq_prior.core.disk.components import MAX_DIMENSION, WEIGHTS, check_sealed, check_transformers_config, load_strictly
from vq_prior.core.disk.tensors import check_header, read_header, write_tensors
from vq_prior.core.errors import ArtifactError, UsageError, in_one_line
from vq_prior.core.processes.packages import broken
from vq_prior.core.processes.runtime import full_state
from vq_prior.core.spec import CodeSpec

PRIOR_CONFIG = "prior_config.json"
CONDITIONS_FILE = "conditions.safetensors"  # tensors 0.NAME of the first condition, 1.NAME of the second, ...
ATTACHED = "conditions."
MAX_LAYERS = 1024
STOCK_TYPES = ("qwen3", "llama")
LATER = (
    "given_levels",
    "num_special",
    "conditions",
)  # keys of prior_config.json that are absent where empty
MAX_CONFIG_BYTES = 20 << 20  # a compacted vocabulary is listed, a code a line
SEVERAL_LEVELS = (
    "several code grids: transformers' generate() does not keep ids legal by position; sample with vq-prior generate"
)
BY_DEPTH = "a head over depth, which no class of transformers has; sample with vq-prior generate"
DEPTH_TYPE = "vq_prior_depth"  # so that transformers refuses it, rather than run its blocks as those of a stock model


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling settings chosen by measurement when the prior was trained."""

    temperature: Temperature = 1.0
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class ConditionConfig:
    """A condition beside the class: the column of the code store, and the name of the kind that reads it."""

    column: Column
    kind: str


@dataclass(frozen=True)
class PriorConfig:
    """`prior_config.json`: what transformers' own config.json does not say.

    Attributes:
        kind: "causal", a stock model; or "depth", one whose last blocks are a head over depth (`forward.Depth`).
        order: How the codes follow each other; see `SequenceLayout`.
        trained_steps: Optimiser steps of the training that wrote it.
        unconditional: Whether the null prompt was trained, which guidance needs.
        kept: The compacted vocabulary, None when every code has a token; see `SequenceLayout`.
        note: What a reader without our sampler must know.
        given_levels: Levels that are given, never drawn; see `SequenceLayout`.
        num_special: Ids between codes and classes.
        conditions: Conditions beside the class, in the order of the prompt; their weights are in another file.
    """

    format_version: int
    kind: Literal["causal", "depth"]
    order: Order
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
    given_levels: tuple[int, ...] = ()
    num_special: int = 0
    conditions: tuple[ConditionConfig, ...] = ()

    @property
    def layout(self) -> SequenceLayout:
        """How code grids become tokens; raises `ArtifactError` if the entries do not fit each other."""
        return SequenceLayout(
            self.spec.levels, self.num_classes, self.kept, self.order, self.given_levels, self.num_special
        )


@dataclass(frozen=True)
class FolderContents:
    """What a prior's folder holds.

    Attributes:
        model: The stock model, in eval mode on the CPU.
        config: Its `prior_config.json`.
        notes: Lines for the user about how it was read.
    """

    model: nn.Module
    config: PriorConfig
    notes: tuple[str, ...]


def note_of(layout: SequenceLayout, model: nn.Module) -> str | None:
    """Return what a reader of a prior's folder without our sampler must know, None for nothing."""
    if depth_of(model.config) is not None:
        return BY_DEPTH
    return SEVERAL_LEVELS if len(layout.levels) > 1 else None


def write_folder(folder: Path, model: nn.Module, ours: PriorConfig) -> None:
    """Write a prior into an existing (staging) folder; the caller seals and publishes it."""
    config: Any = model.config
    config.dtype = next(model.parameters()).dtype
    config.save_pretrained(folder)
    _write_rotary_base(folder / "config.json")
    if ours.kind == "depth":
        _write_own_type(folder / "config.json")
    else:
        _write_for_stock(folder, ours)
    state = full_state(model)
    attached = {name: tensor for name, tensor in state.items() if name.startswith(ATTACHED)}
    write_tensors(folder / WEIGHTS, {name: tensor for name, tensor in state.items() if name not in attached})
    if attached:
        write_tensors(folder / CONDITIONS_FILE, {name.removeprefix(ATTACHED): part for name, part in attached.items()})
    values = to_json(ours)
    # A key that came later is written only where it says something: older programs read what they know.
    write_atomic(folder / PRIOR_CONFIG, pretty_json({k: v for k, v in values.items() if k not in LATER or v}))


def _write_for_stock(folder: Path, ours: PriorConfig) -> None:
    """Write what other programs draw from a stock model with: its tokenizer and its settings of drawing."""
    from transformers import GenerationConfig

    layout = ours.layout
    _write_end(folder / "config.json", layout)
    write_tokenizer(folder, layout)
    generation = GenerationConfig(
        do_sample=True,
        temperature=Sampling(temperature=ours.sampling.temperature).temperatures(1)[0],
        top_k=0,
        top_p=1.0,
        max_new_tokens=layout.num_tokens,
        suppress_tokens=list(range(layout.num_codes, layout.vocab_size)),
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    generation.save_pretrained(folder)


def _write_end(path: Path, layout: SequenceLayout) -> None:
    """Write the null token, which is never drawn, as the end of a text: where none is said, llama.cpp ends at id 2."""
    _write_config(path, read_json(path) | {"eos_token_id": layout.null_token})


def _write_own_type(path: Path) -> None:
    """Write a type of model that only we know, and that of its blocks beside it, and no class of transformers."""
    values = read_json(path)
    values |= {"blocks_type": values["model_type"], "model_type": DEPTH_TYPE}
    values.pop("architectures", None)
    _write_config(path, values)


def _with_stock_type(values: dict[str, Any], ours: PriorConfig, path: Path) -> dict[str, Any]:
    """Return a config.json with the type of the blocks as its own; raises `ArtifactError` unless it fits the kind."""
    depth = {name: values.get(name, 0) for name in ("depth_blocks", "cell_tokens")}
    if ours.kind == "causal":
        if any(depth.values()):
            raise ArtifactError(f"{path}: depth_blocks and cell_tokens are of kind depth, this prior is causal")
        return values
    blocks = values.get("blocks_type")
    if blocks not in STOCK_TYPES:
        raise ArtifactError(f"{path}: blocks_type must be one of {', '.join(STOCK_TYPES)}, got {blocks!r}")
    layers, cell = values.get("num_hidden_layers"), ours.layout.cell_tokens
    fit = type(depth["depth_blocks"]) is int and isinstance(layers, int) and 0 < depth["depth_blocks"] < layers
    if not fit or cell == 1 or depth["cell_tokens"] != cell:
        raise ArtifactError(
            f"{path}: a head over depth must have depth_blocks below num_hidden_layers and the cell_tokens of "
            f"interleaved levels, {cell}, got {depth} of {layers}"
        )
    return {**values, "model_type": blocks}


def _write_rotary_base(path: Path) -> None:
    """Write the rotary base of a config where version 4 of transformers, and what follows it, reads it as well.

    Without the second place they take a base of their own and draw from another model.
    """
    values = read_json(path)
    _write_config(path, values | {"rope_theta": values["rope_parameters"]["rope_theta"]})


def _write_config(path: Path, values: dict[str, Any]) -> None:
    """Write a config.json as transformers does."""
    write_atomic(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def read_prior_config(folder: Path) -> PriorConfig:
    """Return the `prior_config.json` of a prior's folder.

    Raises:
        ArtifactError: If it is missing, malformed, of an unknown version or kind, or contradicts itself.
    """
    path = folder / PRIOR_CONFIG
    config = from_json(PriorConfig, read_json(path, max_bytes=MAX_CONFIG_BYTES), str(path))
    if config.format_version != 1:
        raise ArtifactError(f"{path} has format version {config.format_version}; this version reads 1")
    try:
        layout = config.layout
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    if config.num_codes != layout.num_codes:
        raise ArtifactError(f"{path}: num_codes is {config.num_codes}, its spec has {layout.num_codes}")
    if config.label_names and len(config.label_names) != config.num_classes:
        raise ArtifactError(f"{path}: label_names has {len(config.label_names)} names for {config.num_classes} classes")
    temperatures = Sampling(temperature=config.sampling.temperature).temperatures(len(layout.levels))
    fit = len(temperatures) == len(layout.levels) and all(each > 0 for each in temperatures)
    if not (fit and config.sampling.guidance_scale >= 0):
        raise ArtifactError(f"{path}: sampling is out of range, got {config.sampling}")
    return config


def read_folder(folder: Path) -> FolderContents:
    """Return what a prior's folder holds, every byte checked.

    Raises:
        ArtifactError: If it is missing, damaged, of an unknown kind, or its files contradict each other.
    """
    from transformers import LlamaConfig, Qwen3Config

    notes = check_sealed(folder)
    ours = read_prior_config(folder)
    types = STOCK_TYPES if ours.kind == "causal" else (DEPTH_TYPE,)
    values = check_transformers_config(folder / "config.json", model_types=types)
    values = _with_stock_type(values, ours, folder / "config.json")
    _check_architecture(values, ours.layout, folder / "config.json")
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
        no_model = ArtifactError(f"{folder / 'config.json'} describes no model: {in_one_line(error)}")
        raise broken(error) or no_model from error
    load_strictly(model, folder / WEIGHTS)
    conditions = _read_conditions(folder, ours.conditions, values["hidden_size"])
    attach(model, conditions)
    places = ours.layout.num_tokens + num_vectors(model)
    if values["max_position_embeddings"] < places:
        raise ArtifactError(f"{folder}: max_position_embeddings is too small for conditions, which need {places}")
    return FolderContents(model.eval(), ours, tuple(notes))


def _read_conditions(folder: Path, listed: tuple[ConditionConfig, ...], width: int) -> list[Condition]:
    """Return the conditions of a prior, their weights read strictly; raises `ArtifactError` if they do not fit."""
    path = folder / CONDITIONS_FILE
    if not listed:
        if path.exists():
            raise ArtifactError(f"{path} is there, but {PRIOR_CONFIG} lists no conditions")
        return []
    conditions = []
    for each in listed:
        size = prod(each.column.shape)
        if each.kind == "class" or len(each.column.shape) > 3 or not 1 <= size <= MAX_DIMENSION:
            raise ArtifactError(f"{folder / PRIOR_CONFIG}: condition {each.column.name} is no column of values")
        try:
            conditions.append(build_condition(each.kind, each.column, width))
        except UsageError as error:
            raise ArtifactError(f"{folder / PRIOR_CONFIG}: {error}; install the package that brings it") from error
    load_strictly(nn.ModuleList(conditions), path)
    return conditions


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
    base = rope.get("rope_theta", config.get("rope_theta")) if isinstance(rope, dict) else None
    supported = {
        "hidden_act": config.get("hidden_act", "silu") == "silu",
        "attention_bias": not config.get("attention_bias", False),
        "mlp_bias": not config.get("mlp_bias", False),
        "use_sliding_window": not config.get("use_sliding_window", False),
        "rope_parameters": isinstance(rope, dict) and rope.get("rope_type", "default") == "default",
        "rope_scaling": not config.get("rope_scaling"),
        "rope_theta": config.get("rope_theta") in (None, base),  # written in both places
        "quantization_config": "quantization_config" not in config,
    }
    for key, holds in supported.items():
        if not holds:
            raise ArtifactError(f"{path}: {key} is {config.get(key)!r}, which the sampler does not support")
