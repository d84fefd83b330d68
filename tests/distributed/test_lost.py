"""A process that is killed or stopped ends the run within half a minute, in one line, and leaves nobody behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from processes import children_of, kill_all, ranks_of

from vq_prior.core.processes.watchdog import PATIENCE, PERIOD

WITHIN = 30
FULL = os.environ.get("VQ_PRIOR_FAULTS") == "full"
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")


@contextmanager
def running(words, begun, folder, environment):
    """Start a command on two processes, wait until `begun()`, and leave nobody behind."""
    with (folder / "err").open("w") as err:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "vq_prior", *map(str, words), "--num-processes", "2"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while not (begun() and len(ranks_of(launcher.pid)) == 2):
            assert launcher.poll() is None, (folder / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield launcher
    finally:
        kill_all(launcher.pid)
        launcher.wait(30)


def training(folder):
    """The words of an endless training, and whether it has begun."""
    metrics = folder / "run" / "vqvae-training" / "metrics.jsonl"
    words = ["train-vqvae", "--data", "digits", "--out", folder / "run", "--steps", 100_000, "--log-every", 5]
    return words, lambda: metrics.exists() and metrics.stat().st_size


def command(name, folder, run, data):
    """The same of each command that several processes share, long enough to lose one."""
    if name == "train-vqvae":
        return training(folder)
    if name == "train-prior":
        metrics = folder / "run" / "prior-training" / "metrics.jsonl"
        words = ["train-prior", "--codes", run / "codes", "--out", folder / "run", "--steps", 100_000]
        return [*words, "--patience", "None"], lambda: metrics.exists() and metrics.stat().st_size
    if name == "extract-codes":
        words = ["extract-codes", "--codec", run, "--data", data, "--out", folder / "codes", "--batch-size", 1]
        return words, lambda: (folder / ".codes.partial").exists()
    words = ["generate", "--model", run / "model", "--num-images", 100_000, "--out", folder / "images"]
    return words, lambda: list(folder.glob(".images*/*.png")) or list(folder.glob("images/*.png"))


CASES = [("train-vqvae", signal.SIGKILL, "1"), ("train-vqvae", signal.SIGSTOP, "1"), ("generate", signal.SIGSTOP, "0")]
if FULL:
    COMMANDS = ("train-vqvae", "train-prior", "extract-codes", "generate")
    CASES = [(c, n, r) for c in COMMANDS for n in (signal.SIGKILL, signal.SIGSTOP) for r in "01"]


@pytest.mark.one_of("lost")
@pytest.mark.fault("F10", "R12")
@pytest.mark.parametrize(("name", "number", "rank"), CASES)
def test_a_lost_process_ends_the_run(name, number, rank, tmp_path, child_environment, tiny_run, many_digits, faults):
    longest = 0.0
    for turn in range(faults.number(1, 5)):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with running(*command(name, folder, tiny_run, many_digits), folder, child_environment()) as launcher:
            started, family = time.monotonic(), children_of(launcher.pid)
            os.kill(ranks_of(launcher.pid)[rank], number)
            assert launcher.wait(WITHIN + 10) == 5
            longest = max(longest, time.monotonic() - started)
        lines = [line for line in (folder / "err").read_text().splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert f"process {rank} " in lines[0]
        assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []
    assert longest < WITHIN
    print(f"at most {longest:.1f} s")
    faults.planted(faults.number(1, 5))


@pytest.mark.one_of("lost")
@pytest.mark.fault("F10", "R12")
def test_the_processes_of_a_lost_launcher_save_and_end(tmp_path, child_environment):
    with running(*training(tmp_path), tmp_path, child_environment()) as launcher:
        ranks = ranks_of(launcher.pid).values()
        launcher.kill()
        deadline = time.monotonic() + WITHIN
        while any(Path(f"/proc/{pid}").exists() for pid in ranks):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    (checkpoint,) = (tmp_path / "run" / "vqvae-training" / "checkpoints").iterdir()
    assert (checkpoint / "manifest.json").exists()


@pytest.mark.one_of("lost")
def test_a_run_that_was_paused_as_a_whole_goes_on(tmp_path, child_environment):
    words, begun = training(tmp_path)
    metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"
    with running(words, begun, tmp_path, child_environment()) as launcher:
        for number, seconds in ((signal.SIGSTOP, PATIENCE + 3), (signal.SIGCONT, 3 * PERIOD)):
            for pid in ranks_of(launcher.pid).values():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            before = metrics.stat().st_size
            time.sleep(seconds)
        assert launcher.poll() is None
        assert metrics.stat().st_size > before


GONE_ONCE_IT_HAS_SAID_WHERE_IT_IS = """
import os, socket, sys
import torch.distributed as dist

def hear_nobody():
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as each:
                if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    os.close(int(name))
        except OSError:  # no socket
            pass

class Farewell(dist.Store):
    def __init__(self):
        super().__init__()
        self.store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), world_size=2, is_master=False)

    def set(self, key, value):
        hear_nobody()
        self.store.set(f"default_pg/{key}", value)
        self.store.get(f"default_pg/{key}")  # it has arrived
        os._exit(0)

dist.init_process_group("gloo", store=Farewell(), rank=1, world_size=2)
"""


@pytest.mark.one_of("lost")
@pytest.mark.fault("F10", "R11", "R12")
def test_a_process_that_is_gone_when_another_joins_it_is_one_line(tmp_path, child_environment):
    """The library that connects them writes lines of its own. It connects from the lower address to the higher one: in
    half of the cases this process is to wait for the other, which its launcher would end."""
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", "5"]
    for _ in range(12):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "vq_prior", *map(str, words)],
            env=child_environment() | place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        gone = [sys.executable, "-c", GONE_ONCE_IT_HAS_SAID_WHERE_IT_IS, port]
        subprocess.run(gone, env=child_environment(), timeout=60, check=True)
        try:
            _, lines = process.communicate(timeout=10)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    assert process.returncode == 5, lines
    assert lines == "error: a process of this run was lost; run the same command to continue\n"
