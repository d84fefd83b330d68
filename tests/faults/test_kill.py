"""SIGKILL at random moments, then the same command again: the result of an uninterrupted run, bit for bit."""

import os
import signal
import time

import pytest
from processes import kill_all


@pytest.fixture
def survives_kills(survives, faults):
    """Kill a command, and all the processes that it started, so many times."""

    def kill(running, seconds):
        time.sleep(faults.rng.uniform(0.02, 0.6) * seconds)
        kill_all(running.pid)

    def has_ended(code, lines):
        assert code in (0, -signal.SIGKILL), lines
        return code == 0

    return lambda words, wanted, processes=1: survives(words, wanted, kill, has_ended, processes)


@pytest.mark.one_of("killed")
@pytest.mark.fault("F1", "R2")
def test_training_a_codec(survives_kills, faults):
    words = ["train-vqvae", "--data", "digits", "--steps", 80, "--batch-size", 32, "--checkpoint-every", 7]
    survives_kills(words, faults.number(3, 100))


@pytest.mark.one_of("killed")
@pytest.mark.fault("F1", "R2")
def test_training_a_prior(survives_kills, faults, tiny_run):
    words = ["train-prior", "--codes", tiny_run / "codes", "--steps", 40, "--batch-size", 32, "--checkpoint-every", 7]
    survives_kills(words, faults.number(3, 100))


@pytest.mark.one_of("killed")
@pytest.mark.fault("F1")
def test_fine_tuning_a_prior(survives_kills, faults, tiny_model, tiny_run):
    words = ["train-prior", "--from", tiny_model, "--lora", "--codes", tiny_run / "codes", "--steps", 30]
    survives_kills([*words, "--batch-size", 32, "--checkpoint-every", 7], faults.number(1, 20))


@pytest.mark.one_of("killed dump")
@pytest.mark.fault("F3", "R2", "R5")
@pytest.mark.parametrize("processes", [1, 2, 4] if os.environ.get("VQ_PRIOR_FAULTS") == "full" else [1, 2])
def test_dumping_codes(processes, survives_kills, faults, tiny_run, many_digits):
    words = ["extract-codes", "--codec", tiny_run / "vqvae", "--data", many_digits]
    survives_kills(words, faults.number(3 if processes == 1 else 1, 50), processes)


@pytest.mark.one_of("killed dump")
@pytest.mark.fault("F3", "F4", "R5")
def test_a_dump_goes_on_with_other_processes_batches_and_workers(
    warm, tmp_path, faults, tiny_run, many_digits, digests
):
    words = ["extract-codes", "--codec", tiny_run / "vqvae", "--data", many_digits]
    done = warm.run([*words, "--out", tmp_path / "whole"])
    assert done.returncode == 0, done.stderr
    whole = digests(tmp_path / "whole")

    def written(folder):
        """Return when each finished shard was written: one that is kept keeps it."""
        return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("shard-*")}

    for number in range(faults.number(1, 10)):
        out, store = tmp_path / str(number), tmp_path / f".{number}.partial" / "store"
        kept = {}
        first, second, last = [4, 1, 3] if faults.full else [2, 1, 1]
        for done, flags in enumerate((["--num-processes", first], ["--batch-size", 7, "--num-workers", second])):
            with open(os.devnull, "w") as nothing:
                running = warm.start([*words, *flags, "--out", out], stdout=nothing.fileno(), stderr=nothing.fileno())
                deadline = time.monotonic() + 60
                while len(list(store.rglob("shard-*"))) <= done and not out.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                kill_all(running.pid)
                running.wait()
            kept = written(store if store.exists() else out) | kept
        flags = ["--num-processes", last, "--batch-size", 100]
        done = warm.run([*words, *flags, "--out", out])
        assert done.returncode == 0, done.stderr
        assert digests(out) == whole
        assert kept
        assert kept.items() <= written(out).items()
    faults.planted(2 * faults.number(1, 10))


@pytest.mark.one_of("killed")
@pytest.mark.fault("F5", "R2")
def test_generating(survives_kills, faults, tiny_run):
    words = ["generate", "--model", tiny_run / "model", "--num-images", 300, "--batch-size", 8]
    survives_kills(words, faults.number(3, 50))
