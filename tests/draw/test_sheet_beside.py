"""The sheet stands beside the folder of samples: nobody counts it among them, and no other picture is lost to one."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.data.sources import open_data
from stage1_vqvae.modalities.sheets import sheet_bytes
from vq_prior.cli import main
from vq_prior.core.disk.sheet_beside import is_sheet, sheet_place
from vq_prior.core.errors import ArtifactError, UsageError

RECORD = {"format_version": 1, "codec_id": "0" * 64, "prior_id": "1" * 64, "data_id": "2" * 64}


@pytest.fixture
def generate(tiny_model):
    def run(*words):
        return main([*map(str, ("generate", "--model", tiny_model, "--num-images", 2, *words))])

    return run


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path


def sheet(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet_bytes(Image.new("L", (40, 40), 255)))
    return path


def test_a_sheet_has_a_mark_and_the_pixels_that_it_shows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(sheet_bytes(Image.fromarray(pixels)))
    assert is_sheet(tmp_path / "a.png")
    assert (np.asarray(Image.open(tmp_path / "a.png")) == pixels).all()
    assert not is_sheet(picture(tmp_path / "b.png"))
    assert not is_sheet(tmp_path)


def test_where_there_is_room_the_sheet_stands_beside_and_else_there_is_none(tmp_path, monkeypatch):
    def place(out):
        return sheet_place(tmp_path / out, None)

    assert place("samples").path == tmp_path / "samples.png"
    assert place("v1.0").path == tmp_path / "v1.0.png"
    assert place("deep/er").path == tmp_path / "deep" / "er.png"
    sheet(tmp_path / "ours.png")
    assert place("ours").path == tmp_path / "ours.png"
    picture(tmp_path / "theirs.png")
    (tmp_path / "file.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "broken").symlink_to(tmp_path / "not-there")
    monkeypatch.chdir(tmp_path / "out")
    nones = {"theirs": "is no sheet", "file": "is no sheet", "nowhere": "is no sheet", "link": "is a link"}
    nones |= {"broken": "is a link", "out": "is the current folder", ".": "holds the current folder"}
    for out, why in nones.items():
        found = place(out)
        assert found.path is None, out
        assert why in found.note
        assert "--sheet FILE" in found.note
    assert "is a mount point" in sheet_place(type(tmp_path)("/proc"), None).note
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    (tmp_path / "held").mkdir()
    assert "cannot be written" in place("held").note


def test_a_named_sheet_goes_where_it_is_asked_to_or_is_refused(tmp_path):
    out = tmp_path / "out"
    assert sheet_place(out, tmp_path / "new" / "s.PNG").path == tmp_path / "new" / "s.PNG"
    sheet(tmp_path / "ours.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "ours.png")
    assert sheet_place(out, tmp_path / "link.png").path == tmp_path / "ours.png"  # the link stays
    picture(tmp_path / "theirs.png")
    (tmp_path / "folder.png").mkdir()
    for asked, named in (
        (tmp_path / "sheet.jpg", "PNG file"),
        (out / "sheet.png", "outside of"),
        (out / ".." / "out" / "deep" / "sheet.png", "outside of"),
        (tmp_path / "theirs.png", "is no sheet"),
        (tmp_path / "folder.png", "is no sheet"),
    ):
        with pytest.raises(UsageError, match=named):
            sheet_place(out, asked)
    with pytest.raises(ArtifactError, match="cannot be written"):
        sheet_place(out, tmp_path / "theirs.png" / "sheet.png")


def test_everything_in_the_folder_is_a_sample_and_the_sheet_is_replaced_with_it(generate, tmp_path, capsys):
    out, beside = tmp_path / "out", tmp_path / "out.png"
    assert generate("--out", out) == 0
    assert sorted(os.listdir(out)) == ["000000.png", "000001.png", "samples.json"]
    first = beside.read_bytes()
    drawn = [np.asarray(Image.open(out / f"00000{n}.png")) for n in range(2)]
    shown = np.asarray(Image.open(beside))
    assert (shown[2 : 2 + 32 : 4, 2 : 2 + 32 : 4] == drawn[0]).all()  # 8x8, four times as large
    assert generate("--out", out, "--seed", 5, "--overwrite") == 0
    assert beside.read_bytes() != first
    # A finished folder without its sheet gets it, and one at another place where that is asked for.
    second = beside.read_bytes()
    beside.unlink()
    capsys.readouterr()
    assert generate("--out", out, "--seed", 5) == 0
    assert generate("--out", out, "--seed", 5, "--sheet", tmp_path / "s" / "heet.png") == 0
    assert beside.read_bytes() == second == (tmp_path / "s" / "heet.png").read_bytes()
    assert capsys.readouterr().out.count("wrote a sheet of them to") == 2


def test_a_picture_of_the_name_of_the_sheet_stays(generate, tmp_path, capsys):
    before = picture(tmp_path / "cat.png").read_bytes()
    for more in ([], ["--seed", 3, "--overwrite"]):
        assert generate("--out", tmp_path / "cat", *more) == 0
        assert "no sheet is written" in capsys.readouterr().out
        assert (tmp_path / "cat.png").read_bytes() == before
    assert generate("--out", tmp_path / "dog", "--sheet", tmp_path / "cat.png") == 2
    assert not (tmp_path / "dog").exists()


def test_no_sheet_is_data(tmp_path):
    for n in range(6):
        picture(tmp_path / f"{n}.png", 10 * n)
    for name in ("samples", "scored", "copies", "own"):
        picture(tmp_path / name / "000000.png", 100)
    for name, record in (("samples", "samples"), ("scored", "scores"), ("copies", "reconstructions")):
        (tmp_path / name / f"{record}.json").write_text(json.dumps(RECORD))
        sheet(tmp_path / f"{name}.png")
    picture(tmp_path / "own.png", 160)  # of somebody with a picture of a folder's name
    picture(tmp_path / "samples" / "grid.png", 160)
    data = open_data(str(tmp_path))
    names = {rows.name(n) for rows in (data.train, data.validation) for n in range(len(rows))}
    assert names == {str(tmp_path / name) for name in (*(f"{n}.png" for n in range(6)), "own/000000.png", "own.png")}
    note = next(note for note in data.notes if "what vq-prior wrote" in note)
    assert {"samples.png", "scored.png", "copies.png", "samples/", "scored/", "copies/"} <= set(
        note.partition(": ")[2].split(", ")
    )
