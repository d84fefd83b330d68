"""A process that is killed or stopped ends the run within half a minute, in one line, and leaves nobody behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vq_prior.core.watchdog import PATIENCE, PERIOD

WITHIN = 30


def children_of(parent: int) -> list[int]:
    """The processes that a process started, ascending, of their own children, too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        pid, rest = int(text.split(" ", 1)[0]), text.rpartition(")")[2].split()
        if int(rest[1]) == parent and rest[0] != "Z":
            found += [pid, *children_of(pid)]
    return sorted(found)


def ranks_of(launcher: int) -> dict[str, int]:
    """The pid of each process of the run by its RANK."""
    ranks = {}
    for pid in children_of(launcher):
        try:
            entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks |= {entry[5:].decode(): pid for entry in entries if entry.startswith(b"RANK=")}
    return ranks


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGKILL, "1"), (signal.SIGSTOP, "1"), (signal.SIGSTOP, "0")])
def test_a_lost_process_ends_the_run(number, rank, tmp_path, child_environment):
    words = ["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), "--steps", "100000", "--log-every", "5"]
    with (tmp_path / "err").open("w") as err:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "vq_prior", *words, "--num-processes", "2"],
            env=child_environment(),
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
    metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.stat().st_size):
            assert launcher.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started, family = time.monotonic(), children_of(launcher.pid)
        os.kill(ranks_of(launcher.pid)[rank], number)
        assert launcher.wait(WITHIN + 10) == 5
        assert time.monotonic() - started < WITHIN
    finally:
        left = children_of(launcher.pid)
        launcher.kill()
        launcher.wait(30)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    lines = [line for line in (tmp_path / "err").read_text().splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert f"process {rank} " in lines[0]
    assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_a_run_that_was_paused_as_a_whole_goes_on(tmp_path, child_environment):
    words = ["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), "--steps", "100000", "--log-every", "5"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "vq_prior", *words, "--num-processes", "2"],
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.stat().st_size):
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ranks = ranks_of(launcher.pid).values()
        assert len(ranks) == 2
        for number, seconds in ((signal.SIGSTOP, PATIENCE + 3), (signal.SIGCONT, 3 * PERIOD)):
            for pid in ranks:
                os.kill(pid, number)
            before = metrics.stat().st_size
            time.sleep(seconds)
        assert launcher.poll() is None
        assert metrics.stat().st_size > before
    finally:
        left = children_of(launcher.pid)
        launcher.kill()
        launcher.wait(30)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
