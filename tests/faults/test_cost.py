"""What safety costs: little time at the default intervals, and none to find the place in a large epoch."""

import time
from importlib import import_module
from statistics import median

import pytest

from vq_prior.cli import main
from vq_prior.core.training import randomness
from vq_prior.core.training.runs import RunLog

ROUNDS = 8


@pytest.mark.fault("R16")
def test_a_training_finds_its_place_in_an_epoch_of_a_million_images_at_once():
    randomness._epoch_order.cache_clear()
    started = time.monotonic()
    rows = randomness.batch_rows(1_000_000, 256, 0, 2_000)
    assert time.monotonic() - started < 1.0
    assert len(set(rows.tolist())) == 256


SAFEGUARDS = {
    "stage1_vqvae.run": ("save_checkpoint", "require_same_everywhere"),
    "stage2_prior.train": ("save",),
}


@pytest.mark.fault("R16")
@pytest.mark.parametrize("name", ["train-vqvae", "train-prior"])
def test_what_keeps_a_training_safe_costs_little(name, tiny_run, tmp_path, monkeypatch, faults):
    """Trainings at default intervals, by turns with and without saving, comparing and printing.

    The least of each is compared: what else a machine does only adds, and more than the 3% that are looked for.
    """
    if not faults.full:
        pytest.skip("a measurement, for a machine that does nothing else")
    words = {
        "train-vqvae": ["train-vqvae", "--data", "digits", "--steps", "500", "--batch-size", "256"],
        "train-prior": ["train-prior", "--codes", str(tiny_run / "codes"), "--steps", "500", "--batch-size", "128"],
    }[name]

    def seconds(folder: str) -> float:
        started = time.perf_counter()
        assert main([*words, "--out", str(tmp_path / folder)]) == 0
        return time.perf_counter() - started

    def without_safeguards(folder: str) -> float:
        with monkeypatch.context() as patch:
            for module, functions in SAFEGUARDS.items():
                for function in functions:
                    patch.setattr(import_module(module), function, lambda *_: None)
            patch.setattr(RunLog, "show", lambda *_: None)
            return seconds(folder)

    with_it, without = [], []
    for number in range(ROUNDS):
        pair = [(with_it, seconds, f"with {number}"), (without, without_safeguards, f"without {number}")]
        for taken, run, folder in pair[:: 1 - 2 * (number % 2)]:
            taken.append(run(folder))
    ratio = min(with_it) / min(without)
    faults.figure(
        f"{name} {ratio:.3f} (least {min(with_it):.1f} s and {min(without):.1f} s, "
        f"medians {median(with_it):.1f} s and {median(without):.1f} s)"
    )
    assert ratio <= 1.03
    faults.planted(ROUNDS)
