"""Two runs in one folder: the second is refused and names the first; what a killed one leaves is not in the way."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vq_prior.cli import main
from vq_prior.core.disk.locks import claim, release_claims
from vq_prior.core.errors import EnvironmentFault


def commands(run: Path, data: Path, out: Path) -> dict[str, tuple[list[str], Path]]:
    """Each command that writes a folder for a while, and the lock beside what it writes."""
    model, codes = str(run / "model"), str(run / "codes")
    train = ["--batch-size", "8", "--checkpoint-every", "100000"]
    return {
        "train-vqvae": (["--data", "digits", "--out", str(out), "--steps", "100000", *train], out / "vqvae-training"),
        "train-prior": (["--codes", codes, "--out", str(out), "--steps", "100000", *train], out / "prior-training"),
        "extract-codes": (["--codec", str(run / "vqvae"), "--data", str(data), "--out", str(out)], out),
        "generate": (["--model", model, "--num-images", "100000", "--batch-size", "4", "--out", str(out)], out),
    }


@pytest.mark.one_of
@pytest.mark.parametrize("name", ["train-vqvae", "train-prior", "extract-codes", "generate"])
@pytest.mark.fault("F28")
def test_a_second_run_is_refused_and_a_killed_one_is_not_in_the_way(
    name, tiny_run, many_digits, tmp_path, child_environment, capsys
):
    words, folder = commands(tiny_run, many_digits, tmp_path / "out")[name]
    lock = folder.with_name(f".{folder.name}.lock")
    first = subprocess.Popen(
        [sys.executable, "-m", "vq_prior", name, *words],
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (lock.is_file() and lock.read_text()):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)  # the dump would end too soon; one that sleeps holds its folder as well
        assert main([name, *words]) == 5
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert f"process {first.pid} on {socket.gethostname()}" in lines[0]
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    claim(folder)  # the lock went with its holder, though its file did not
    assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    release_claims()
    assert not lock.exists()


@pytest.mark.fault("F28")
def test_claims_of_one_process_do_not_stand_in_its_own_way(tmp_path):
    claim(tmp_path / "a")
    claim(tmp_path / "a")
    claim(tmp_path / "b")
    code = "import sys; from pathlib import Path; from vq_prior.core.disk.locks import claim, releasing\n"
    code += f"releasing(claim)(Path({str(tmp_path / 'a')!r}))"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert EnvironmentFault.__name__ in refused.stderr
    release_claims()
    assert list(tmp_path.iterdir()) == []
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_command_leaves_no_lock(tiny_run, tmp_path):
    assert (
        main(["generate", "--model", str(tiny_run / "model"), "--num-images", "2", "--out", str(tmp_path / "o")]) == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "o.png"]
