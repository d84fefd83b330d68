"""The prior: a distribution over token sequences, and its first kind.

Letters: B batch, T tokens of a sequence, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.architecture import initialise, model_config, model_of
from stage2_prior.conditions import (
    ClassCondition,
    Conditioned,
    attach,
    build_condition,
    conditions_of,
    kind_of,
    num_vectors,
    prompt_vectors,
)
from stage2_prior.decoder import Decoder
from stage2_prior.folder import (
    ConditionConfig,
    PriorConfig,
    SamplingDefaults,
    note_of,
    read_folder,
    write_folder,
)
from stage2_prior.forward import Packed, depth_of, logits, pack
from stage2_prior.layout import Order, SequenceLayout
from stage2_prior.settings import PriorModel, filled
from vq_prior.core.disk.code_store import Column
from vq_prior.core.disk.components import find_component
from vq_prior.core.hub.repository import local
from vq_prior.core.hub.shareable import Shareable
from vq_prior.core.processes.runtime import Precision
from vq_prior.core.spec import CodeSpec


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

    @property
    def num_vectors(self) -> int:
        """Vectors of the prompt behind the class, of conditions."""
        ...

    def log_probs(self, tokens: Tensor, labels: Tensor | Conditioned) -> Tensor:
        """Return the log-probability in nats of each token given those before it, [B, T] float32."""
        ...

    def prompt_vectors(self, conditioned: Conditioned) -> Tensor | None:
        """Return what stands in the prompt behind the class, [B, P, D]; None without conditions."""
        ...

    def decoder(self, precision: Precision = "fp32") -> Decoder:
        """Return what draws sequences token by token, for the weights as they are now."""
        ...


@dataclass
class CausalPrior(Shareable):
    """A stock transformers causal language model as a prior; or one whose last blocks are a head over depth.

    Attributes:
        model: Qwen3ForCausalLM or LlamaForCausalLM; with a head over depth, its blocks, which are run otherwise.
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
    def log_probs(self, tokens: Tensor, labels: Tensor | Conditioned) -> Tensor:
        """Return the log-probability in nats of each token given its conditions and those before it.

        The softmax is over the ids legal at each position. A token of a level that is given counts as certain: 0.

        Args:
            tokens: [B, T] int64.
            labels: [B] int64, `null_label` for unconditional; or all conditions of the rows.

        Returns:
            [B, T] float32, each at most 0.
        """
        return -token_nats(self.layout, self.token_logits(tokens, labels), tokens)

    def token_logits(self, tokens: Tensor, labels: Tensor | Conditioned) -> Tensor:
        """Return the logits of each token, [B, T, V] float32, given its conditions and those before it."""
        conditioned = Conditioned.of(labels)
        return self.logits(shifted(self.layout, tokens, conditioned.labels), self.prompt_vectors(conditioned))

    @torch.no_grad()
    def logits(self, inputs: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the logits, [B, S, V] float32, of whole sequences [B, S], prompt first.

        `vectors` [B, P, D] are what stands in the prompt behind the class; see `prompt_vectors`.
        """
        return logits(self._packed or pack(self.model), inputs, vectors)

    @property
    def num_vectors(self) -> int:
        """Vectors of the prompt behind the class, of conditions."""
        return num_vectors(self.model)

    @torch.no_grad()
    def prompt_vectors(self, conditioned: Conditioned) -> Tensor | None:
        """Return what stands in the prompt behind the class, [B, P, D]; None without conditions."""
        return prompt_vectors(self.model, conditioned.to(self.device).columns, len(conditioned))

    @torch.no_grad()
    def packed(self) -> "CausalPrior":
        """Return this prior for many calls of `logits` and `log_probs` while no weight changes: it packs them once."""
        return replace(self, _packed=self._packed or pack(self.model))


def shifted(layout: SequenceLayout, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return what the model reads, [B, T] int64: the prompt and all tokens but the last."""
    return torch.cat([ClassCondition(layout).prompt(labels), tokens[:, :-1]], dim=1)


def token_nats(layout: SequenceLayout, logits: Tensor | Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each token, [B, T], under the ids legal at its position; 0 where it is given.

    Args:
        layout: Which ids are legal where, and which levels are given.
        logits: [B, T, V] of any floating type; or of each level [B, cells, K], of the ids legal there. The softmax runs
            in float32.
        tokens: [B, T] int64.
    """
    parts = []
    for number, level in enumerate(layout.levels_at()):
        wanted = tokens[:, level.positions] - level.low
        if number in layout.given_levels:
            parts.append(torch.zeros_like(wanted, dtype=torch.float32))
            continue
        if isinstance(logits, Tensor):
            legal = logits[:, level.positions, level.low : level.high]
        else:
            legal = logits[number]
        nats = F.cross_entropy(legal.float().flatten(0, 1), wanted.flatten(), reduction="none")
        parts.append(nats.view(wanted.shape))
    return layout.in_order(parts)


def build_prior(
    architecture: PriorModel,
    spec: CodeSpec,
    *,
    codec_id: str,
    label_names: Sequence[str] = (),
    num_classes: int | None = None,
    kept: tuple[tuple[int, ...] | None, ...] | None = None,
    order: Order = "raster",
    given_levels: tuple[int, ...] = (),
    num_special: int = 0,
    conditions: Sequence[Column] = (),
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
        order: How the codes follow each other; see `SequenceLayout`.
        given_levels: Levels that are given, never drawn.
        num_special: Ids between codes and classes.
        conditions: Columns that it is conditioned on beside the class, each by the kind that takes it.
        seed: Seed of the weights.
    """
    classes = len(label_names) if num_classes is None else num_classes
    layout = SequenceLayout(spec.levels, classes, kept, order, given_levels, num_special)
    width = filled(architecture.hidden_size)
    attached = [build_condition(kind_of(column), column, width, seed=seed) for column in conditions]
    model = model_of(model_config(architecture, layout, sum(each.num_places for each in attached)))
    initialise(model, seed)
    attach(model, attached)
    return CausalPrior(model.eval(), layout, spec, codec_id, tuple(label_names))


def save_prior(prior: CausalPrior, folder: Path) -> None:
    """Write the prior into an existing (staging) folder; the caller seals and publishes it."""
    layout = prior.layout
    ours = PriorConfig(
        format_version=1,
        kind="causal" if depth_of(prior.model.config) is None else "depth",
        order=layout.order,
        num_codes=layout.num_codes,
        num_classes=layout.num_classes,
        label_names=prior.label_names,
        spec=prior.spec,
        codec_id=prior.codec_id,
        sampling=prior.sampling,
        trained_steps=prior.trained_steps,
        unconditional=prior.unconditional,
        kept=layout.kept,
        note=note_of(layout, prior.model),
        given_levels=layout.given_levels,
        num_special=layout.num_special,
        conditions=tuple(ConditionConfig(each.column, each.kind) for each in conditions_of(prior.model)),
    )
    write_folder(folder, prior.model, ours)


def load_prior(path: str | Path) -> CausalPrior:
    """Return the prior in a folder, a RUN or a MODEL, or of a Hub id, in eval mode on the CPU.

    Raises:
        ArtifactError: If it is missing, damaged, of an unknown kind, or its files contradict each other.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    with local(path, say=print) as fetched:
        folder = find_component(fetched, "prior")
        read = read_folder(folder)
    ours = read.config
    return CausalPrior(
        read.model,
        ours.layout,
        ours.spec,
        ours.codec_id,
        ours.label_names,
        ours.sampling,
        ours.trained_steps,
        ours.unconditional,
        read.notes,
        folder,
    )
