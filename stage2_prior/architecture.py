"""The stock transformers model of a prior: its config and its first weights."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stage2_prior.conditions import attach, conditions_of
from stage2_prior.layout import SequenceLayout
from stage2_prior.settings import PriorModel, filled
from vq_prior.core.processes.packages import leave_out_if_broken

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def model_config(architecture: PriorModel, layout: SequenceLayout, num_vectors: int = 0) -> "PretrainedConfig":
    """Return the transformers config of a resolved architecture (every size given).

    No id ends, begins or pads a sequence: the defaults of transformers would cut images short. In the prompt,
    `num_vectors` stand behind the class.
    """
    from transformers import LlamaConfig, Qwen3Config

    a = architecture
    classes = {"qwen3": (Qwen3Config, "Qwen3ForCausalLM"), "llama": (LlamaConfig, "LlamaForCausalLM")}
    config_class, model_name = classes[a.kind]
    config: Any = config_class(
        vocab_size=layout.vocab_size,
        hidden_size=a.hidden_size,
        intermediate_size=a.intermediate_size,
        num_hidden_layers=a.num_layers,
        num_attention_heads=a.num_heads,
        num_key_value_heads=a.num_key_value_heads,
        head_dim=filled(a.hidden_size) // filled(a.num_heads),
        max_position_embeddings=layout.num_tokens + 1 + num_vectors,
        rope_parameters={"rope_type": "default", "rope_theta": a.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config.architectures = [model_name]
    if a.depth_blocks:
        config.depth_blocks, config.cell_tokens = a.depth_blocks, layout.cell_tokens
    return config


def model_of(config: "PretrainedConfig") -> nn.Module:
    """Return the stock model of a config; its weights are to be set by the caller."""
    leave_out_if_broken()
    from transformers import LlamaForCausalLM, Qwen3ForCausalLM

    classes: dict[str, Any] = {"qwen3": Qwen3ForCausalLM, "llama": LlamaForCausalLM}
    return classes[config.model_type](config)


def twin_of(model: nn.Module, config: "PretrainedConfig | None" = None) -> nn.Module:
    """Return a model like this one, of its config or another, with a copy of its conditions; weights are to be set."""
    other: Any = model.config if config is None else config
    twin = model_of(other)
    attach(twin, copy.deepcopy(conditions_of(model)))
    return twin


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every weight anew from a generator of `seed`.

    Matrices are normal with variance 1 / columns, embeddings and the output layer with standard
    deviation 0.02, and the two matrices that write into the residual stream of each block start
    at zero, so that every block starts as the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim < 2:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                outer = name.endswith(("embed_tokens.weight", "lm_head.weight"))
                std = 0.02 if outer else parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
