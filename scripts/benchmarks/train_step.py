"""A training step of stage one on the network of the CIFAR-10 notebook, ours against plain PyTorch.

A step is all that the training loop does between two batches: gather rows from pixels in memory, make images of them,
forward, backward, clip, optimiser step, quantiser update, averages and counts. `plain` is baselines.py in float32;
`ours_fp32` does more in its step (clipping, averaged weights, use of codes, a schedule) in the same precision;
`ours_default` takes the precision that the command chooses on this machine, `ours_muon` the recipe's optimiser, too;
all others have AdamW, or Adam as the notebook. Pixels are noise: a step costs the same.

With `--default-at 64 256`: the step of the settings that `train-vqvae` chooses by itself for pictures of these sides,
too (`default_64`); nothing to compare with. On a GPU: `peak_mb` is its memory before the first step of the optimiser,
and `mfu` the share that the products and convolutions of forward and backward pass are of what the card is said to do
in dense bfloat16.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from timing import add_device_flag, device_of, faster_by, interleaved, row, tell

NUM_IMAGES = 5000
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # dense bfloat16, by the data sheets


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    add_device_flag(parser)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="steps of one contender in one round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--default-at", type=int, nargs="*", default=[], help="sides of pictures, such as 64 and 256")


def notebook_settings(batch_size: int, device_type: str) -> Any:
    """Return resolved settings of `train-vqvae` for the notebook's network, with AdamW."""
    from stage1_vqvae.settings import resolve
    from vq_prior.cli.recipes import find_recipe
    from vq_prior.core.modality import Facts

    recipe = replace(find_recipe("train-vqvae", "cifar10-sonnet"), data="noise", out=Path("nowhere"))
    recipe = replace(recipe, batch_size=batch_size, optimizer="adamw")
    return resolve(recipe, Facts(50_000, (32, 32), 32, 3), device_type)


def default_settings(side: int, device_type: str) -> Any:
    """Return the settings that `train-vqvae` chooses for many colour pictures of this side."""
    from stage1_vqvae.settings import TrainVQVAE, resolve
    from stage1_vqvae.train import fitted_to_machine
    from vq_prior.core.modality import Facts
    from vq_prior.core.processes.runtime import start_runtime

    given = TrainVQVAE(data="noise", out=Path("nowhere"), image_size=str(side))
    settings = resolve(given, Facts(50_000, (side, side), side, 3), device_type)
    return fitted_to_machine(start_runtime(None), settings)[1]


def default_precision(settings: Any) -> str:
    """Return the precision that `train-vqvae` chooses on this machine."""
    from stage1_vqvae.train import fitted_to_machine
    from vq_prior.core.processes.runtime import start_runtime

    return fitted_to_machine(start_runtime(None), settings)[1].precision


class OurTraining:
    """The step of `stage1_vqvae.train`, on one process."""

    def __init__(self, settings: Any, precision: Any, pixels: Any) -> None:
        import torch

        from stage1_vqvae.run import prepare
        from stage1_vqvae.train import _stored, new_codec, start_codebook
        from vq_prior.core.processes.runtime import start_runtime

        s = self.settings = replace(settings, precision=precision)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self.runtime = start_runtime(precision)
        self.run = prepare(s, self.runtime, new_codec(s), pixels, pixels)
        start_codebook(self.run)
        self.next_rows = _stored(self.run, 0)
        # Making graphs of the networks runs them once, forward and backward; what a replay uses is not told.
        self.peak_mb = torch.cuda.max_memory_allocated() / 1e6 if self.runtime.device.type == "cuda" else None

    def step(self) -> None:
        """Take one step."""
        import torch

        from stage1_vqvae.train import _stored, passes, set_rates, update

        run = self.run
        images = run.train.to_values(self.next_rows, self.runtime.device)
        rate = set_rates(run)
        numbers, total, norm = passes(run, images)
        self.next_rows = _stored(run, run.step + 1)
        assert torch.isfinite(total) & torch.isfinite(norm)
        run.window.add(numbers)
        update(run, rate)

    def flops(self, num_images: int = 8) -> float:
        """Return the floating-point operations of products and convolutions, forward and backward, for an image."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from stage1_vqvae.losses import weighted_sum
        from stage1_vqvae.train import losses, new_codec

        model = new_codec(self.settings).to(self.runtime.device).train()  # what is replayed cannot be counted
        images = torch.zeros(num_images, model.spec.channels, *model.spec.shape, device=self.runtime.device)
        plain = replace(self.run, model=model, module=model)
        with FlopCounterMode(display=False) as counter:
            weighted_sum(losses(plain, images)[0], plain.weights).backward()
        return counter.get_total_flops() / num_images


def noise(side: int, num_images: int = NUM_IMAGES) -> Any:
    """Return pictures in memory, as a run keeps them."""
    import numpy as np

    from stage1_vqvae.data.loading import LoadedRows
    from stage1_vqvae.data.rows import ArrayRows
    from stage1_vqvae.modalities.pictures import PICTURES
    from stage1_vqvae.modalities.pictures.values import Transform

    pixels = np.random.default_rng(0).integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)
    return LoadedRows(ArrayRows(pixels, "noise"), PICTURES, Transform(side, side, 3), cache=pixels)


def told(training: OurTraining, seconds: list[float], images: int, device: Any) -> dict[str, Any]:
    """Return what a row says beside its seconds; on a GPU also memory and the use of the card."""
    import torch

    rate = images / median(seconds)
    if device.type != "cuda":
        return {"images_per_second": rate}
    flops = training.flops()
    more = {"images_per_second": rate, "peak_mb": training.peak_mb, "gflops_an_image": flops / 1e9}
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    return more | ({"mfu": rate * flops / peak} if peak else {})


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    import os

    device = device_of(arguments)
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    rows, seconds, default = compared(arguments, device)
    for side in arguments.default_at:
        settings = default_settings(side, device.type)
        training = OurTraining(settings, settings.precision, noise(side, 2 * settings.batch_size))
        name, images = f"default_{side}", arguments.steps * settings.batch_size

        def several(training: OurTraining = training) -> None:
            for _ in range(arguments.steps):
                training.step()

        measured = interleaved({name: several}, rounds=arguments.rounds)[name]
        more = told(training, measured, images, device)
        rows.append(row(name, measured, batch_size=settings.batch_size, precision=settings.precision, **more))
    ratios = {
        "fp32_vs_plain": faster_by("ours_fp32", "plain", seconds),
        "default_vs_plain": faster_by("ours_default", "plain", seconds),
        "muon_vs_plain": faster_by("ours_muon", "plain", seconds),
    }
    more = {"batch_size": arguments.batch_size, "default_precision": default, "device": device.type}
    tell("train-vqvae", rows, ratios, arguments, **more)


def compared(arguments: argparse.Namespace, device: Any) -> tuple[list[dict[str, Any]], dict[str, list[float]], str]:
    """Return rows and seconds of ours and plain on the notebook's network, and our default precision."""
    import torch
    from baselines import PlainTraining

    from vq_prior.core.training.randomness import batch_rows

    B, settings, pictures = arguments.batch_size, notebook_settings(arguments.batch_size, device.type), noise(32)
    plain, default = PlainTraining(device), default_precision(settings)
    ours = {
        "ours_fp32": OurTraining(settings, "fp32", pictures),
        "ours_default": OurTraining(settings, default, pictures),
    }
    ours["ours_muon"] = OurTraining(replace(settings, optimizer="muon"), default, pictures)

    def plain_step(number: int) -> None:
        plain.step(torch.from_numpy(pictures.stored(batch_rows(NUM_IMAGES, B, 0, number))))

    def several(step: Callable[[int], object]) -> None:
        for number in range(arguments.steps):
            step(number)

    contenders = {"plain": partial(several, plain_step)}
    contenders |= {name: partial(several, lambda _, training=each: training.step()) for name, each in ours.items()}
    seconds = interleaved(contenders, rounds=arguments.rounds)
    images = arguments.steps * B
    rows = [row("plain", seconds["plain"], images_per_second=images / median(seconds["plain"]))]
    rows += [row(name, seconds[name], **told(each, seconds[name], images, device)) for name, each in ours.items()]
    return rows, seconds, default
