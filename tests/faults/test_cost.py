"""What safety costs: little time at the default intervals, and none to find the place in a large epoch."""

import time
from statistics import median

import pytest

from vq_prior.cli import main
from vq_prior.core import randomness

ROUNDS = 5


@pytest.mark.fault("R16")
def test_a_training_finds_its_place_in_an_epoch_of_a_million_images_at_once():
    randomness._epoch_order.cache_clear()
    started = time.monotonic()
    rows = randomness.batch_rows(1_000_000, 256, 0, 2_000)
    assert time.monotonic() - started < 1.0
    assert len(set(rows.tolist())) == 256


@pytest.mark.fault("R16")
def test_what_keeps_a_training_safe_costs_little(tmp_path, monkeypatch, faults):
    """Pairs of trainings at default intervals, with and without saving, comparing, agreeing and locking."""
    if not faults.full:
        pytest.skip("a measurement, for a machine that does nothing else")
    import stage1_vqvae.train as stage

    def seconds(name: str) -> float:
        started = time.perf_counter()
        words = ["train-vqvae", "--data", "digits", "--out", str(tmp_path / name), "--steps", "1000"]
        assert main([*words, "--batch-size", "256"]) == 0
        return time.perf_counter() - started

    with_it, without = [], []
    for number in range(ROUNDS):
        with_it.append(seconds(f"with {number}"))
        with monkeypatch.context() as patch:
            patch.setattr(stage, "save_checkpoint", lambda *_: None)
            patch.setattr(stage, "require_same_everywhere", lambda *_: None)
            patch.setattr(stage.RunLog, "show", lambda *_: None)
            without.append(seconds(f"without {number}"))
    ratio = median(one / other for one, other in zip(with_it, without, strict=True))
    print(f"with {median(with_it):.1f} s, without {median(without):.1f} s, ratio {ratio:.3f}")
    assert ratio <= 1.03
    faults.planted(ROUNDS)
