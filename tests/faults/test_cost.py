"""What safety costs: little time at the default intervals, and none to find the place in a large epoch."""

import time
from importlib import import_module
from statistics import median

import pytest

from vq_prior.cli import main
from vq_prior.core import randomness
from vq_prior.core.runs import RunLog

ROUNDS = 5


@pytest.mark.fault("R16")
def test_a_training_finds_its_place_in_an_epoch_of_a_million_images_at_once():
    randomness._epoch_order.cache_clear()
    started = time.monotonic()
    rows = randomness.batch_rows(1_000_000, 256, 0, 2_000)
    assert time.monotonic() - started < 1.0
    assert len(set(rows.tolist())) == 256


SAFEGUARDS = {
    "stage1_vqvae.train": ("save_checkpoint", "require_same_everywhere"),
    "stage2_prior.train": ("save",),
}


@pytest.mark.fault("R16")
@pytest.mark.parametrize("name", ["train-vqvae", "train-prior"])
def test_what_keeps_a_training_safe_costs_little(name, tiny_run, tmp_path, monkeypatch, faults):
    """Pairs of trainings at default intervals, with and without saving, comparing and printing."""
    if not faults.full:
        pytest.skip("a measurement, for a machine that does nothing else")
    words = {
        "train-vqvae": ["train-vqvae", "--data", "digits", "--steps", "1000", "--batch-size", "256"],
        "train-prior": ["train-prior", "--codes", str(tiny_run / "codes"), "--steps", "1000", "--batch-size", "128"],
    }[name]

    def seconds(folder: str) -> float:
        started = time.perf_counter()
        assert main([*words, "--out", str(tmp_path / folder)]) == 0
        return time.perf_counter() - started

    with_it, without = [], []
    for number in range(ROUNDS):
        with_it.append(seconds(f"with {number}"))
        with monkeypatch.context() as patch:
            for module, functions in SAFEGUARDS.items():
                for function in functions:
                    patch.setattr(import_module(module), function, lambda *_: None)
            patch.setattr(RunLog, "show", lambda *_: None)
            without.append(seconds(f"without {number}"))
    ratio = median(one / other for one, other in zip(with_it, without, strict=True))
    faults.figure(f"{name} {ratio:.3f} ({median(with_it):.1f} s and {median(without):.1f} s)")
    assert ratio <= 1.03
    faults.planted(ROUNDS)
