"""Trackers get the numbers and pictures that the run keeps; a continued run goes on as the same one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vq_prior.cli import main


def train(out: Path, tracker: str, steps: int) -> None:
    words = ["train-vqvae", "--data", "digits", "--out", str(out), "--steps", str(steps), "--batch-size", "8"]
    assert main([*words, "--log-every", "2", "--checkpoint-every", "2", "--report-to", tracker]) == 0


def logged(out: Path) -> list[dict[str, float]]:
    lines = (out / "vqvae-training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.one_of("trackers")
def test_tensorboard_holds_what_the_run_keeps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "tensorboard", 4)
    train(tmp_path, "tensorboard", 6)
    seen = EventAccumulator(str(tmp_path / "vqvae-training" / "tensorboard"))
    seen.Reload()
    for name in ("reconstruction", "perplexity", "learning_rate"):
        assert [event.step for event in seen.Scalars(name)] == [2, 4, 6]
        kept = [entry[name] for entry in logged(tmp_path)]
        assert [event.value for event in seen.Scalars(name)] == pytest.approx(kept, rel=1e-6)
    assert [event.step for event in seen.Images("reconstructions")] == [2, 4, 6]
    newest = tmp_path / "vqvae-training" / "images" / "step-00000006.png"
    assert newest.is_file()


@pytest.mark.one_of("trackers")
def test_wandb_offline_is_one_run_through_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tmp_path, "wandb", 4)
    train(tmp_path, "wandb", 6)
    folder = tmp_path / "vqvae-training"
    run_id = (folder / "wandb-id").read_text()
    written = sorted(path for path in (folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 2
    assert all(path.name == f"run-{run_id}.wandb" and path.stat().st_size > 1000 for path in written)
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/reconstructions_*.png"))


@pytest.mark.one_of("trackers")
def test_trackio_holds_what_the_run_keeps(tmp_path: Path, child_environment: Callable[..., dict[str, str]]) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    code = (
        "import json, sys; from vq_prior.cli import main\n"
        "words = ['train-vqvae', '--data', 'digits', '--out', sys.argv[1], '--batch-size', '8', '--log-every', '2']\n"
        "for steps in '4', '6': assert main([*words, '--steps', steps, '--report-to', 'trackio']) == 0\n"
        "from trackio.sqlite_storage import SQLiteStorage as storage\n"
        "(name,) = storage.get_runs('vq-prior')\n"
        "print(json.dumps(storage.get_logs('vq-prior', name)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=child_environment(TRACKIO_DIR=str(tmp_path / "trackio")),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sent = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[{")))
    numbers = [entry for entry in sent if "perplexity" in entry]
    assert [(entry["step"], entry["perplexity"]) for entry in numbers] == [
        (entry["step"], entry["perplexity"]) for entry in logged(tmp_path / "run")
    ]
    assert any("reconstructions" in entry for entry in sent)


def test_a_tracker_that_is_not_there_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vq_prior.core.training.tracking.find_spec", lambda _: None)
    for command in (["train-vqvae", "--data", "digits"], ["train-prior", "--codes", "nowhere"]):
        assert main([*command, "--out", str(tmp_path / "out"), "--report-to", "wandb"]) == 2
        assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from accelerate.tracking import TensorBoardTracker

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoardTracker, "log", full_disk)
    train(tmp_path, "tensorboard", 4)
    assert capsys.readouterr().err.count("tensorboard failed and gets no more") == 1
    assert len(logged(tmp_path)) == 2
