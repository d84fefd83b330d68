"""SIGTERM and Ctrl-C: exit code 75, one line, the state saved; the same command continues."""

import os
import signal
import subprocess
import sys
import time

import pytest


def _start(words, environment):
    command = [sys.executable, "-m", "vq_prior", *map(str, words)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _wait_for(path, process):
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_training_stops_at_a_step_and_continues(tmp_path, child_environment, number, processes):
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000, "--log-every", 5]
    several = ["--num-processes", processes] if processes > 1 else []
    process = _start([*words, *several], child_environment())
    _wait_for(tmp_path / "run" / "vqvae-training" / "metrics.jsonl", process)
    # A terminal sends Ctrl-C to every process of the group, a scheduler its signal to the one it started.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.startswith("error: stopped after step ")
    assert errors.count("\n") == 1
    (checkpoint,) = (tmp_path / "run" / "vqvae-training" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    again = _start(words, child_environment())
    line = ""
    while again.poll() is None and "continuing" not in line:
        line = again.stdout.readline()
    again.kill()
    again.communicate()
    assert f"continuing from step {step}" in line


def test_a_stop_before_the_first_step_is_one_line_too(tmp_path, child_environment):
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000]
    process = _start(words, child_environment())
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.startswith("error: stopped")
    assert errors.count("\n") == 1
