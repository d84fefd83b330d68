"""What a training of the codec will be, in words, before it begins."""

import gc
import json
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from stage1_vqvae.fast.graphs import trained_module
from stage1_vqvae.losses import coarse_terms, reconstruction_terms, weighted_sum, weights_for
from stage1_vqvae.model import VQVAE
from stage1_vqvae.perceptual.contract import Perceptual
from stage1_vqvae.run import optimizers_of
from stage1_vqvae.settings import TrainVQVAE
from vq_prior.core.config import to_json
from vq_prior.core.processes.peak_memory import peak_memory_bytes
from vq_prior.core.processes.runtime import Runtime
from vq_prior.core.spec import by
from vq_prior.core.training.randomness import keyed_generator

TRIAL_PASSES = 3  # of which the fastest counts: the first one also makes what the others find
TRIAL_NUMBERS, LEAST_ROWS = 1 << 18, 16  # pixels of a trial's rows on a CPU, where time and memory grow with the rows


@dataclass(frozen=True)
class Cost:
    """What a training takes.

    Attributes:
        seconds: Of one optimiser step.
        memory_bytes: That a process holds at most; None where no one can tell.
    """

    seconds: float
    memory_bytes: int | None

    def describe(self, steps: int) -> str:
        """Return memory and time of so many steps in one line."""
        memory = self.memory_bytes
        about = "unknown here" if memory is None else f"about {memory / 2**20:.0f} MiB a process"
        whole = f"{self.seconds * steps / 60:.1f} minutes ({steps} x {1000 * self.seconds:.0f} ms)"
        return f"memory {about}, estimated time {whole}"


def describe(settings: TrainVQVAE, model: VQVAE) -> str:
    """Return one line on what will be trained."""
    spec = model.spec
    grids = " + ".join(f"{by(level.grid, 'x')} grid of {level.num_codes} codes" for level in spec.levels)
    size = by(spec.shape, "x")
    return (
        f"codec: images {size}x{spec.channels} -> {grids} "
        f"({settings.quantizer.name}, {spec.num_tokens} tokens), {model.num_parameters():,} parameters; "
        f"{settings.steps} steps of {settings.batch_size} images"
    )


def measured_cost(settings: TrainVQVAE, runtime: Runtime, model: VQVAE, perceptual: Perceptual | None = None) -> Cost:
    """Return what a training takes, from a few steps of a copy of the codec on random images.

    The codec itself, its random numbers and its statistics stay as they are. On a CPU the trial has no more rows than
    tell enough, and the rest is proportional; data, sums over processes and an adversary are not part of it.

    Args:
        settings: Resolved settings.
        runtime: Of this process; each of a group must call it.
        model: As it was made, not yet prepared for training.
        perceptual: The perceptual term, if there is one; what it takes to fit it is not part of the cost.
    """
    assert settings.batch_size is not None
    share = runtime.share(settings.batch_size)
    of_step = share.stop - share.start
    of_piece = -(-of_step // settings.gradient_accumulation_steps)
    fewest = max(LEAST_ROWS, TRIAL_NUMBERS // prod(model.spec.shape))
    rows = min(of_piece, fewest) if runtime.device.type == "cpu" else of_piece
    trial = _Trial(replace(settings, batch_size=rows * runtime.num_processes), runtime, deepcopy(model))
    passes, kept = zip(*(trial.passes(rows) for _ in range(TRIAL_PASSES)), strict=True)
    seconds = min(passes)
    if perceptual is not None:
        perceptual.frozen().to(runtime.device)
        whole, kept = zip(*(trial.passes(rows, perceptual) for _ in range(TRIAL_PASSES)), strict=True)
        seconds += (1 - settings.loss.perceptual_start) * max(0.0, min(whole) - seconds)
    update = min(trial.update() for _ in range(TRIAL_PASSES - 1))
    memory = torch.cuda.max_memory_allocated() if runtime.device.type == "cuda" else peak_memory_bytes()
    del trial
    gc.collect()  # what is captured on a GPU refers to itself
    if memory is not None and rows < of_piece:
        memory += max(kept) * (of_piece - rows) // rows
    return Cost(seconds * of_step / rows + update, memory)


class _Trial:
    """Steps of a training that nothing is kept of."""

    def __init__(self, settings: TrainVQVAE, runtime: Runtime, model: VQVAE) -> None:
        self.settings, self.runtime, self.model = settings, runtime, model
        declared: dict[str, Mapping[str, float | None]] = {"quantizer": model.quantizer.loss_terms}
        self.weights = weights_for(settings.loss, **declared, perceptual={"perceptual": 1.0})
        self.module = trained_module(replace(settings, gradient_accumulation_steps=1), runtime, model)
        self.optimizers = optimizers_of(settings, model)

    def passes(self, rows: int, perceptual: Perceptual | None = None) -> tuple[float, int]:
        """Return the seconds of the passes of some rows, and the bytes that are kept between them."""
        images = torch.rand(rows, self.model.spec.channels, *self.model.spec.shape, generator=torch.Generator())
        images = (images * 2 - 1).to(self.runtime.device)
        started = self._now()
        self.model.quantizer.begin_step(
            progress=0.0,
            noise=lambda row: keyed_generator(0, row, "trial"),
            sums=self.runtime.sum_over_piece,
        )
        kind, kept = self.settings.loss.reconstruction, _Kept(self.module)
        with self.runtime.autocast(), torch.autograd.graph.saved_tensors_hooks(kept.note, _itself):
            output = self.module(images)
            terms = reconstruction_terms(images, output.images, kind=kind) | output.loss
            terms |= coarse_terms(images, output.coarse, self.model.coarse_rows, kind=kind)
            if perceptual is not None:
                terms["perceptual"] = perceptual(images[::2], output.images[::2]).float()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        weighted_sum(terms, self.weights).backward()
        return self._now() - started, sum(kept.sizes.values())

    def update(self) -> float:
        """Return the seconds of what follows the passes of a step."""
        started = self._now()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.quantizer.update(keyed_generator(0, 0, "trial"))
        return self._now() - started

    def _now(self) -> float:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


class _Kept:
    """The sizes of what a forward pass keeps for the backward pass, weights left out, by its place in memory."""

    def __init__(self, module: nn.Module) -> None:
        self.own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self.sizes: dict[int, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        """Return the tensor, whose memory is counted once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def dry_run_text(settings: TrainVQVAE, cost: Cost) -> str:
    """Return the resolved settings, memory and estimated time."""
    assert settings.steps is not None
    resolved = json.dumps(to_json(settings), indent=2)
    return f"{resolved}\n{cost.describe(settings.steps)}; nothing was written (--dry-run)"
