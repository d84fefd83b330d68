"""SIGTERM and Ctrl-C: exit code 75, one line, the state saved; the same command continues."""

import os
import signal
import subprocess
import sys
import time

import pytest

MAX_SECONDS = 60


@pytest.fixture
def start(tmp_path, warm, child_environment):
    """Start a command and return its process and the files of its streams; with `anew`, as a new `python -m`."""

    def begin(name, words, anew):
        out, err = tmp_path / f"{name}.out", tmp_path / f"{name}.err"
        words = list(map(str, words))
        with out.open("w") as stdout, err.open("w") as stderr:
            if not anew:
                return warm.start(words, stdout=stdout.fileno(), stderr=stderr.fileno()), out, err
            command = [sys.executable, "-m", "vq_prior", *words]
            environment = child_environment()
            process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr, start_new_session=True)
            return process, out, err

    return begin


def _wait_until(condition):
    deadline = time.monotonic() + MAX_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_training_stops_at_a_step_and_continues(tmp_path, start, number, processes):
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000, "--log-every", 5]
    several = ["--num-processes", processes] if processes > 1 else []
    process, _, errors = start("first", [*words, *several], anew=processes > 1)
    metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"
    _wait_until(lambda: metrics.exists() and metrics.stat().st_size)
    # A terminal sends Ctrl-C to every process of the group, a scheduler its signal to the one it started.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(MAX_SECONDS) == 75, errors.read_text()
    assert errors.read_text().startswith("error: stopped after step ")
    assert errors.read_text().count("\n") == 1
    (checkpoint,) = (tmp_path / "run" / "vqvae-training" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    again, told, _ = start("again", words, anew=False)
    _wait_until(lambda: "continuing" in told.read_text())
    again.kill()
    assert again.wait(MAX_SECONDS) == -signal.SIGKILL
    assert f"continuing from step {step}" in told.read_text()


def test_a_stop_before_the_first_step_is_one_line_too(tmp_path, start):
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000]
    process, _, errors = start("early", words, anew=True)
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(MAX_SECONDS) == 75, errors.read_text()
    assert errors.read_text().startswith("error: stopped")
    assert errors.read_text().count("\n") == 1
