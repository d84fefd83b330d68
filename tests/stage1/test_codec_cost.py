"""What is told of a training before its first step, and that telling it changes nothing."""

import re
from pathlib import Path

import pytest
import torch

from stage1_vqvae.plan import Cost, _Trial, measured_cost
from stage1_vqvae.settings import ModelSettings, TrainVQVAE, resolve
from stage1_vqvae.train import fitted_to_machine, new_codec, train_vqvae
from vq_prior.core.modality import Facts
from vq_prior.core.processes.runtime import start_runtime

FACTS = Facts(num_train=60, common_shape=(32, 32), short_side=32, channels=3)
SMALL = ModelSettings(width=16, num_residual_blocks=1)


def of(**changes: object) -> TrainVQVAE:
    settings = TrainVQVAE("digits", Path("none"), precision="fp32", image_size="32", model=SMALL, **changes)
    return fitted_to_machine(start_runtime("fp32"), resolve(settings, FACTS, "cpu"))[1]


def test_cost_in_words() -> None:
    assert Cost(0.25, 812 << 20).describe(2400) == (
        "memory about 812 MiB a process, estimated time 10.0 minutes (2400 x 250 ms)"
    )
    assert Cost(0.25, None).describe(240).startswith("memory unknown here, estimated time 1.0 minutes")


@pytest.mark.parametrize("name", ["ema", "gumbel", "fsq"])
def test_measuring_changes_neither_the_codec_nor_random_numbers(name: str) -> None:
    settings = of(batch_size=8)
    settings.quantizer.name = name  # type: ignore[assignment]
    settings = resolve(settings, FACTS, "cpu")
    runtime, model = start_runtime("fp32"), new_codec(settings)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    cost = measured_cost(settings, runtime, model)
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert 0 < cost.seconds < 60
    assert cost.memory_bytes is not None
    assert cost.memory_bytes > 50 << 20  # torch alone has more


def test_what_is_kept_between_the_passes_grows_with_the_rows() -> None:
    """So that a part of the rows tells it of all of them."""
    settings, runtime = of(batch_size=64), start_runtime("fp32")
    kept = {rows: _Trial(settings, runtime, new_codec(settings)).passes(rows)[1] for rows in (16, 32, 64)}
    assert kept[32] - kept[16] == pytest.approx((kept[64] - kept[32]) / 2, rel=0.01)
    assert kept[64] == pytest.approx(4 * kept[16], rel=0.1)


def test_more_rows_than_are_tried_take_more_memory_and_pieces_less() -> None:
    runtime, model = start_runtime("fp32"), new_codec(of())
    costs = [measured_cost(of(batch_size=size), runtime, model) for size in (256, 4096)]
    kept = _Trial(of(batch_size=256), runtime, new_codec(of())).passes(256)[1]
    first, second = (cost.memory_bytes or 0 for cost in costs)
    assert second - first == pytest.approx(15 * kept, rel=0.3)  # the peak so far is of the process, and grows
    pieces = measured_cost(of(batch_size=4096, gradient_accumulation_steps=16), runtime, model)
    assert (pieces.memory_bytes or 0) < first + kept
    assert costs[1].seconds > 4 * costs[0].seconds


def test_a_training_says_memory_and_time_before_its_first_step_and_not_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainVQVAE("digits", tmp_path / "run", steps=2, batch_size=4, model=SMALL, log_every=1)
    train_vqvae(settings)
    said = capsys.readouterr().out.splitlines()
    (place,) = (n for n, line in enumerate(said) if line.startswith("memory about "))
    assert re.fullmatch(r"memory about \d+ MiB a process, estimated time \d+\.\d minutes \(2 x \d+ ms\)", said[place])
    assert place < min(n for n, line in enumerate(said) if line.startswith(("step 1", "1/2", "wrote")))
    settings.steps = 3
    train_vqvae(settings)
    assert "memory about" not in capsys.readouterr().out
