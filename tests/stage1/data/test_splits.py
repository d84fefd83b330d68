"""What the folders and tables of DATA are taken for: classes, splits, or what this program wrote itself."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from made import fill, table
from PIL import Image

from stage1_vqvae.data.sources import open_data
from stage1_vqvae.modalities.sheets import sheet_bytes
from vq_prior.core.errors import ArtifactError

CLASSES = ("cat", "dog")


def classes_in(*folders: str) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in CLASSES]


SPLIT = {
    "other case": (classes_in("Training", "Testing"), "Training -> train, Testing -> test"),
    "before it": (classes_in("seg_train", "seg_test"), "seg_train -> train, seg_test -> test"),
    "twice": (
        [*classes_in("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"],
        "seg_train -> train, seg_test -> test",
    ),
    "behind it": (classes_in("train_images", "test_images"), "train_images -> train, test_images -> test"),
    "a folder above": (classes_in("a/train_images", "a/test_images"), "a/train_images -> train, a/test_images -> test"),
    "two above": (classes_in("a/b/TRAIN", "a/b/TEST"), "a/b/TRAIN -> train, a/b/TEST -> test"),
    "years": (classes_in("train2017", "test2015"), "train2017 -> train, test2015 -> test"),
    "one word": (classes_in("trainset", "testset"), "trainset -> train, testset -> test"),
    "letters": (classes_in("TrainImages", "TestImages"), "TrainImages -> train, TestImages -> test"),
    "in each class": (
        [f"{name}/{split}" for name in CLASSES for split in ("train", "test")],
        "cat/train -> train, dog/train -> train, cat/test -> test, dog/test -> test",
    ),
    "alone": (classes_in("train_images"), "train_images -> train"),
    "a picture above": ([*classes_in("a/train", "a/test"), "."], "a/train -> train, a/test -> test"),
    "other folders": ([*classes_in("train", "test"), "masks"], "train -> train, test -> test"),
}


@pytest.mark.parametrize(("folders", "told"), SPLIT.values(), ids=SPLIT)
def test_splits_are_found_by_their_names_and_classes_are_what_is_in_them(tmp_path, folders, told):
    fill(tmp_path, *folders, count=3)
    data = open_data(str(tmp_path))
    assert data.label_names == CLASSES
    assert len(data.train) + len(data.validation) == 6
    assert f"folders: {told}" in data.notes
    assert "2 classes: cat (3), dog (3)" in data.notes


def test_a_held_out_split_stands_beside_the_training_rows(tmp_path):
    fill(tmp_path, *classes_in("my_train", "my_val", "my_test"))
    data = open_data(str(tmp_path))
    assert "folders: my_train -> train, my_val -> validation, my_test -> test" in data.notes
    assert [Path(data.validation.name(row)).parts[-3] for row in range(4)] == ["my_val"] * 4
    assert [Path(data.train.name(row)).parts[-3] for row in range(4)] == ["my_train"] * 4


def test_splits_within_the_training_folder(tmp_path):
    fill(tmp_path, *classes_in("train/train", "train/val", "test"))
    data = open_data(str(tmp_path))
    assert "folders: train/train -> train, train/val -> validation, test -> test" in data.notes
    assert (data.label_names, len(data.train), len(data.validation)) == (CLASSES, 4, 4)


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "train"),
        ("train_station", "test_tube"),
        ("express_train", "cat"),
        ("strain", "contest"),
        ("latest", "protest"),
        ("dev_board", "cat"),
    ],
)
def test_classes_whose_names_have_such_a_word_are_classes(tmp_path, names):
    fill(tmp_path, *names)
    assert open_data(str(tmp_path)).label_names == tuple(sorted(names))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "training"), r"more than one train folder \(train, training\)"),
        (("train", "val", "valid"), r"more than one validation folder \(val, valid\)"),
        (("trainA", "trainB", "testA", "testB"), r"more than one train folder \(trainA, trainB\)"),
        (("test",), "no training folder, only test"),
        (("val", "test"), "no training folder, only test, val"),
    ],
)
def test_what_is_for_training_must_be_clear(tmp_path, folders, message):
    fill(tmp_path, *folders)
    with pytest.raises(ArtifactError, match=message):
        open_data(str(tmp_path))


def test_what_may_be_splits_or_classes_and_is_not_taken_for_them_is_told(tmp_path):
    fill(tmp_path, *classes_in("data/train", "data/test"), "docs")
    told = "not taken for splits, since other images lie beside: data/test, data/train; if they are, name "
    assert f"{told}{tmp_path}/data as the data" in open_data(str(tmp_path)).notes
    fill(tmp_path / "pets", *classes_in("PetImages"))
    notes = open_data(str(tmp_path / "pets")).notes
    told = "one class alone, and it has folders (cat, dog); if these are the classes, name "
    assert f"{told}{tmp_path}/pets/PetImages" in notes
    assert "1 class: PetImages (4)" in notes


def test_a_held_out_folder_without_classes_does_not_take_the_classes_away(tmp_path):
    fill(tmp_path, *classes_in("train"), count=20)
    fill(tmp_path, "val", count=3)
    data = open_data(str(tmp_path))
    assert data.label_names == CLASSES
    assert (len(data.train), len(data.validation)) == (38, 2)
    assert "2 classes: cat (20), dog (20)" in data.notes
    assert any("left the 3 images of the validation split untouched" in note for note in data.notes)


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ("mnist_train", "mnist_test", "mnist_train.parquet -> train, mnist_test.parquet -> test"),
        ("Train", "Test", "Train.parquet -> train, Test.parquet -> test"),
        ("digits-training", "digits-testing", "digits-training.parquet -> train, digits-testing.parquet -> test"),
        ("train-00000-of-00001-a1", "test-00000-of-00001-b2", "train-00000-of-00001-a1.parquet -> train"),
    ],
)
def test_tables_are_taken_by_their_names(tmp_path, train, test, told):
    table(tmp_path / f"{train}.parquet", 0, label=[0, 1, 0, 1])
    table(tmp_path / f"{test}.parquet", 100, label=[0, 1, 0, 1])
    data = open_data(str(tmp_path))
    assert len(data.train) + len(data.validation) == 4
    assert any(note.startswith(f"tables: {told}") for note in data.notes)
    assert "2 classes: 0 (2), 1 (2)" in data.notes


@pytest.mark.parametrize("labels", [{}, {"label": [None] * 4}, {"label": [-1] * 4}])
def test_a_held_out_table_without_labels_does_not_take_the_classes_away(tmp_path, labels):
    table(tmp_path / "train.parquet", 0, label=[0, 1, 0, 1])
    table(tmp_path / "validation.parquet", 100, **({"label": pa.array([None] * 4, pa.int64())} | labels))
    data = open_data(str(tmp_path))
    assert data.label_names == ("0", "1")
    assert len(data.train) + len(data.validation) == 4


def test_a_column_of_splits_that_is_not_used_is_told(tmp_path):
    """As in FER2013, whose Usage is Training, PublicTest or PrivateTest."""
    usage = ["Training", "Training", "PublicTest", "PrivateTest"]
    table(tmp_path / "a.parquet", 0, Usage=usage, set=["blue", "red", "blue", "red"])
    told = "column Usage names splits (PrivateTest, PublicTest, Training) and is not used: every row is taken, whatever"
    notes = open_data(str(tmp_path / "a.parquet")).notes
    assert [note.startswith(told) for note in notes if "names splits" in note] == [True]
    fill(tmp_path / "files", ".", count=4)
    lines = [f"{number}.png,{each}" for number, each in enumerate(usage)]
    (tmp_path / "files" / "metadata.csv").write_text("\n".join(["file_name,Usage", *lines]))
    assert any(note.startswith(told) for note in open_data(str(tmp_path / "files")).notes)


def test_the_first_ten_classes_are_named(tmp_path):
    fill(tmp_path, *(f"kind{number:02d}" for number in range(12)))
    line = "12 classes: " + ", ".join(f"kind{number:02d} (2)" for number in range(10)) + ", ..."
    assert line in open_data(str(tmp_path)).notes


def test_folders_lie_as_deep_as_they_like_and_a_link_upwards_is_named(tmp_path):
    fill(tmp_path, "cat/" + "/".join("x" * 37), "dog")
    assert open_data(str(tmp_path)).label_names == CLASSES
    (tmp_path / "dog" / "up").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ArtifactError, match="up is a link to a folder above it"):
        open_data(str(tmp_path))


# What this program writes, by the file that tells it.
WRITTEN = {
    "run/vqvae-training/config.json": {"format_version": 1, "command": "train-vqvae"},
    "run/prior-training/config.json": {"format_version": 1, "command": "train-prior"},
    "codes/codes.json": {"format_version": 1, "codec": {}, "spec": {}, "shards": []},
    "model/config.json": {"format_version": 1, "components": {}, "codec_id": "c"},
    "samples/samples.json": {"format_version": 1, "codec_id": "c", "prior_id": "p"},
    "scores/scores.json": {"format_version": 1, "codec_id": "c", "prior_id": "p", "images": []},
    "pairs/reconstructions.json": {"format_version": 1, "codec_id": "c", "data_id": "d", "num_images": 2},
}


def write_ours(root: Path, *markers: str) -> None:
    for marker in markers:
        fill(root, str(Path(marker).parent), f"{Path(marker).parent}/images")
        (root / marker).write_text(json.dumps(WRITTEN[marker]))


@pytest.mark.parametrize("markers", [*([marker] for marker in WRITTEN), list(WRITTEN)], ids=[*WRITTEN, "all"])
@pytest.mark.parametrize("folders", [CLASSES, (".",)], ids=["classes", "flat"])
def test_what_this_program_wrote_is_never_data(tmp_path, markers, folders):
    fill(tmp_path, *folders)
    before = open_data(str(tmp_path))
    write_ours(tmp_path, *markers)
    after = open_data(str(tmp_path))
    assert after.data_id == before.data_id
    assert after.label_names == before.label_names
    told = [note for note in after.notes if note.startswith("left out what vq-prior wrote: ")]
    assert [note for note in after.notes if note not in told] == list(before.notes)
    assert len(told) == 1
    assert all(f"{Path(marker).parent}/" in told[0] for marker in markers)


def test_sheets_are_never_data(tmp_path):
    """The sheet of a set, in it (as it was), beside it, or where --sheet named a place; and of a quickstart."""
    fill(tmp_path, ".")
    before = open_data(str(tmp_path)).data_id
    write_ours(tmp_path, "samples/samples.json", "run/vqvae-training/config.json")
    fill(tmp_path, "reconstructed")
    for number in range(2):
        os.rename(tmp_path / f"reconstructed/{number}.png", tmp_path / f"reconstructed/{number:06d}.png")
    for sheet in ("samples.png", "elsewhere.png", "run/samples.png", "run/another.png", "reconstructed/grid.png"):
        (tmp_path / sheet).write_bytes(sheet_bytes(Image.new("L", (16, 16), 3)))
    assert open_data(str(tmp_path)).data_id == before


@pytest.mark.parametrize("deep", [False, True])
def test_sets_of_images_are_data_where_nothing_else_is_meant(tmp_path, deep):
    """`score --data samples` and `evaluate --data` with a set of each class; their sheets are left out."""
    for name in CLASSES if deep else (".",):
        fill(tmp_path, name)
        for number in range(2):
            os.rename(tmp_path / name / f"{number}.png", tmp_path / name / f"{number:06d}.png")
        (tmp_path / name / "samples.json").write_text(json.dumps(WRITTEN["samples/samples.json"]))
        Image.new("L", (16, 16), 3).save(tmp_path / name / "grid.png")
    data = open_data(str(tmp_path))
    assert len(data.train) + len(data.validation) == (4 if deep else 2)
    assert data.label_names == (CLASSES if deep else ())


def test_data_that_only_looks_like_ours_is_data(tmp_path):
    fill(tmp_path, "samples", "vqvae-training", "codes")
    for name in ("samples/samples.json", "codes/codes.json"):
        (tmp_path / name).write_text(json.dumps({"made": "by hand"}))
    for number in range(2):
        os.rename(tmp_path / f"codes/{number}.png", tmp_path / f"codes/{number:06d}.png")
    assert open_data(str(tmp_path)).label_names == ("codes", "samples", "vqvae-training")


def test_a_folder_of_nothing_but_a_run_holds_no_images(tmp_path):
    write_ours(tmp_path, "run/vqvae-training/config.json")
    with pytest.raises(ArtifactError, match=r"holds no images .*what vq-prior wrote \(run/vqvae-training/\)"):
        open_data(str(tmp_path))
