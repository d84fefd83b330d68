"""A kill, a full disk or a broken one at any system call of the last save and of the finished component.

A training is stopped just before its last checkpoint. strace is attached to it and makes one call of one kind fail; the
calls are those that a training which meets no fault was seen to make.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from warm import Warm

from vq_prior.core.disk.checkpoints import latest_checkpoint
from vq_prior.judge.fingerprint import fingerprint
from vq_prior.judge.verify import verify

CALLS = "write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,chmod"
WRITES = ("write", "pwrite64", "fsync", "fdatasync")
STEPS = 4

TRAINING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from trainings import train
from vq_prior.cli import main
from vq_prior.core.disk import checkpoints
import stage1_vqvae.run, stage2_prior.run
stage, out, codes, gate = sys.argv[1], *map(Path, sys.argv[2:5])
save = checkpoints.save_checkpoint

def waiting(folder, checkpoint, **how):
    if checkpoint.step == 4 and gate.is_dir():
        (gate / "here").touch()
        while not (gate / "go").exists():
            time.sleep(0.005)
    return save(folder, checkpoint, **how)

stage1_vqvae.run.save_checkpoint = stage2_prior.run.save_checkpoint = waiting
import vq_prior.cli.commands
vq_prior.cli.commands.verify = lambda _: train(stage, out, codes, steps=4, checkpoint_every=2)
sys.exit(main(["verify", str(out)]))
"""


def traced(warm: Warm, stage: str, out: Path, codes: Path, *how: str) -> tuple[int, str, str]:
    """Train under strace from the last save on; return exit code, what stderr got, and the log of strace."""
    with tempfile.TemporaryDirectory() as gate, tempfile.TemporaryFile("w+") as err, open(os.devnull, "w") as nothing:
        arguments = [stage, out, codes, gate, Path(__file__).parent]
        running = warm.start(TRAINING, stdout=nothing.fileno(), stderr=err.fileno(), arguments=arguments)
        deadline = time.monotonic() + 60
        while not (Path(gate) / "here").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        log = Path(gate) / "log"
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(running.pid), "-o", str(log), "-e", f"trace={CALLS}", *how],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if "attached" not in said:
            running.kill()
            tracer.wait()
            pytest.skip(f"strace cannot attach here: {said.strip()}")
        (Path(gate) / "go").touch()
        code = running.wait(60)
        tracer.wait(30)
        err.seek(0)
        return code, err.read(), log.read_text()


@pytest.fixture(scope="module")
def whole(warm, tiny_run, tmp_path_factory):
    """The fingerprint of a training of each stage without faults, and the calls that it makes from its last save on."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    found = {}
    for stage in ("codec", "prior"):
        out = tmp_path_factory.mktemp("whole") / "run"
        code, errors, log = traced(warm, stage, out, tiny_run / "codes")
        assert code == 0, errors
        count: dict[str, int] = {}
        calls = []
        for name in re.findall(r"^\d+ +(\w+)\(", log, re.M):
            count[name] = count.get(name, 0) + 1
            calls.append((name, count[name]))
        assert len(calls) > 30, log
        found[stage] = fingerprint(out), calls
    return found


def check_state(out: Path) -> None:
    """Expect every visible artefact whole, and a checkpoint to go on from."""
    training = next(out.glob("*-training"))
    checkpoint, passed_over = latest_checkpoint(training / "checkpoints")
    assert passed_over == []
    assert checkpoint is not None
    assert checkpoint.step in (STEPS - 2, STEPS)
    assert verify(out)


@pytest.mark.fault("F2", "F7", "F8", "R3")
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC", "error=EIO"])
@pytest.mark.parametrize("stage", ["codec", "prior"])
def test_a_call_that_fails_leaves_the_old_or_the_new(stage, fault, whole, warm, tiny_run, tmp_path, faults):
    expected, calls = whole[stage]
    chosen = calls if faults.full else faults.rng.sample(calls, 3)
    for name, number in chosen:
        out = tmp_path / f"{name}-{number}"
        inject = f"inject={name}:{fault}:when={number}"
        code, errors, log = traced(warm, stage, out, tiny_run / "codes", "-e", inject)
        told = (stage, inject, code, errors)
        if fault == "signal=KILL":
            assert code == -signal.SIGKILL, told
        else:
            assert "(INJECTED)" in log, told
            assert code == 5 or (code == 0 and name not in WRITES), told
            lines = [line for line in errors.splitlines() if line.strip()]
            assert len(lines) == (code == 5), told
            assert all(line.startswith("error: ") for line in lines), told
        check_state(out)
        done = warm.run(TRAINING, arguments=[stage, out, tiny_run / "codes", "/none", Path(__file__).parent])
        assert done.returncode == 0, (told, done.stderr)
        assert fingerprint(out) == expected, told
        shutil.rmtree(out)
    faults.planted(len(chosen))
