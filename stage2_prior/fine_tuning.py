"""Fine-tuning: a prior that starts from another's weights, all of them trained or low-rank adapters only.

Adapters (LoRA: Hu et al. 2021, "LoRA: Low-rank adaptation of large language models") are peft's,
inside the stock model. What leaves this file to be sampled or saved is plain again: `merged`.

Letters: K codes of all levels together, D width.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.architecture import twin_of
from stage2_prior.prior import CausalPrior, load_prior
from stage2_prior.settings import PriorModel, TrainPrior, filled
from vq_prior.core.config import to_json
from vq_prior.core.disk.components import find_component
from vq_prior.core.errors import EnvironmentFault, UsageError
from vq_prior.core.identity import content_id
from vq_prior.core.labels import one_form
from vq_prior.core.processes.packages import broken
from vq_prior.core.processes.runtime import full_state
from vq_prior.core.training.randomness import keyed_generator

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER = "default"
ALPHA_OVER_RANK = 2


def require_peft() -> None:
    """Raise `EnvironmentFault` unless peft can be imported."""
    try:
        import_module("peft")
    except Exception as error:  # absent, or there and broken
        raise broken(error) or EnvironmentFault('--lora needs peft; run `pip install "vq-prior[lora]"`') from error


def open_base(settings: TrainPrior) -> CausalPrior:
    """Return the prior that `settings.from_model` (a MODEL, RUN or prior folder) names.

    Raises:
        ArtifactError: If there is none, or it is damaged.
        UsageError: If the training would replace it.
        EnvironmentFault: If `settings.lora` is set and peft is missing.
    """
    if settings.lora:
        require_peft()
    folder = find_component(Path(filled(settings.from_model)), "prior")
    written = [settings.out / "prior", settings.out / "model" / "prior"]
    if folder.resolve() in [path.resolve() for path in written]:
        raise UsageError(f"--out {settings.out} would replace the prior that --from names; choose another --out")
    return load_prior(folder)


def architecture_of(prior: CausalPrior) -> PriorModel:
    """Return the sizes of a prior's model, every one given."""
    config: Any = prior.model.config
    return PriorModel(
        kind=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        intermediate_size=config.intermediate_size,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        depth_blocks=getattr(config, "depth_blocks", 0),
    )


def prior_id(prior: CausalPrior) -> str:
    """Return a sha256 over a prior's architecture, layout, class names and weights."""
    architecture = to_json(architecture_of(prior))
    if not architecture["depth_blocks"]:
        del architecture["depth_blocks"]  # what has none keeps the id that it had before there were any
    described = [architecture, prior.layout.to_json(), prior.label_names]
    return content_id(described, full_state(prior.model))


def with_classes(base: CausalPrior, label_names: Sequence[str]) -> CausalPrior:
    """Return a copy of a prior that has these classes instead of its own, possibly none.

    The rows of the codes and of the null token are the base's; the row of a class is that of the base's class of
    the same name, else that of its null token, so that a new class starts as "any picture".
    """
    layout = dataclasses.replace(base.layout, num_classes=len(label_names))
    null, K = base.layout.null_token, layout.first_class
    known = {one_form(name): K + number for number, name in enumerate(base.label_names)}
    rows = [*range(K), *(known.get(one_form(name), null) for name in label_names), null]
    config: Any = copy.deepcopy(base.model.config)
    config.vocab_size = layout.vocab_size
    config.tie_word_embeddings = False  # the two differ once the prompts alone are trained
    model = twin_of(base.model, config)
    state = full_state(base.model)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][rows]
    model.load_state_dict(state)
    return CausalPrior(model.eval(), layout, base.spec, base.codec_id, tuple(label_names))


class PromptEmbedding(nn.Module):
    """An embedding of which only the rows behind the first K, those of classes and null, are trained.

    Attributes:
        codes: Frozen rows, [K, D].
        prompts: Trained rows, [num_classes + 1, D].
    """

    def __init__(self, weight: Tensor, num_codes: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(weight[:num_codes].detach().clone(), requires_grad=False)
        self.prompts = nn.Parameter(weight[num_codes:].detach().clone())

    @property
    def weight(self) -> Tensor:
        """All rows, [K + num_classes + 1, D]."""
        return torch.cat([self.codes, self.prompts])

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, [..., D]."""
        return F.embedding(ids, self.weight)


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in sorted(model.named_modules(), key=lambda item: item[0]):
        if hasattr(module, "lora_A"):
            yield name, module


@torch.no_grad()
def add_adapters(prior: CausalPrior, *, rank: int, seed: int) -> None:
    """Give the projections of a prior's model adapters of this rank, in place, and freeze all but them and the prompts.

    The result is the same distribution at first: the second factor of each adapter is 0. The first is normal
    with variance 1 / columns, a function of (seed, name of the layer).
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=ALPHA_OVER_RANK * rank, target_modules=list(ADAPTED), lora_dropout=0.0)
    model: Any = prior.model
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, layer in _adapted_layers(model):
        first, second = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        drawn = keyed_generator(seed, 0, f"adapter {name}").standard_normal(tuple(first.shape))
        first.copy_(torch.from_numpy(drawn) * first.shape[1] ** -0.5)
        second.zero_()
        first.requires_grad_(True)
        second.requires_grad_(True)
    model.model.embed_tokens = PromptEmbedding(model.model.embed_tokens.weight, prior.layout.num_codes)


@torch.no_grad()
def merged(prior: CausalPrior) -> CausalPrior:
    """Return the prior as a plain stock model: itself without adapters, else a copy with them added to its weights.

    The prior in training is left alone: adding adapters in place and taking them off again would change its last bits.
    """
    trained: Any = prior.model
    layers = dict(_adapted_layers(trained))
    if not layers:
        return prior
    tensors = trained.state_dict()
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = layer.get_base_layer().weight + layer.get_delta_weight(ADAPTER)
    tensors["model.embed_tokens.weight"] = trained.model.embed_tokens.weight
    model = twin_of(trained).to(prior.device)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return dataclasses.replace(prior, model=model.eval(), _decoders=None)
