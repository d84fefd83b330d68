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


CODEC_RECIPES.add("cifar10", cifar10_codec)
CODEC_RECIPES.add("cifar10-sonnet", cifar10_sonnet_codec)
CODEC_RECIPES.add("cifar10-residual", cifar10_residual_codec)
CODEC_RECIPES.add("grey28", grey28_codec)
PRIOR_RECIPES.add("cifar10", cifar10_prior)
PRIOR_RECIPES.add("grey28", grey28_prior)
RECIPES = {"train-vqvae": CODEC_RECIPES, "train-prior": PRIOR_RECIPES}


def find_recipe(command: str, name: str) -> Any:
    """Return the settings of a recipe; raises `UsageError` that lists what exists."""
    if command not in RECIPES:
        raise UsageError(f"{command} has no recipes; leave out --recipe")
    return RECIPES[command][name]()
