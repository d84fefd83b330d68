"""Settings: what is refused, and what is chosen when a value is left out."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stage1_vqvae.modalities.pictures.settings import parse_size
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import (
    LossSettings,
    ModelSettings,
    Reconstruct,
    TrainVQVAE,
    check,
    grid_of,
    resolve,
)
from vq_prior.core.errors import UsageError
from vq_prior.core.modality import Facts

GIVEN = TrainVQVAE("digits", Path("does-not-exist"))
FACTS = Facts(num_train=50_000, common_shape=(32, 32), short_side=32, channels=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -5}, "--steps must be at least 1, got -5"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be between 1"),
        ({"learning_rate": float("nan")}, "--learning-rate must be .* got nan"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"seed": -1}, "--seed must be between 0"),
        ({"image_size": "48x"}, "--image-size must be .* got 48x"),
        ({"image_size": "2"}, "--image-size"),
        ({"num_workers": 0}, "--num-workers"),
        ({"checkpoint_every": 0}, "--checkpoint-every"),
        ({"adam_betas": (0.9, 1.0)}, "--adam-betas"),
        ({"average_decay": 1.0}, "--average-decay"),
        ({"decay_fraction": 1.5}, "--decay-fraction"),
        ({"max_gradient_norm": 0.0}, "--max-gradient-norm"),
        ({"model": ModelSettings(downsampling=34)}, "--model.downsampling must be .* prime factor above 13.* got 34"),
        ({"model": ModelSettings(downsampling=(1, 1))}, "--model.downsampling must be"),
        ({"model": ModelSettings(downsampling=1)}, "--model.downsampling must be"),
        ({"model": ModelSettings(width=20)}, "--model.width must be a multiple of 8"),
        ({"model": ModelSettings(width=48, attention=True)}, "--model.width must be a multiple of 32 with .* got 48"),
        ({"model": ModelSettings(blocks_per_resolution=-1)}, "--model.blocks-per-resolution must be between 0"),
        ({"model": ModelSettings(network="sonnet", attention=True)}, "--model.network sonnet has neither"),
        ({"model": ModelSettings(network="sonnet", blocks_per_resolution=1)}, "--model.network sonnet has neither"),
        ({"quantizer": QuantizerSettings(num_codes=1)}, "--quantizer.num-codes"),
        ({"quantizer": QuantizerSettings(decay=float("inf"))}, "--quantizer.decay"),
        ({"loss": LossSettings(commitment_weight=-0.1)}, "--loss.commitment-weight"),
        ({"data": ""}, "--data"),
        ({"out": Path(__file__)}, "--out must be a folder"),
    ],
)
def test_value_out_of_range_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(replace(GIVEN, **changes))


def test_defaults_and_num_images_pass_and_fail() -> None:
    check(GIVEN)
    with pytest.raises(UsageError, match="--num-images"):
        check(Reconstruct("a", "b", Path("does-not-exist"), num_images=0))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((8, 8), (4, 4)),
        ((28, 28), (7, 7)),
        ((32, 32), (8, 8)),
        ((48, 40), (6, 5)),
        ((33, 33), (5, 5)),
        ((64, 64), (16, 16)),
        ((256, 256), (16, 16)),
        ((64, 48), (16, 12)),
        ((128, 96), (16, 12)),
    ],
)
def test_grid_is_at_most_8_up_to_48_pixels_and_16_above(size: tuple[int, int], grid: tuple[int, int]) -> None:
    resolved = resolve(GIVEN, replace(FACTS, common_shape=size, short_side=min(size)), "cuda")
    assert resolved.model.downsampling is not None
    assert grid_of(parse_size(resolved.image_size or ""), resolved.model.downsampling) == grid


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((32, 256), (8, 64)),
        ((256, 32), (64, 8)),
        ((32, 400), (8, 100)),
        ((16, 256), (8, 128)),
        ((64, 128), (16, 32)),
        ((256, 1024), (16, 64)),
        ((32, 1024), (4, 128)),  # 8 x 256 would be more than 1024 codes
        ((4, 4096), (1, 1024)),
    ],
)
def test_grid_of_a_strip_follows_both_sides_and_the_area(size: tuple[int, int], grid: tuple[int, int]) -> None:
    resolved = resolve(replace(GIVEN, image_size=f"{size[0]}x{size[1]}"), FACTS, "cpu")
    assert resolved.model.downsampling is not None
    assert grid_of(size, resolved.model.downsampling) == grid


def test_what_is_given_stays_and_the_rest_is_concrete() -> None:
    given = replace(GIVEN, steps=7, model=ModelSettings(width=24), quantizer=QuantizerSettings(num_codes=99))
    resolved = resolve(given, FACTS, "cpu")
    assert (resolved.steps, resolved.model.width, resolved.quantizer.num_codes) == (7, 24, 99)
    assert resolve(resolved, replace(FACTS, num_train=2), "cuda") == resolved
    assert None not in (resolved.batch_size, resolved.learning_rate, resolved.model.channels)


def test_codebook_is_smaller_for_little_data() -> None:
    digits = Facts(num_train=1708, common_shape=(8, 8), short_side=8, channels=1)
    assert resolve(GIVEN, digits, "cpu").quantizer.num_codes == 128
    assert resolve(GIVEN, FACTS, "cpu").quantizer.num_codes == 512
    assert resolve(GIVEN, replace(digits, num_train=2), "cpu").quantizer.num_codes == 32
    few = replace(FACTS, num_train=950, common_shape=(48, 40), short_side=40)
    assert resolve(GIVEN, few, "cpu").quantizer.num_codes == 512


def test_few_images_are_augmented_unless_they_are_tiny_or_the_user_says_otherwise():
    few = replace(FACTS, num_train=950, common_shape=(48, 40), short_side=40)
    assert resolve(GIVEN, few, "cpu").augment is True
    assert resolve(GIVEN, FACTS, "cpu").augment is False
    assert resolve(GIVEN, replace(few, common_shape=(8, 8), short_side=8), "cpu").augment is False
    assert resolve(replace(GIVEN, augment=False), few, "cpu").augment is False


def test_photos_of_many_sizes_become_a_square() -> None:
    photos = replace(FACTS, common_shape=None, short_side=500)
    assert resolve(GIVEN, photos, "cuda").image_size == "256x256"
    assert resolve(GIVEN, photos, "cpu").image_size == "64x64"
    assert resolve(GIVEN, replace(photos, short_side=30), "cpu").image_size == "24x24"


def test_default_codec_costs_at_most_0_3_gflop_without_a_gpu() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from stage1_vqvae.train import new_codec

    model = new_codec(resolve(GIVEN, FACTS, "cpu"))
    with FlopCounterMode(display=False) as counter:
        output = model(torch.zeros(1, 3, 32, 32))
        output.images.sum().backward()
    assert counter.get_total_flops() <= 0.3e9


def test_bottleneck_left_alone_has_more_and_wider_branches_than_residual() -> None:
    for network, branch, blocks in (("residual", 32, 2), ("bottleneck", 64, 3)):
        model = resolve(replace(GIVEN, model=ModelSettings(network=network)), FACTS, "cpu").model
        assert (model.residual_width, model.num_residual_blocks) == (branch, blocks)
    none = ModelSettings(network="bottleneck", num_residual_blocks=0)
    assert resolve(replace(GIVEN, model=none), FACTS, "cpu").model.num_residual_blocks == 0


def test_our_network_of_the_cifar10_protocol_takes_no_more_multiplications_than_the_notebooks() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from stage1_vqvae.train import new_codec
    from vq_prior.cli.recipes import find_recipe

    costs = {}
    for name in ("cifar10-sonnet", "cifar10-residual"):
        recipe = replace(find_recipe("train-vqvae", name), data="cifar10", out=GIVEN.out)
        model = new_codec(resolve(recipe, FACTS, "cpu")).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
        costs[name] = counter.get_total_flops()
    assert costs["cifar10-residual"] <= costs["cifar10-sonnet"]


def test_codec_of_all_but_tiny_pictures_trains_in_bf16_and_by_muon_where_the_machine_computes_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from stage1_vqvae.train import train_vqvae
    from vq_prior.core.processes.runtime import has_native_bf16

    tiny = replace(GIVEN, dry_run=True, steps=1, batch_size=2, model=ModelSettings(width=8, num_residual_blocks=0))
    native, optimizer = ("bf16", "muon") if has_native_bf16("cpu") else ("fp32", "adamw")
    cases = (
        ({}, "24", native, optimizer),
        ({}, "16", "fp32", "adamw"),
        ({"precision": "fp32"}, "24", "fp32", "adamw"),
        ({"optimizer": "adamw"}, "24", native, "adamw"),
        ({"optimizer": "muon", "precision": "fp32"}, "16", "fp32", "muon"),
    )
    for given, size, precision, chosen in cases:
        train_vqvae(replace(tiny, **given, image_size=size))
        said = capsys.readouterr().out
        assert f", precision {precision}, 1 process" in said
        assert f'"precision": "{precision}"' in said
        assert f'"optimizer": "{chosen}"' in said


def test_settings_import_neither_torch_nor_transformers() -> None:
    code = "import sys, stage1_vqvae.settings; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
