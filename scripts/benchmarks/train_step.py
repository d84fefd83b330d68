"""A training step of stage one on the network of the CIFAR-10 notebook, ours against plain PyTorch.

A step is all that the training loop does between two batches: gather rows from pixels in memory, make images of them,
forward, backward, clip, optimiser step, quantiser update, averages and counts. `plain` is baselines.py in float32;
`ours_fp32` does more in its step (clipping, averaged weights, use of codes, a schedule) in the same precision;
`ours_default` takes the precision that the command chooses on this machine. Pixels are noise: a step costs the same.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from timing import faster_by, interleaved, row, tell

NUM_IMAGES = 5000


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="steps of one contender in one round")
    parser.add_argument("--rounds", type=int, default=9)


def notebook_settings(batch_size: int) -> Any:
    """Return resolved settings of `train-vqvae` for the notebook's network."""
    from stage1_vqvae.settings import DataFacts, resolve
    from vq_prior.recipes import find_recipe

    recipe = replace(find_recipe("train-vqvae", "cifar10-sonnet"), data="noise", out=Path("nowhere"))
    return resolve(replace(recipe, batch_size=batch_size), DataFacts(50_000, (32, 32), 32, False), "cpu")


def default_precision(settings: Any) -> str:
    """Return the precision that `train-vqvae` chooses on this machine."""
    from stage1_vqvae.train import at_default_precision
    from vq_prior.core.runtime import start_runtime

    return at_default_precision(start_runtime(None), settings).precision


class OurTraining:
    """The step of `stage1_vqvae.train`, on one process."""

    def __init__(self, settings: Any, precision: Any) -> None:
        from stage1_vqvae.train import new_codec
        from vq_prior.core.averaging import WeightAverage
        from vq_prior.core.optim import adamw
        from vq_prior.core.runtime import start_runtime
        from vq_prior.core.windows import Window

        s = self.settings = replace(settings, precision=precision)
        self.runtime, self.number = start_runtime(precision), 0
        self.model = new_codec(s).train()
        self.wrapped = self.runtime.wrap(self.model)
        self.optimizer = adamw(
            self.model.parameters(), learning_rate=s.learning_rate, weight_decay=s.weight_decay, betas=s.adam_betas
        )
        self.average = WeightAverage(self.model, decay=s.average_decay, copied=("quantizer.",))
        self.window = Window(self.runtime, (s.quantizer.num_codes,))

    def start(self, pixels: Any) -> None:
        """Set the codebook as a run does."""
        from stage1_vqvae.train import _start_codebook

        _start_codebook(self.model, pixels, self.settings, self.runtime)

    def step(self, pixels: Any) -> None:
        """Take one step on uint8 pixels [B, height, width, C]."""
        import torch

        from stage1_vqvae.train import _passes
        from vq_prior.core.media import to_unit_range
        from vq_prior.core.optim import lr_at, set_learning_rate
        from vq_prior.core.randomness import keyed_generator

        s = self.settings
        images = to_unit_range(torch.from_numpy(pixels))
        rate = lr_at(
            self.number,
            steps=s.steps,
            peak=s.learning_rate,
            warmup_steps=s.warmup_steps,
            decay_fraction=s.decay_fraction,
            schedule=s.schedule,
        )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        numbers = _passes(s, self.runtime, self.model, self.wrapped, images, self.number, self.window)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.max_gradient_norm)
        assert torch.isfinite(numbers.pop("loss")) & torch.isfinite(norm)
        self.window.add(numbers)
        self.optimizer.step()
        self.model.quantizer.update(keyed_generator(s.seed, self.number, "quantizer"))
        self.number += 1
        self.average.update(self.model, self.number)


class Noise:
    """Pixels in memory, as a run keeps them."""

    def __init__(self) -> None:
        import numpy as np

        self.pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return NUM_IMAGES

    def batch(self, indices: Any) -> Any:
        """Return some rows' pixels."""
        return self.pixels[indices]


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    import torch
    from baselines import PlainTraining

    from vq_prior.core.randomness import batch_rows

    noise, B, settings = Noise(), arguments.batch_size, notebook_settings(arguments.batch_size)
    plain, default = PlainTraining(), default_precision(settings)
    ours = {"ours_fp32": OurTraining(settings, "fp32"), "ours_default": OurTraining(settings, default)}
    for training in ours.values():
        training.start(noise)

    def several(step: Callable[[Any], object]) -> None:
        for number in range(arguments.steps):
            step(noise.batch(batch_rows(NUM_IMAGES, B, 0, number)))

    contenders = {"plain": partial(several, lambda pixels: plain.step(torch.from_numpy(pixels)))}
    contenders |= {name: partial(several, training.step) for name, training in ours.items()}
    seconds = interleaved(contenders, rounds=arguments.rounds)
    images = arguments.steps * B
    rows = [row(name, s, images_per_second=images / sorted(s)[len(s) // 2]) for name, s in seconds.items()]
    ratios = {
        "fp32_vs_plain": faster_by("ours_fp32", "plain", seconds),
        "default_vs_plain": faster_by("ours_default", "plain", seconds),
    }
    tell("train-vqvae", rows, ratios, arguments, batch_size=B, default_precision=default)
