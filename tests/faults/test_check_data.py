"""check-data: what was planted is what is found; a list of it holds, and what changes later is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.data.sources import open_data
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
    if kind == "dangling":
        path.symlink_to("nowhere.png")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        # "bomb": its header announces 60,000 x 60,000 pixels
        path.write_bytes(
            {
                "truncated": whole[: len(whole) // 2],
                "empty": b"",
                "text": b"this is no picture",
                "flipped": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
                "bomb": whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:],
                "cut": whole[:20],
                "zip": b"PK\x03\x04" + whole,
                "no width": whole[:16] + bytes(4) + whole[20:],
                "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            }[kind]
        )


KINDS = ("truncated", "empty", "text", "dangling", "flipped", "bomb", "cut")
MORE_KINDS = (*KINDS, "loop", "pipe", "zip", "no width", "svg")


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


@pytest.mark.fault("F18", "R15")
def test_one_in_a_hundred_of_twelve_kinds(tmp_path, faults):
    count = faults.number(600, 10_000)
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(count):
        pixels = rng.integers(0, 256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:05d}.png")
    files = sorted((tmp_path / "pictures").iterdir())
    good = open_data(str(tmp_path / "pictures"))
    rows = faults.rng.sample(range(count), max(count // 100, len(MORE_KINDS)))
    for number, row in enumerate(rows):
        spoil(files[row], MORE_KINDS[number % len(MORE_KINDS)])
    out = tmp_path / "checked.json"
    assert main(["check-data", str(tmp_path / "pictures"), "--out", str(out), "--policy", "skip"]) == 0
    listed = json.loads(out.read_text())["splits"]["train"]
    assert {picture["row"] for picture in listed["bad"]} == set(rows)
    used = open_data(str(out))
    kept = np.concatenate([used.train.source_index, used.validation.source_index])
    assert sorted(kept) == sorted(set(range(count)) - set(rows))
    assert set(used.validation.source_index) <= set(good.validation.source_index)
    words = ["train-vqvae", "--data", str(out), "--out", str(tmp_path / "run"), "--steps", "2", "--batch-size", "8"]
    assert main(words) == 0
    faults.planted(len(rows))
