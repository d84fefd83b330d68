"""SIGKILL at random moments, then the same command again: the result of an uninterrupted run, bit for bit."""

import hashlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from processes import kill_all

from vq_prior.fingerprint import fingerprint


def _digests(folder: Path) -> list[str]:
    """Every byte below a folder; of a RUN its fingerprint, for its log tells the time."""
    if any(folder.glob("*-training")):
        return fingerprint(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]


@pytest.fixture
def survives_kills(warm, tmp_path, faults):
    """Run a command to its end, then again and again through so many kills at random moments; compare each result."""

    def kill(words, wanted, processes=1):
        words = [*words, *(["--num-processes", processes] if processes > 1 else []), "--out"]
        started = time.monotonic()
        done = warm.run([*words, tmp_path / "whole"])
        assert done.returncode == 0, done.stderr
        seconds, whole = time.monotonic() - started, _digests(tmp_path / "whole")
        assert whole
        kills, ends, since = 0, 0, 0
        while kills < wanted or since:
            with open(os.devnull, "w") as nothing, tempfile.TemporaryFile("w+") as errors:
                running = warm.start([*words, tmp_path / "killed"], stdout=nothing.fileno(), stderr=errors.fileno())
                if kills < wanted:
                    time.sleep(faults.rng.uniform(0.02, 0.6) * seconds)
                    kill_all(running.pid)
                code = running.wait()
                errors.seek(0)
                assert code in (0, -signal.SIGKILL), errors.read()
            if code:
                kills, since = kills + 1, since + 1
                continue
            assert _digests(tmp_path / "killed") == whole, f"after {since} kills"
            shutil.rmtree(tmp_path / "killed")
            ends, since = ends + 1, 0
        print(f"{kills} kills on the way to {ends} ends")
        faults.planted(kills)

    return kill


@pytest.mark.fault("F1", "R2")
def test_training_a_codec(survives_kills, faults):
    words = ["train-vqvae", "--data", "digits", "--steps", 80, "--batch-size", 32, "--checkpoint-every", 7]
    survives_kills(words, faults.number(3, 100))


@pytest.mark.fault("F1", "R2")
def test_training_a_prior(survives_kills, faults, tiny_run):
    words = ["train-prior", "--codes", tiny_run / "codes", "--steps", 40, "--batch-size", 32, "--checkpoint-every", 7]
    survives_kills(words, faults.number(3, 100))


@pytest.mark.fault("F1")
def test_fine_tuning_a_prior(survives_kills, faults, tiny_model, tiny_run):
    words = ["train-prior", "--from", tiny_model, "--lora", "--codes", tiny_run / "codes", "--steps", 30]
    survives_kills([*words, "--batch-size", 32, "--checkpoint-every", 7], faults.number(1, 20))


@pytest.mark.fault("F3", "R2", "R5")
@pytest.mark.parametrize("processes", [1, 2, 4] if os.environ.get("VQ_PRIOR_FAULTS") == "full" else [1, 2])
def test_dumping_codes(processes, survives_kills, faults, tiny_run, many_digits):
    words = ["extract-codes", "--codec", tiny_run / "vqvae", "--data", many_digits]
    survives_kills(words, faults.number(3 if processes == 1 else 1, 50), processes)


@pytest.mark.fault("F4", "R5")
def test_a_dump_goes_on_with_other_processes_batches_and_workers(warm, tmp_path, faults, tiny_run, many_digits):
    words = ["extract-codes", "--codec", tiny_run / "vqvae", "--data", many_digits]
    done = warm.run([*words, "--out", tmp_path / "whole"])
    assert done.returncode == 0, done.stderr
    whole = _digests(tmp_path / "whole")
    for number in range(faults.number(1, 10)):
        out, store = tmp_path / str(number), tmp_path / f".{number}.partial" / "store"
        first, second, last = [4, 1, 3] if faults.full else [2, 1, 1]
        for done, flags in enumerate((["--num-processes", first], ["--batch-size", 7, "--num-workers", second])):
            with open(os.devnull, "w") as nothing:
                running = warm.start([*words, *flags, "--out", out], stdout=nothing.fileno(), stderr=nothing.fileno())
                deadline = time.monotonic() + 60
                while len(list(store.rglob("shard-*"))) <= done and not out.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                kill_all(running.pid)
                running.wait()
        flags = ["--num-processes", last, "--batch-size", 100]
        done = warm.run([*words, *flags, "--out", out])
        assert done.returncode == 0, done.stderr
        assert _digests(out) == whole
    faults.planted(2 * faults.number(1, 10))


@pytest.mark.fault("F5", "R2")
def test_generating(survives_kills, faults, tiny_run):
    words = ["generate", "--model", tiny_run / "model", "--num-images", 300, "--batch-size", 8]
    survives_kills(words, faults.number(3, 50))
