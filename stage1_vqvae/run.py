"""One run of the training of a codec: what it works with, and its checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1_vqvae.adversary import AdversaryTraining, MakeAdversary
from stage1_vqvae.fast.graphs import trained_module
from stage1_vqvae.held_out import HeldOutJudge, Kept
from stage1_vqvae.losses import weights_for
from stage1_vqvae.model import VQVAE
from stage1_vqvae.perceptual.contract import Perceptual
from stage1_vqvae.settings import TrainVQVAE
from vq_prior.core.disk.artifacts import verify_manifest
from vq_prior.core.disk.checkpoints import Checkpoint, save_checkpoint
from vq_prior.core.disk.components import WEIGHTS
from vq_prior.core.disk.tensors import read_tensors
from vq_prior.core.errors import ArtifactError
from vq_prior.core.processes.collectives import require_same_everywhere
from vq_prior.core.processes.runtime import Runtime, full_state
from vq_prior.core.training.averaging import WeightAverage
from vq_prior.core.training.optim import adamw_and_muon, load_optimizer_tensors, optimizer_tensors
from vq_prior.core.training.randomness import batch_rows
from vq_prior.core.training.windows import Window

PERCEPTUAL, JUDGE, KEPT = "perceptual", "judge", "kept"  # in checkpoints; kept are the best weights
MUON_SHARE = 0.5  # of the learning rate: nearer to the pictures of CIFAR-10 than the whole of it


@dataclass
class Training:
    """Everything that one run works with.

    Attributes:
        settings: Resolved settings.
        runtime: This process.
        folder: RUN/vqvae-training.
        model: The codec in training, unwrapped.
        module: The codec as forward and backward passes use it; wrapped where there are several processes.
        optimizers: By name; AdamW, and Muon for the kernels between hidden layers if it was chosen.
        weights: Weight of each loss term, by name.
        average: Averaged weights.
        train: Training rows.
        held_out: Held-out rows.
        window: What the next log line tells.
        adversary: The second network, or None.
        perceptual: The perceptual term, frozen, or None.
        judge: What judges held-out reconstructions while it trains, or None.
        kept: The weights that did best by it.
        balanced: Training rows of which every class has as many; None takes each once.
        counted: Counts of the quantiser's updates since the last log line.
        step: Optimiser steps done.
    """

    settings: TrainVQVAE
    runtime: Runtime
    folder: Path
    model: VQVAE
    module: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    weights: dict[str, float]
    average: WeightAverage
    train: Any
    held_out: Any
    window: Window
    adversary: AdversaryTraining | None = None
    perceptual: Perceptual | None = None
    judge: HeldOutJudge | None = None
    kept: Kept = field(default_factory=Kept)
    balanced: NDArray[np.int64] | None = None
    counted: dict[str, float] = field(default_factory=lambda: {"num_revived": 0.0})
    step: int = 0

    @property
    def batch_size(self) -> int:
        """Rows of one optimiser step, over all processes."""
        assert self.settings.batch_size is not None
        return self.settings.batch_size

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the training rows of a step."""
        if self.balanced is None:
            return batch_rows(len(self.train), self.batch_size, self.settings.seed, step)
        return self.balanced[batch_rows(len(self.balanced), self.batch_size, self.settings.seed, step)]

    @property
    def progress(self) -> float:
        """Share of the steps that is done."""
        assert self.settings.steps is not None
        return self.step / self.settings.steps

    @property
    def final(self) -> dict[str, Tensor]:
        """The weights that the run ends with: those that did best where they are judged, else the averaged ones."""
        return self.kept.tensors or self.average.tensors

    def perceptual_now(self) -> Perceptual | None:
        """Return the perceptual term if it is part of the loss of this step."""
        return self.perceptual if self.progress >= self.settings.loss.perceptual_start else None

    def done(self) -> bool:
        """Return whether no optimiser step is left."""
        assert self.settings.steps is not None
        return self.step >= self.settings.steps


def prepare(
    settings: TrainVQVAE,
    runtime: Runtime,
    model: VQVAE,
    train: Any,
    held_out: Any,
    make_adversary: MakeAdversary | None = None,
    perceptual: Perceptual | None = None,
    num_classes: int = 0,
) -> Training:
    """Return a run at step 0 from resolved settings; its codebook is not started yet, and nothing is written.

    Raises:
        UsageError: If a loss term has no weight.
    """
    adversary = None
    if make_adversary is not None:
        rate = settings.learning_rate
        assert rate is not None
        betas = settings.adam_betas
        adversary = AdversaryTraining(
            make_adversary, model.spec, runtime, seed=settings.seed, learning_rate=rate, betas=betas
        )
    declared: dict[str, Mapping[str, float | None]] = {"quantizer": model.quantizer.loss_terms}
    if adversary is not None:
        declared["adversary"] = adversary.network.loss_terms
    if perceptual is not None:
        own = perceptual.weight if settings.loss.perceptual_weight is None else None
        declared["perceptual loss"] = {"perceptual": own}
    weights = weights_for(settings.loss, **declared)
    freeze(model, settings.freeze)
    module = trained_module(settings, runtime, model)
    if "quantizer" in settings.freeze:
        model.quantizer.eval()  # which takes note of nothing
    return Training(
        settings=settings,
        runtime=runtime,
        folder=settings.out / "vqvae-training",
        model=model,
        module=module,
        optimizers=optimizers_of(settings, model),
        weights=weights,
        average=new_average(settings, model),
        train=train,
        held_out=held_out,
        window=Window(runtime, model.quantizer.level_sizes),
        adversary=adversary,
        judge=None if settings.judge_every is None else HeldOutJudge(held_out, num_classes),
        perceptual=None if perceptual is None else perceptual.frozen().to(runtime.device),
    )


def freeze(model: VQVAE, parts: Sequence[str]) -> None:
    """Let parts of a codec, by name, get no gradient."""
    for part in parts:
        getattr(model, part).requires_grad_(False)


def new_average(settings: TrainVQVAE, model: VQVAE) -> WeightAverage:
    """Return an average that begins with the present weights; what does not learn by gradients is copied."""
    copied = {"quantizer", *settings.freeze}
    return WeightAverage(model, decay=settings.average_decay, copied=tuple(f"{part}." for part in sorted(copied)))


def optimizers_of(settings: TrainVQVAE, model: VQVAE) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers by name; Muon has the kernels between hidden layers, at half of the learning rate."""
    rate = settings.learning_rate
    assert rate is not None
    trained = [p for p in model.parameters() if p.requires_grad]
    inner = [p for p in trained if p.ndim > 2 and model.spec.channels not in p.shape[:2]]
    kernels = inner if settings.optimizer == "muon" else []
    decay, betas = settings.weight_decay, settings.adam_betas
    return adamw_and_muon(trained, kernels, learning_rate=rate, weight_decay=decay, betas=betas, share=MUON_SHARE)


def save(t: Training) -> None:
    """Write a checkpoint of the present step (main process; every process must call it)."""
    require_same_everywhere(t.model.quantizer.state_dict(), "the codebook")
    counted = dict(t.counted)
    state = {"window": t.window.state(), "num_revived": counted.pop("num_revived")}
    if counted:
        state["counted"] = counted
    if t.adversary is not None:
        state["adversary"] = t.adversary.state()
    if t.judge is not None:
        state["kept"] = t.kept.state()
    if t.runtime.is_main:
        checkpoint = Checkpoint(
            t.step,
            state=state,
            modules={"vqvae": full_state(t.model)},
            optimizers={name: optimizer_tensors(each, t.model) for name, each in t.optimizers.items()},
            averages={"vqvae": t.average.tensors},
        )
        if t.adversary is not None:
            t.adversary.add_to(checkpoint)
        if t.perceptual is not None and t.perceptual.fitted:
            checkpoint.modules[PERCEPTUAL] = full_state(t.perceptual)
        if t.judge is not None:
            checkpoint.modules[JUDGE] = full_state(t.judge.network)
            checkpoint.averages |= {KEPT: t.kept.tensors} if t.kept.tensors else {}
        save_checkpoint(t.folder / "checkpoints", checkpoint)


def resume(t: Training, checkpoint: Checkpoint) -> None:
    """Give the run the state of a checkpoint.

    Raises:
        ArtifactError: If it is not of this run.
    """
    where = f"checkpoint step {checkpoint.step}"
    try:
        names = {"vqvae"} if t.adversary is None else {"vqvae", t.adversary.name}
        names |= {PERCEPTUAL} if t.perceptual is not None and t.perceptual.fitted else set()
        names |= {JUDGE} if t.judge is not None else set()
        if checkpoint.modules.keys() != names:
            raise KeyError(f"it holds {', '.join(sorted(checkpoint.modules))}, not {', '.join(sorted(names))}")
        t.model.load_state_dict(checkpoint.modules["vqvae"], strict=True)
        for name, optimizer in t.optimizers.items():
            load_optimizer_tensors(optimizer, t.model, checkpoint.optimizers[name], where)
        t.average.load(checkpoint.averages["vqvae"])
        if t.adversary is not None:
            t.adversary.restore(checkpoint, where)
        if PERCEPTUAL in names:
            assert t.perceptual is not None
            t.perceptual.load_state_dict(checkpoint.modules[PERCEPTUAL], strict=True)
        state = checkpoint.state
        if t.adversary is not None and "adversary" in state:  # a run of before it was written
            t.adversary.load(state["adversary"])
        if t.judge is not None:
            t.judge.network.load_state_dict(checkpoint.modules[JUDGE], strict=True)
            t.kept.load(state["kept"], checkpoint.averages.get(KEPT, {}))
        counted = {"num_revived": state.get("num_revived", 0.0), **state.get("counted", {})}
        t.counted = {name: float(count) for name, count in counted.items()}
    except (KeyError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{where} does not fit this run ({str(error)[:80]}); pass --overwrite to start anew"
        ) from error
    t.window.load(checkpoint.state.get("window"))
    t.step = checkpoint.step


def is_result_of(final: Path, checkpoint: Checkpoint) -> bool:
    """Return whether RUN/vqvae holds the weights that a run of this checkpoint ends with."""
    try:
        if not verify_manifest(final):
            return False
        saved = read_tensors(final / WEIGHTS)
    except ArtifactError:
        return False
    expected = checkpoint.averages.get(KEPT) or checkpoint.averages.get("vqvae", {})
    return saved.keys() == expected.keys() and all(torch.equal(saved[name], expected[name]) for name in saved)
