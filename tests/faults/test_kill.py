"""SIGKILL at random moments, then the same command again: the result of an uninterrupted run, bit for bit."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SEED = int(os.environ.get("VQ_PRIOR_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLS = int(os.environ.get("VQ_PRIOR_KILLS", "3"))


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _command(words) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vq_prior", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _run(words) -> float:
    started = time.monotonic()
    process = _command(words)
    assert process.wait() == 0, process.stderr.read()
    return time.monotonic() - started


def _run_with_kills(words, out: Path, seconds: float, rng: random.Random, wanted: int = KILLS) -> None:
    """Run a command to its end through `wanted` kills at random moments after the imports, one at least.

    `seconds` is how long the command takes undisturbed; about half of it goes into imports.
    """
    kills = 0
    while True:
        process = _command([*words, out])
        if kills < wanted:
            time.sleep(rng.uniform(0.4, 0.95) * seconds)
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        if code == 0 and kills:
            print(f"{kills} kills")
            return
        if code == 0:  # faster than its killer
            shutil.rmtree(out)
        else:
            assert code == -signal.SIGKILL, process.stderr.read()
            kills += 1


@pytest.fixture(scope="module")
def rng():
    print(f"VQ_PRIOR_FAULT_SEED={SEED}")
    return random.Random(SEED)


def test_training_a_codec(tmp_path, rng):
    words = ["train-vqvae", "--data", "digits", "--steps", 200, "--batch-size", 32, "--checkpoint-every", 7, "--out"]
    seconds = _run([*words, tmp_path / "whole"])
    _run_with_kills(words, tmp_path / "killed", seconds, rng)
    assert _digests(tmp_path / "killed" / "vqvae") == _digests(tmp_path / "whole" / "vqvae")


def test_training_a_prior(tmp_path, rng, tiny_run):
    words = ["train-prior", "--codes", tiny_run / "codes", "--steps", 60, "--batch-size", 32]
    words += ["--checkpoint-every", 7, "--out"]
    seconds = _run([*words, tmp_path / "whole"])
    _run_with_kills(words, tmp_path / "killed", seconds, rng)
    assert _digests(tmp_path / "killed" / "prior") == _digests(tmp_path / "whole" / "prior")


def test_fine_tuning_a_prior(tmp_path, rng, tiny_model, tiny_run):
    words = ["train-prior", "--from", tiny_model, "--lora", "--codes", tiny_run / "codes", "--steps", 60]
    words += ["--batch-size", 32, "--checkpoint-every", 7, "--out"]
    seconds = _run([*words, tmp_path / "whole"])
    _run_with_kills(words, tmp_path / "killed", seconds, rng, wanted=min(KILLS, 1))
    assert _digests(tmp_path / "killed" / "prior") == _digests(tmp_path / "whole" / "prior")


def test_dumping_codes(tmp_path, rng, tiny_run, many_digits):
    words = ["extract-codes", "--codec", tiny_run / "vqvae", "--data", many_digits, "--out"]
    seconds = _run([*words, tmp_path / "whole"])
    _run_with_kills(words, tmp_path / "killed", seconds, rng)
    assert _digests(tmp_path / "killed") == _digests(tmp_path / "whole")


def test_generating(tmp_path, rng, tiny_run):
    words = ["generate", "--model", tiny_run / "model", "--num-images", 600, "--batch-size", 8, "--out"]
    seconds = _run([*words, tmp_path / "whole"])
    _run_with_kills(words, tmp_path / "killed", seconds, rng)
    assert _digests(tmp_path / "killed") == _digests(tmp_path / "whole")
    assert len(_digests(tmp_path / "whole")) == 602
