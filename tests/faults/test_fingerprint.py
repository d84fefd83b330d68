"""The fingerprint: the same for a run and its interrupted twin, another for anything else."""

import shutil
from pathlib import Path

import pytest

from vq_prior.cli import main

TRAIN = ("--batch-size", "16", "--checkpoint-every", "5")


def print_of(path: Path, capsys) -> list[str]:
    capsys.readouterr()
    assert main(["fingerprint", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def train(out: Path, steps: int, *words: str) -> Path:
    assert main(["train-vqvae", "--data", "digits", "--out", str(out), "--steps", str(steps), *TRAIN, *words]) == 0
    return out


def test_a_run_and_one_made_in_two_goes_have_the_same(tmp_path, capsys):
    # The schedule depends on the steps, so both are told 20: one loses its newest checkpoint and its end, and goes on.
    whole, again = train(tmp_path / "whole", 20), train(tmp_path / "other" / "again", 20)
    assert print_of(whole, capsys) == print_of(again, capsys)
    shutil.rmtree(again / "vqvae")
    shutil.rmtree(again / "vqvae-training" / "checkpoints" / "step-00000020")
    train(again, 20)
    assert print_of(whole, capsys) == print_of(again, capsys)
    other = train(tmp_path / "seed", 20, "--seed", "1")
    assert print_of(other, capsys)[-1] != print_of(whole, capsys)[-1]


def test_every_part_counts_and_no_clock_does(tiny_run, tmp_path, capsys):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = print_of(run, capsys)
    names = [line.split()[0] for line in before]
    assert names == ["codes", "model", "prior", "prior-training", "vqvae", "vqvae-training", "fingerprint"]
    assert len(set(before[-1].split()[1])) > 1
    log = run / "prior-training" / "metrics.jsonl"
    text = log.read_text()
    log.write_text(text.replace('"elapsed_seconds": ', '"elapsed_seconds": 1'))
    assert print_of(run, capsys) == before
    log.write_text(text.replace('"train_nats": ', '"train_nats": 1'))
    after = print_of(run, capsys)
    changed = [name for name, old, new in zip(names, before, after, strict=True) if old != new]
    assert changed == ["prior-training", "fingerprint"]
    assert print_of(run / "codes", capsys)[-1].split()[1] == before[0].split()[1]


@pytest.mark.parametrize(("path", "text"), [("nowhere", "does not exist"), ("", "holds no artefact")])
def test_what_has_none_is_said_in_one_line(path, text, tmp_path, capsys):
    assert main(["fingerprint", str(tmp_path / path)]) == 3
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]
