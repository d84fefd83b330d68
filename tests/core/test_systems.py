"""Other systems: what only some have is used where it is there; a launcher's words in the environment are heeded."""

import pytest
import torch

from vq_prior.cli import main
from vq_prior.core.disk import artifacts
from vq_prior.core.disk.places import sync
from vq_prior.core.processes.peak_memory import peak_memory_bytes

# Other people's packages, which ask what system they are on, are imported before it is another one.
ELSEWHERE = """
import os, shutil, signal, sys
from importlib import import_module
from pathlib import Path

for name in ("accelerate.commands.launch", "datasets", "psutil", "sklearn.datasets", "torch", "transformers"):
    import_module(name)
from transformers import Qwen3ForCausalLM
for name in [name for name in sys.modules if name.split(".")[0] in ("vq_prior", "stage1_vqvae", "stage2_prior")]:
    del sys.modules[name]
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.fork, os.sched_yield, os.sched_getaffinity
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
system, model, out = sys.argv[1], *map(Path, sys.argv[2:])
sys.platform = system
from vq_prior.cli import main

def run(*words):
    assert main(list(map(str, words))) == 0, words

run("--help")
train = ["train-vqvae", "--data", "digits", "--out", out / "run", "--steps", 20, "--batch-size", 8]
run(*train, "--dry-run")
run(*train)
run("generate", "--model", model, "--num-images", 2, "--out", out / "samples")
run("generate", "--model", model, "--num-images", 2, "--seed", 1, "--out", out / "samples", "--overwrite")
run("env")
run("verify", out / "run")
"""


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_on_another_system_the_commands_run(system, warm, tiny_model, tmp_path):
    done = warm.run(ELSEWHERE, arguments=[system, tiny_model, tmp_path])
    assert done.returncode == 0, done.stderr
    assert "memory about" in done.stdout
    assert (tmp_path / "samples.png").is_file()


def test_the_peak_of_memory_is_in_bytes_everywhere(monkeypatch):
    held = torch.ones(8 << 20)  # 32 MiB
    mine = peak_memory_bytes()
    assert held.nbytes < mine < 1 << 40
    monkeypatch.setitem(__import__("sys").modules, "resource", None)
    assert 0.2 * mine < peak_memory_bytes() <= 1.1 * mine
    monkeypatch.undo()
    monkeypatch.setattr("sys.platform", "darwin")
    assert peak_memory_bytes() < mine / 512  # the same number, of another unit


def test_windows_folders_are_not_synced_and_not_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("os.open", None)
    sync(tmp_path)
    assert not artifacts._exchange(tmp_path, tmp_path)


WORDS = ["train-vqvae", "--data", "digits", "--steps", "2", "--batch-size", "8"]


def test_a_world_of_one_is_no_launcher(run_cli, launched, tmp_path):
    """As schedulers and images of containers leave it."""
    left = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = run_cli(*WORDS, "--out", tmp_path / "run", "--num-processes", 2, env=launched | left)
    assert "2 processes" in done.stdout


@pytest.mark.parametrize(
    ("world", "asked", "code", "named"),
    [
        ("4", "2", 2, "--num-processes 2 cannot go with a launcher that says there are 4"),
        ("2", "1", 2, "--num-processes 1 cannot go with a launcher that says there are 2"),
        ("many", "1", 5, "WORLD_SIZE in the environment must be a number of processes, got many"),
        ("0", "1", 5, "WORLD_SIZE in the environment must be a number of processes, got 0"),
        ("", "1", 0, ""),
        ("1", "1", 0, ""),
    ],
)
def test_a_launcher_and_what_is_asked_for_must_agree(world, asked, code, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", "1" if world in ("", "1") else "0")  # left over: an error is told all the same
    words = [*WORDS, "--out", str(tmp_path / "run"), "--num-processes", asked, "--dry-run"]
    if code == 0:
        words[words.index("digits")] = "nowhere"
        code, named = 3, "nowhere"
    monkeypatch.setattr("os._exit", lambda _code: None)
    assert main(words) == code
    assert named in capsys.readouterr().err
