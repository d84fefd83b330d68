"""Names that are no text, and terminals that take little of it: the whole road, and every file can be read again."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vq_prior.cli import main
from vq_prior.core.config import parse_json, pretty_json
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.disk.names import as_on_disk, readable
from vq_prior.core.errors import ArtifactError

CAFE = os.fsdecode(b"caf\xe9")  # as Latin-1 has it


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain", "plain"), ("café", "café"), (CAFE, r"caf\xe9"), ("\udc80\udcff", r"\x80\xff"), ("\ud800", r"\ud800")],
)
def test_a_name_is_shown_as_text_and_found_again(name, shown):
    assert readable(name) == shown
    readable(name).encode("utf-8")
    if name != "\ud800":
        assert as_on_disk(shown) == name


def test_what_is_written_can_be_read_and_other_text_is_as_it_was():
    value = {"a": [CAFE, r"\x41 é", 1], CAFE: None}
    assert parse_json(pretty_json(value), "x") == {"a": [r"caf\xe9", r"\x41 é", 1], r"caf\xe9": None}
    assert pretty_json({"a": r"\x41 é"}) == b'{\n  "a": "\\\\x41 \xc3\xa9"\n}\n'
    assert str(ArtifactError(f"{CAFE}/x.png\x1b is damaged")) == r"caf\xe9/x.png  is damaged"


@pytest.mark.usefixtures("quick")
def test_the_whole_road_with_names_that_are_no_text(tmp_path, capsys):
    try:
        (tmp_path / CAFE).mkdir()
    except OSError:
        pytest.skip("this disk takes names of text alone")
    data, run = tmp_path / CAFE / "data", tmp_path / CAFE / "run"
    rng = np.random.default_rng(0)
    for name in (CAFE, "été"):
        (data / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(data / name / os.fsdecode(b"\xff%d.png" % number))
    small = ["--steps", "2", "--batch-size", "4"]
    listed = tmp_path / "listed.json"
    roads = [
        ["check-data", data, "--out", listed],
        ["train-vqvae", "--data", data, "--out", run, *small],
        ["extract-codes", "--codec", run, "--data", listed, "--out", run / "codes"],
        ["train-prior", "--codes", run / "codes", "--codec", run, "--out", run, *small],
        ["generate", "--model", run / "model", "--num-images", 2, "--labels", CAFE, "--out", run / CAFE],
        ["score", "--model", run / "model", "--data", data, "--out", run / "scores"],
        ["reconstruct", "--codec", run, "--data", data, "--out", run / "copies"],
        ["report", run],
        ["verify", run],
        ["doctor", "--model", run / "model", "--out", tmp_path / "doctor.json"],
    ]
    for words in roads:
        code = main(list(map(str, words)))
        told = capsys.readouterr()
        assert code == 0 or (words[0] == "doctor" and code == 4), (words[0], told.err)
        told.out.encode("utf-8")
    assert CodeStore.open(run / "codes").index.label_names == (r"caf\xe9", "été")
    assert json.loads((run / CAFE / "samples.json").read_text())["labels"] == [r"caf\xe9"]
    for path in Path(tmp_path).rglob("*.json"):
        parse_json(path.read_bytes(), str(path))
    (data / CAFE / os.fsdecode(b"\xff3.png")).write_bytes(b"none")
    assert main(["check-data", str(data)]) == 3
    assert r"caf\xe9/\xff3.png" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_show_a_name_ends_no_command(encoding, tmp_path, monkeypatch):
    folder = tmp_path / "\u0130zmir\u2192" / CAFE
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["train-vqvae", "--data", "digits", "--out", str(folder), "--steps", "1"]) == 0
    shown.flush()
    assert b"zmir" in shown.buffer.getvalue()
    assert main(["verify", str(folder)]) == 0
    assert main(["--help"]) == 0
