"""One run of the training of a prior: what it works with, and its checkpoints."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage2_prior.baselines import Baselines, measure_baselines
from stage2_prior.conditions import condition_columns, conditions_of
from stage2_prior.fine_tuning import add_adapters, with_classes
from stage2_prior.folder import PRIOR_CONFIG, read_prior_config
from stage2_prior.forward import SequenceModel
from stage2_prior.orders import layout_of
from stage2_prior.prior import CausalPrior, build_prior
from stage2_prior.sequences import Sequences, used_codes
from stage2_prior.settings import TrainPrior, filled
from vq_prior.core.config import from_json
from vq_prior.core.disk.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.processes.runtime import Runtime, full_state
from vq_prior.core.processes.sharding import gathered, like, shard
from vq_prior.core.spec import Codec
from vq_prior.core.training.averaging import WeightAverage
from vq_prior.core.training.optim import adamw_and_muon, load_optimizer_tensors, optimizer_tensors
from vq_prior.core.training.randomness import batch_rows, in_equal_parts
from vq_prior.core.training.windows import Window


@dataclass
class Progress:
    """What the loop knows besides tensors; the JSON `state` of a checkpoint.

    Attributes:
        best_nats: Smallest held-out nats per token so far; None before the first measurement.
        best_step: Optimiser step of that measurement.
        misses: Measurements since then.
        level_nats: That of each level, where there are several.
    """

    best_nats: float | None = None
    best_step: int = 0
    misses: int = 0
    level_nats: tuple[float, ...] = ()


@dataclass
class Training:
    """Everything that one run works with.

    Attributes:
        settings: Resolved settings.
        runtime: This process.
        folder: RUN/prior-training.
        final: RUN/prior.
        prior: The prior in training; its model is the unwrapped one, with adapters if these are trained.
        model: The model as forward and backward use it, see `SequenceModel`; wrapped when there are several processes.
        optimizers: By name; AdamW, and Muon for the matrices of the blocks if it was chosen.
        average: Averaged weights.
        best: The averaged weights of the best measurement.
        train: Training rows.
        held_out: Held-out rows measured.
        baselines: What to beat.
        codec: Decodes sample grids, or None.
        progress: See `Progress`.
        step: Optimiser steps done.
        window: What the next log line tells.
        balanced: Training rows of which every class has as many; None takes each once.
    """

    settings: TrainPrior
    runtime: Runtime
    folder: Path
    final: Path
    prior: CausalPrior
    model: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    average: WeightAverage
    train: Sequences
    held_out: Sequences
    baselines: Baselines
    codec: Codec | None
    window: Window
    balanced: NDArray[np.int64] | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    step: int = 0

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the training rows of a step."""
        size, seed = filled(self.settings.batch_size), self.settings.seed
        if self.balanced is None:
            return batch_rows(len(self.train), size, seed, step)
        return self.balanced[batch_rows(len(self.balanced), size, seed, step)]

    def stopped_early(self) -> bool:
        """Return whether the held-out loss has not improved for `patience` measurements."""
        return self.settings.patience is not None and self.progress.misses >= self.settings.patience

    def ending(self) -> str:
        """Return in words how many steps were done, and whether they ended early."""
        if self.stopped_early():
            return f"stopped early at step {self.step}, {self.progress.misses} measurements without improvement"
        return f"{self.step} steps"

    def done(self) -> bool:
        """Return whether no optimiser step is left."""
        assert self.settings.steps is not None
        return self.step >= filled(self.settings.steps) or self.stopped_early()


def prepare(
    settings: TrainPrior,
    runtime: Runtime,
    store: CodeStore,
    validation: CodeStore,
    codec: Codec | None,
    base: CausalPrior | None = None,
) -> Training:
    """Return a run at step 0 from resolved settings, starting from `base` if there is one; writes nothing."""
    prior = _starting_prior(settings, store, validation, base)
    train = Sequences.read(store, prior.layout)
    if base is None:
        _fit_conditions(prior, train)
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    levels = prior.layout.levels_at()
    passes = SequenceModel(prior.model.train(), dtype, levels, checkpointing=settings.gradient_checkpointing)
    sharded = settings.fsdp and runtime.num_processes > 1
    model = shard(passes, passes.layers, runtime.device, runtime.num_processes) if sharded else runtime.wrap(passes)
    held_out = Sequences.read(validation, prior.layout, max_rows=settings.eval_rows)
    return Training(
        settings=settings,
        runtime=runtime,
        folder=settings.out / "prior-training",
        final=settings.out / "prior",
        prior=prior,
        model=model,
        optimizers=_optimizers(settings, prior.model),
        average=WeightAverage(prior.model, decay=filled(settings.average_decay)),
        train=train,
        held_out=held_out,
        baselines=measure_baselines(train, held_out),
        codec=codec,
        window=Window(runtime),
        balanced=in_equal_parts(train.labels) if settings.balance else None,
    )


def _optimizers(settings: TrainPrior, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    rate, decay = filled(settings.learning_rate), settings.weight_decay
    matrices = []
    if settings.optimizer == "muon":
        matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2 and p.requires_grad]
    return adamw_and_muon(model.parameters(), matrices, learning_rate=rate, weight_decay=decay, betas=(0.9, 0.95))


def _starting_prior(
    settings: TrainPrior, store: CodeStore, validation: CodeStore, base: CausalPrior | None
) -> CausalPrior:
    names = store.index.label_names if store.labelled else ()
    if base is None:
        layout = layout_of(settings, store.spec, len(names))
        prior = build_prior(
            settings.model,
            store.spec,
            codec_id=store.index.codec.id,
            label_names=names,
            kept=used_codes((store, validation)),
            order=layout.order,
            given_levels=layout.given_levels,
            conditions=condition_columns(store.index),
            seed=settings.seed,
        )
    else:
        prior = with_classes(base, names)
        if settings.lora:
            add_adapters(prior, rank=filled(settings.lora_rank), seed=settings.seed)
        for condition in conditions_of(prior.model):
            condition.requires_grad_(True)
    prior.unconditional = filled(settings.label_dropout) > 0 or not (names or prior.num_vectors)
    return prior


def _fit_conditions(prior: CausalPrior, train: Sequences) -> None:
    """Let the conditions of an untrained prior see the training rows, and check these.

    Raises:
        ArtifactError: If a condition takes other values.
    """
    for condition in conditions_of(prior.model):
        values = torch.from_numpy(train.columns[condition.column.name].astype(np.float32))
        try:
            condition.check(values)
        except UsageError as error:
            raise ArtifactError(f"the codes hold values of {condition.column.name} that do not fit: {error}") from error
        condition.fit(values)


def save(t: Training) -> None:
    """Write a checkpoint of the present step."""
    state = {"progress": dataclasses.asdict(t.progress), "window": t.window.state()}
    averages = {"ema": t.average.tensors} | ({"best": t.best} if t.best else {})
    mine = t.runtime.is_main
    checkpoint = Checkpoint(
        t.step,
        modules={"prior": full_state(t.prior.model, keep=mine)},
        optimizers={name: optimizer_tensors(each, t.prior.model, keep=mine) for name, each in t.optimizers.items()},
        averages={name: gathered(tensors, keep=mine) for name, tensors in averages.items()},
        state=state,
    )
    if mine:
        save_checkpoint(t.folder / "checkpoints", checkpoint)
    t.runtime.barrier()


def resume(t: Training) -> None:
    """Give the run the state of its latest checkpoint, if it has one.

    Raises:
        ArtifactError: If the checkpoint is not of this model.
    """
    checkpoint, passed_over = latest_checkpoint(t.folder / "checkpoints")
    if t.runtime.is_main:
        for line in passed_over:
            print(line)
    if checkpoint is None:
        return
    where = f"{t.folder / 'checkpoints'}, step {checkpoint.step}"
    expected = {name: tensor.shape for name, tensor in t.prior.model.state_dict().items()}
    weights, averages = checkpoint.modules.get("prior", {}), checkpoint.averages
    for name, tensors in (("prior", weights), *averages.items()):
        if {key: tensor.shape for key, tensor in tensors.items()} != expected:
            raise ArtifactError(f"{where}: the tensors of {name!r} are not those of this model")
    progress = from_json(Progress, checkpoint.state.get("progress"), f"{where}: progress")
    if "ema" not in averages:
        raise ArtifactError(f"{where}: the averaged weights are missing")
    if ("best" in averages) != (progress.best_nats is not None):
        raise ArtifactError(f"{where}: the weights of the best measurement are missing, or there was none")
    present = t.prior.model.state_dict()
    t.prior.model.load_state_dict({name: like(tensor, present[name]) for name, tensor in weights.items()})
    for name, optimizer in t.optimizers.items():
        load_optimizer_tensors(optimizer, t.prior.model, checkpoint.optimizers.get(name, {}), where)
    t.average.load(averages["ema"])
    t.best = {name: like(tensor, present[name]) for name, tensor in averages.get("best", {}).items()}
    t.progress, t.step = progress, checkpoint.step
    t.window.load(checkpoint.state.get("window"))
    if t.runtime.is_main and not t.done():
        print(f"continuing at step {t.step} of {t.settings.steps}", flush=True)


def written_steps(final: Path) -> int | None:
    """Return the steps of the prior at `final`, None without a whole one."""
    try:
        return read_prior_config(final).trained_steps if (final / PRIOR_CONFIG).exists() else None
    except ArtifactError:
        return None
