"""SIGKILL at random moments, then the same command again: the result of an uninterrupted run, bit for bit."""

import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from warm import Warm

SEED = int(os.environ.get("VQ_PRIOR_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLS = int(os.environ.get("VQ_PRIOR_KILLS", "3"))


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _run(warm: Warm, words) -> float:
    started = time.monotonic()
    done = warm.run(words)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started


def _run_with_kills(warm: Warm, rng: random.Random, words, out: Path, seconds: float, *, wanted: int = KILLS) -> None:
    """Run a command to its end through `wanted` kills at random moments of its work, one at least.

    `seconds` is how long the command takes undisturbed. Each kill leaves less to do: the last ones meet the end too.
    """
    kills = 0
    while True:
        with open(os.devnull, "w") as nothing, tempfile.TemporaryFile("w+") as errors:
            process = warm.start([*words, out], stdout=nothing.fileno(), stderr=errors.fileno())
            if kills < wanted:
                time.sleep(rng.uniform(0.02, 0.5) * seconds)
                process.kill()
            code = process.wait()
            errors.seek(0)
            assert code in (0, -signal.SIGKILL), errors.read()
        if code == 0 and kills:
            print(f"{kills} kills")
            return
        if code == 0:  # faster than its killer
            shutil.rmtree(out)
        else:
            kills += 1


@pytest.fixture(scope="module")
def run(warm):
    """Run a command and return how many seconds it took."""
    return partial(_run, warm)


@pytest.fixture(scope="module")
def run_with_kills(warm):
    """Run a command to its end through kills at random moments."""
    print(f"VQ_PRIOR_FAULT_SEED={SEED}")
    return partial(_run_with_kills, warm, random.Random(SEED))


def test_training_a_codec(tmp_path, run, run_with_kills):
    words = ["train-vqvae", "--data", "digits", "--steps", 80, "--batch-size", 32, "--checkpoint-every", 7, "--out"]
    seconds = run([*words, tmp_path / "whole"])
    run_with_kills(words, tmp_path / "killed", seconds)
    assert _digests(tmp_path / "killed" / "vqvae") == _digests(tmp_path / "whole" / "vqvae")


def test_training_a_prior(tmp_path, run, run_with_kills, tiny_run):
    words = ["train-prior", "--codes", tiny_run / "codes", "--steps", 40, "--batch-size", 32]
    words += ["--checkpoint-every", 7, "--out"]
    seconds = run([*words, tmp_path / "whole"])
    run_with_kills(words, tmp_path / "killed", seconds)
    assert _digests(tmp_path / "killed" / "prior") == _digests(tmp_path / "whole" / "prior")


def test_fine_tuning_a_prior(tmp_path, run, run_with_kills, tiny_model, tiny_run):
    words = ["train-prior", "--from", tiny_model, "--lora", "--codes", tiny_run / "codes", "--steps", 30]
    words += ["--batch-size", 32, "--checkpoint-every", 7, "--out"]
    seconds = run([*words, tmp_path / "whole"])
    run_with_kills(words, tmp_path / "killed", seconds, wanted=min(KILLS, 1))
    assert _digests(tmp_path / "killed" / "prior") == _digests(tmp_path / "whole" / "prior")


def test_dumping_codes(tmp_path, run, run_with_kills, tiny_run, many_digits):
    words = ["extract-codes", "--codec", tiny_run / "vqvae", "--data", many_digits, "--out"]
    seconds = run([*words, tmp_path / "whole"])
    run_with_kills(words, tmp_path / "killed", seconds)
    assert _digests(tmp_path / "killed") == _digests(tmp_path / "whole")


def test_generating(tmp_path, run, run_with_kills, tiny_run):
    words = ["generate", "--model", tiny_run / "model", "--num-images", 300, "--batch-size", 8, "--out"]
    seconds = run([*words, tmp_path / "whole"])
    run_with_kills(words, tmp_path / "killed", seconds)
    assert _digests(tmp_path / "killed") == _digests(tmp_path / "whole")
    assert len(_digests(tmp_path / "whole")) == 302
