"""Named recipes: functions that return a command's settings, with their cost and measured result.

`vq-prior COMMAND --recipe NAME` starts from one; flags override it. What a recipe
leaves open (paths, and what follows from the data) is filled in as always. Costs and
results are those of docs/benchmarks.md: two CPU cores that compute in bfloat16.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tyro

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage2_prior.settings import PriorModel, TrainPrior
from vq_prior.core.errors import UsageError
from vq_prior.core.registry import Registry

Recipe = Callable[[], Any]
CODEC_RECIPES: Registry[Recipe] = Registry("recipe of train-vqvae")
PRIOR_RECIPES: Registry[Recipe] = Registry("recipe of train-prior")


def cifar10_codec() -> TrainVQVAE:
    """Return the codec for 32x32 colour pictures: 8x8 codes of 512, 455,187 parameters.

    Cost: 157 s for 3,000 steps. CIFAR-10, 2,500 held-out pictures: 25.70 dB, SSIM 0.861, every code used.
    """
    return TrainVQVAE(
        data=tyro.MISSING,
        out=tyro.MISSING,
        steps=3000,
        batch_size=64,
        learning_rate=1e-3,
        image_size="32x32",
        model=ModelSettings(channels=3, downsampling=4, width=128, residual_width=32),
        quantizer=QuantizerSettings(num_codes=512),
    )


def cifar10_sonnet_codec() -> TrainVQVAE:
    """Return the network of DeepMind's CIFAR-10 notebook, 662,723 parameters: 8x8 codes of 512, 64 numbers each.

    Network, codes, batch and steps are the notebook's; optimiser, quantiser and loss are ours. 43.5 million
    multiply-adds a picture.

    Cost: about 10 minutes of one core, in bf16. CIFAR-10, trained on the first 45,000 pictures, the last 5,000, three
    seeds: 25.22 dB of the mean error, every code used.
    """
    return TrainVQVAE(
        data=tyro.MISSING,
        out=tyro.MISSING,
        steps=10_000,
        batch_size=32,
        learning_rate=2e-3,
        optimizer="muon",
        image_size="32x32",
        model=ModelSettings(channels=3, downsampling=4, width=128, residual_width=32, network="sonnet"),
        quantizer=QuantizerSettings(num_codes=512, code_dim=64),
    )


def cifar10_residual_codec() -> TrainVQVAE:
    """Return the same as `cifar10-sonnet` with our bottleneck network of no more multiply-adds, 41.7 million a picture.

    Cost: about 11 minutes of one core, in bf16. CIFAR-10, as `cifar10-sonnet`: 25.63 dB of the mean error.
    """
    sonnet = cifar10_sonnet_codec()
    model = replace(sonnet.model, network="bottleneck", residual_width=64, num_residual_blocks=4)
    return replace(sonnet, learning_rate=4e-3, model=model, quantizer=replace(sonnet.quantizer, decay=0.97))


def grey28_codec() -> TrainVQVAE:
    """Return the codec for 28x28 grey pictures: 7x7 codes of 512, 451,089 parameters.

    Cost: 72 s for 1,500 steps. Distorted digits, 600 held-out pictures: 32.4 dB, SSIM 0.986, every code used.
    """
    cifar10 = cifar10_codec()
    return replace(cifar10, steps=1500, image_size="28x28", model=replace(cifar10.model, channels=1))


def cifar10_prior() -> TrainPrior:
    """Return the prior over 64 codes of 512 with ten classes: five layers of width 128.

    Cost: 655 s for 3,000 steps on an older CPU. Codes of an AdamW codec of CIFAR-10: 4.639 held-out nats per token
    (previous-token baseline 5.354).
    """
    return TrainPrior(
        out=tyro.MISSING,
        steps=3000,
        batch_size=32,
        optimizer="adamw",
        learning_rate=3e-3,
        token_dropout=0.05,
        model=PriorModel(num_layers=5, hidden_size=128, num_heads=4),
    )


def grey28_prior() -> TrainPrior:
    """Return the prior over 49 codes of 512 with ten classes: five layers of width 128.

    Cost: about 320 s for 2,000 steps on an older CPU. Codes of an AdamW codec of distorted digits: 2.699 held-out
    nats per token (previous-token baseline 4.157); a classifier of real pictures names 97.7% of the samples rightly.
    """
    return replace(cifar10_prior(), steps=2000, token_dropout=0.1)


def pictures64_codec() -> TrainVQVAE:
    """Return the codec for 64x64 pictures: 16x16 codes of 1,024, in time for two CPU cores.

    No attention, which measured worse at equal seconds (32 px: docs/log/2026-11-22-codec-network.md). Cost: about 1 s a
    step of one busy core in bf16, 731 MiB. Clipart with `--alpha keep`, 152 held-out pictures: 19.62 dB of colour over
    white and alpha after 200 steps; the whole of it is not measured.
    """
    return TrainVQVAE(
        data=tyro.MISSING,
        out=tyro.MISSING,
        steps=4000,
        batch_size=32,
        learning_rate=2e-3,
        image_size="64x64",
        model=ModelSettings(downsampling=4, width=128, residual_width=64, num_residual_blocks=4, network="bottleneck"),
        quantizer=QuantizerSettings(num_codes=1024),
    )


def pictures128_codec() -> TrainVQVAE:
    """Return the codec for 128x128 pictures, for a GPU: two levels of 16x16 codes of 1,024, with attention.

    A code stands for 8x8 pixels, which one of 1,024 says too little of: a second one says what the first leaves over.

    Cost: 16 images in 4.9 s of one busy CPU core in bf16, 1.0 GiB. Not measured: its time on a GPU, and what it keeps.
    """
    small = pictures64_codec()
    model = replace(small.model, downsampling=8, width=256, residual_width=128, attention=True)
    return replace(
        small,
        steps=30_000,
        batch_size=64,
        learning_rate=1e-3,
        image_size="128x128",
        model=replace(model, blocks_per_resolution=1),
        quantizer=QuantizerSettings(num_codes=1024, depth=2),
    )


def pictures256_codec() -> TrainVQVAE:
    """Return the codec for 256x256 pictures, for a GPU: two levels of 16x16 codes of 4,096, with attention.

    Cost: 16 images in 10.3 s of one busy CPU core in bf16, 1.5 GiB. Not measured: its time on a GPU, and what it keeps.
    """
    middle = pictures128_codec()
    return replace(
        middle,
        steps=60_000,
        batch_size=32,
        image_size="256x256",
        model=replace(middle.model, downsampling=16),
        quantizer=QuantizerSettings(num_codes=4096, depth=2),
    )


def pictures64_prior() -> TrainPrior:
    """Return the prior over 256 codes of 1,024, in time for two CPU cores: six layers of width 192.

    Not measured: neither time nor nats. Memory and time are said before the first step.
    """
    return TrainPrior(
        out=tyro.MISSING,
        steps=4000,
        batch_size=32,
        model=PriorModel(num_layers=6, hidden_size=192, num_heads=6),
    )


def pictures128_prior() -> TrainPrior:
    """Return the prior over two levels of 256 codes, for a GPU: nine layers over cells and three over depth, width 512.

    Not measured, since no GPU was at hand. Memory and time are said before the first step.
    """
    return TrainPrior(
        out=tyro.MISSING,
        steps=30_000,
        batch_size=128,
        model=PriorModel(num_layers=12, hidden_size=512, num_heads=8, depth_blocks=3),
    )


def pictures256_prior() -> TrainPrior:
    """Return `pictures128` with width 768 and twice the steps, for codes of `pictures256`, of which there are 4,096.

    Not measured, since no GPU was at hand. Memory and time are said before the first step.
    """
    middle = pictures128_prior()
    return replace(middle, steps=60_000, model=replace(middle.model, hidden_size=768, num_heads=12))


CODEC_RECIPES.add("cifar10", cifar10_codec)
CODEC_RECIPES.add("cifar10-sonnet", cifar10_sonnet_codec)
CODEC_RECIPES.add("cifar10-residual", cifar10_residual_codec)
CODEC_RECIPES.add("grey28", grey28_codec)
CODEC_RECIPES.add("pictures64", pictures64_codec)
CODEC_RECIPES.add("pictures128", pictures128_codec)
CODEC_RECIPES.add("pictures256", pictures256_codec)
PRIOR_RECIPES.add("cifar10", cifar10_prior)
PRIOR_RECIPES.add("grey28", grey28_prior)
PRIOR_RECIPES.add("pictures64", pictures64_prior)
PRIOR_RECIPES.add("pictures128", pictures128_prior)
PRIOR_RECIPES.add("pictures256", pictures256_prior)
RECIPES = {"train-vqvae": CODEC_RECIPES, "train-prior": PRIOR_RECIPES}


def find_recipe(command: str, name: str) -> Any:
    """Return the settings of a recipe; raises `UsageError` that lists what exists."""
    if command not in RECIPES:
        raise UsageError(f"{command} has no recipes; leave out --recipe")
    return RECIPES[command][name]()
