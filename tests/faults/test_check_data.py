"""check-data: what was planted is what is found; a list of it holds, and what changes later is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.sources import open_data
from vq_prior.cli import main

COUNT = 60


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Sixty good pictures of two classes."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        folder = tmp_path / "pictures" / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, size=(12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return tmp_path / "pictures"


def spoil(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no picture")
    elif kind == "dangling":
        path.symlink_to("nowhere.png")
    elif kind == "flipped":
        path.write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    elif kind == "bomb":  # its header announces 60,000 x 60,000 pixels
        path.write_bytes(whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:])
    elif kind == "cut":
        path.write_bytes(whole[:20])


KINDS = ("truncated", "empty", "text", "dangling", "flipped", "bomb", "cut")


@pytest.mark.fault("F18", "R15")
def test_the_reported_set_is_the_planted_one(pictures, tmp_path, capsys):
    files = sorted(pictures.rglob("*.png"))
    rng = np.random.default_rng(1)
    planted = {int(row): KINDS[n % len(KINDS)] for n, row in enumerate(rng.choice(COUNT, size=9, replace=False))}
    good = open_data(str(pictures))
    for row, kind in planted.items():
        spoil(files[row], kind)
    out = tmp_path / "checked.json"
    assert main(["check-data", str(pictures), "--out", str(out)]) == 3
    told = capsys.readouterr()
    assert len(told.err.strip().splitlines()) == 1
    assert "9 of 60 images are bad" in told.err
    assert told.out.count("bad: ") == 9
    assert not out.exists()

    assert main(["check-data", str(pictures), "--out", str(out), "--policy", "skip"]) == 0
    listed = json.loads(out.read_text())["splits"]["train"]
    assert {picture["row"]: picture["name"] for picture in listed["bad"]} == {r: str(files[r]) for r in planted}
    used = open_data(str(out))
    rows = np.concatenate([used.train.source_index, used.validation.source_index])
    assert sorted(rows) == [row for row in range(COUNT) if row not in planted]
    # A row is in the split it was in before, under the label it had before.
    for split in ("train", "validation"):
        before, after = getattr(good, split), getattr(used, split)
        kept = [row for row in before.source_index if row not in planted]
        assert list(after.source_index) == kept
        place = {int(row): label for row, label in zip(before.source_index, before.labels, strict=True)}
        assert [place[int(row)] for row in after.source_index] == list(after.labels)


def test_a_list_is_taken_for_data_and_gives_the_same(pictures, tmp_path, capsys):
    out = tmp_path / "checked.json"
    assert main(["check-data", str(pictures), "--out", str(out)]) == 0
    assert open_data(str(out)).data_id == open_data(str(pictures)).data_id
    words = ["train-vqvae", "--data", str(out), "--out", str(tmp_path / "run"), "--steps", "2", "--batch-size", "8"]
    assert main(words) == 0
    assert "left out 0 image(s)" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["other pixels", "a file more", "a file less"])
@pytest.mark.fault("F19", "F29")
def test_what_changed_since_is_refused(change, pictures, tmp_path, capsys):
    out = tmp_path / "checked.json"
    assert main(["check-data", str(pictures), "--out", str(out)]) == 0
    victim = sorted(pictures.rglob("*.png"))[7]
    if change == "other pixels":
        Image.new("RGB", (10, 12)).save(victim)
    elif change == "a file more":
        Image.new("RGB", (10, 12)).save(victim.with_name("zzz.png"))
    else:
        os.unlink(victim)
    capsys.readouterr()
    assert main(["train-vqvae", "--data", str(out), "--out", str(tmp_path / "run"), "--steps", "2"]) == 3
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert (victim.name if change == "other pixels" else "has other rows") in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "format_version"),
        (
            '{"format_version": 2, "data": "x", "image_column": null, "label_column": null, "splits": {}}',
            "format version",
        ),
        ("[1, 2", "checked.json"),
    ],
)
def test_a_list_that_is_none_is_refused(text, named, tmp_path, capsys):
    (tmp_path / "checked.json").write_text(text)
    words = ["train-vqvae", "--data", str(tmp_path / "checked.json"), "--out", str(tmp_path / "run"), "--steps", "2"]
    assert main(words) == 3
    assert named in capsys.readouterr().err
    assert main(["check-data", "digits", "--out", str(tmp_path / "list.txt")]) == 2
