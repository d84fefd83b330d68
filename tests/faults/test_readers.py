"""Pictures that are read while a command works: one that fails is named, whichever thread met it."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae import extract
from stage1_vqvae.data import loading
from vq_prior.cli import main


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two hundred pictures."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(200):
        Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(tmp_path / "pictures" / f"{number:03d}.png")
    return tmp_path / "pictures"


def fails(words, victim: Path, capsys) -> None:
    started = time.monotonic()
    assert main([*map(str, words)]) == 3
    assert time.monotonic() - started < 60
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert str(victim) in lines[0]
    assert threading.active_count() < 20


@pytest.mark.fault("F17", "F18")
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("how", ["vanishes", "is cut"])
def test_a_picture_that_fails_in_the_middle_of_a_training_is_named(
    how, workers, pictures, tmp_path, capsys, monkeypatch
):
    # too many to keep: each is read when a step needs it
    monkeypatch.setitem(loading.load_rows.__kwdefaults__, "max_bytes", 0)
    victim = pictures / "117.png"
    stored, calls = loading.LoadedRows.stored, iter(range(10**6))

    def losing(self, rows):
        if next(calls) == 4:
            content = victim.read_bytes()
            victim.unlink()
            if how == "is cut":
                victim.write_bytes(content[: len(content) // 2])
        return stored(self, rows)

    monkeypatch.setattr(loading.LoadedRows, "stored", losing)
    words = ["train-vqvae", "--data", pictures, "--out", tmp_path / "run", "--steps", 200, "--batch-size", 8]
    fails([*words, "--num-workers", workers], victim, capsys)


@pytest.mark.fault("F17")
def test_a_picture_that_vanishes_during_a_dump_is_named(pictures, tmp_path, capsys, monkeypatch):
    assert main(["train-vqvae", "--data", str(pictures), "--out", str(tmp_path / "run"), "--steps", "2"]) == 0
    victim = pictures / "160.png"
    views = loading.stored_views

    def losing(images, row, *form):
        victim.unlink(missing_ok=True)
        return views(images, row, *form)

    for module in (loading, extract):
        monkeypatch.setattr(module, "stored_views", losing)
    out = tmp_path / "codes"
    words = ["extract-codes", "--codec", tmp_path / "run", "--data", pictures, "--out", out]
    fails([*words, "--num-workers", 1, "--batch-size", 8], victim, capsys)
    assert not out.exists()


@pytest.mark.fault("F17")
def test_a_worker_that_is_out_of_memory_ends_the_command(pictures, tmp_path, capsys, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(loading, "stored_row", no_memory)
    words = ["train-vqvae", "--data", pictures, "--out", tmp_path / "run", "--steps", 2, "--batch-size", 8]
    assert main([*map(str, words)]) == 5
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert "out of memory" in lines[0]


@pytest.mark.fault("F18")
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop"])
def test_what_only_looks_like_a_file_is_never_waited_for(kind, pictures, tmp_path, capsys):
    victim = pictures / "050.png"
    victim.unlink()
    if kind == "folder":
        victim.mkdir()
    elif kind == "pipe":
        os.mkfifo(victim)
    elif kind == "device":
        victim.symlink_to("/dev/zero")
    else:
        victim.symlink_to(victim)
    code = main(["check-data", str(pictures), "--out", str(tmp_path / "list.json")])
    told = capsys.readouterr()
    # A folder named like a picture is a folder: it is a class without pictures.
    assert code == (0 if kind == "folder" else 3), told
    if code:
        assert str(victim) in told.out
