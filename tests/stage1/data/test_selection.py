"""Some of the data: classes by name, a number of rows, classes that are left with nothing, equal parts of classes."""

import json
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from made import fill, table
from PIL import Image

from stage1_vqvae.data.selection import some_rows
from stage1_vqvae.data.sources import open_data
from vq_prior.cli import main
from vq_prior.core.disk.code_store import held_out_rows
from vq_prior.core.errors import UsageError
from vq_prior.core.training.randomness import in_equal_parts


@pytest.fixture
def animals(tmp_path):
    for name, count in (("bee", 19), ("cat", 1), ("cow", 30), ("dog, wild", 6)):
        fill(tmp_path / "data", name, count=count)
    for name in ("eel", "fox"):
        (tmp_path / "data" / name).mkdir()
    return tmp_path / "data"


def test_classes_with_nothing_to_train_on_are_named(animals):
    """Rows 19 and 39 are held out, the former the only cat."""
    data = open_data(str(animals))
    wanted = "cat (held out), eel (an empty folder, no class), fox (an empty folder, no class)"
    assert f"classes without images to train on: {wanted}" in data.notes
    assert data.label_names == ("bee", "cat", "cow", "dog, wild")


def test_the_dry_run_and_check_data_name_the_classes(animals, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train-vqvae", "--data", str(animals), "--out", out, "--steps", "1", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "classes without images to train on: cat (held out), eel" in told
    assert "4 classes: bee (19), cat (1), cow (30), dog, wild (6)" in told
    assert main(["check-data", str(animals), "--out", str(tmp_path / "a.json")]) == 0
    assert "4 classes: bee (19), cat (1), cow (30), dog, wild (6)" in capsys.readouterr().out


def test_many_lost_classes_are_counted(tmp_path):
    fill(tmp_path, "cat", "dog")
    for number in range(12):
        (tmp_path / f"kind{number:02d}").mkdir()
    note = next(note for note in open_data(str(tmp_path)).notes if note.startswith("classes without"))
    assert note.count("kind") == 10
    assert note.endswith("... (12 in all)")


def test_named_classes_of_a_table_without_rows_are_told(tmp_path):
    table(tmp_path / "a.parquet", 0, label=[0, 2, 0, 2])
    features = {"label": {"_type": "ClassLabel", "names": ["ale", "gin", "tea"]}, "image": {"_type": "Image"}}
    made = pq.read_table(tmp_path / "a.parquet")
    made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, tmp_path / "a.parquet")
    notes = open_data(str(tmp_path / "a.parquet")).notes
    assert "classes without images to train on: gin (none at all)" in notes


@pytest.mark.parametrize(
    ("asked", "names", "count"),
    [
        ("cow,bee", ("bee", "cow"), 49),
        ("dog, wild,cow", ("cow", "dog, wild"), 36),
        ("cow", ("cow",), 30),
        ("0,index:2", ("bee", "cow"), 49),
    ],
)
def test_classes_are_taken_by_name(animals, asked, names, count):
    data = open_data(str(animals), classes=asked)
    assert data.label_names == names
    assert len(data.train) + len(data.validation) == count
    assert set(data.train.labels.tolist()) == set(range(len(names)))
    assert f"took {len(names)} of 4 classes (--classes)" in data.notes
    whole = open_data(str(animals))
    seen = {whole.validation.name(row) for row in range(len(whole.validation))}
    assert {data.validation.name(row) for row in range(len(data.validation))} <= seen


def test_a_class_without_held_out_rows_of_its_own_holds_some_out(animals):
    data = open_data(str(animals), classes="dog, wild")
    assert (len(data.train), len(data.validation)) == (5, 1)


@pytest.mark.parametrize(
    ("asked", "message"), [("cod", "--classes: unknown label 'cod' for .*bee, cat"), ("cat,,", "''")]
)
def test_an_unknown_class_is_refused(animals, asked, message):
    with pytest.raises(UsageError, match=message):
        open_data(str(animals), classes=asked)


def test_classes_need_labels(tmp_path):
    fill(tmp_path, ".", count=3)
    with pytest.raises(UsageError, match="--classes cat needs classes"):
        open_data(str(tmp_path), classes="cat")


def test_some_rows_are_spread_nested_and_partly_held_out():
    rows, held = np.arange(1000), held_out_rows(1000)
    sets = [some_rows(rows, held, most) for most in (2, 10, 100, 400, 1000, 5000)]
    assert [len(some) for some in sets] == [2, 10, 100, 400, 1000, 1000]
    assert [int(np.isin(some, held).sum()) for some in sets] == [1, 1, 5, 20, 50, 50]
    for fewer, more in pairwise(sets):
        assert set(fewer) <= set(more)
    assert all(np.all(np.diff(some) > 0) for some in sets)
    assert np.ptp(sets[2]) > 900


def test_a_number_of_images(animals):
    data = open_data(str(animals), max_images=20)
    assert (len(data.train), len(data.validation)) == (19, 1)
    assert "took 20 of 56 rows (--max-images)" in data.notes
    both = open_data(str(animals), classes="cow,bee", max_images=10)
    assert len(both.train) + len(both.validation) == 10
    with pytest.raises(UsageError, match="--max-images must be at least 2"):
        open_data(str(animals), max_images=1)


def test_every_class_has_as_many_rows():
    labels = np.array([2, 0, 0, 0, 0, 1, 1])
    rows = in_equal_parts(labels)
    assert sorted(labels[rows].tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert set(rows.tolist()) == set(range(7))


def test_a_list_keeps_the_classes_and_the_sheet_shows_what_a_network_sees(animals, tmp_path, capsys):
    words = ["check-data", str(animals), "--out", str(tmp_path / "a.json"), "--classes", "cow", "--image-size", "8x6"]
    assert main([*words, "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert "as a network will see them, 8x6" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "L"
        assert sheet.width > 8 * 6
    assert open_data(str(tmp_path / "a.json")).label_names == ("cow",)
    for sheet, message in ((animals / "sheet.png", "lies in the data"), (tmp_path / "a.json", "must be a PNG file")):
        assert main([*words, "--sheet", str(sheet)]) == 2
        assert message in capsys.readouterr().err


def test_balance_needs_classes_and_is_written_only_where_it_is_on(animals, tmp_path, capsys):
    fill(tmp_path / "flat", ".", count=3)
    words = ["train-vqvae", "--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "2", "--image-size", "8"]
    assert main([*words, "--data", str(tmp_path / "flat"), "--balance"]) == 2
    assert "--balance needs classes" in capsys.readouterr().err
    assert main([*words, "--data", str(animals), "--balance", "--max-images", "12"]) == 0
    config = json.loads((tmp_path / "run" / "vqvae-training" / "config.json").read_text())["settings"]
    assert (config["balance"], config["max_images"]) == (True, 12)
    assert not {"classes", "split", "labels_file", "file_column"} & config.keys()
    assert main([*words, "--data", str(animals), "--max-images", "12"]) == 0  # what the run has stays
    assert "finished" in capsys.readouterr().out
