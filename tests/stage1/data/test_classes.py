"""Columns of labels as people have them: what is read as what, and what is said of it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import fill, table
from PIL import Image

from stage1_vqvae.data.classes import read_labels
from stage1_vqvae.data.sources import open_data
from vq_prior.core.errors import ArtifactError, UsageError

NAN = float("nan")


def said(notes: tuple[str, ...], *words: str) -> bool:
    return any(all(word in note for word in words) for note in notes)


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        (["b", "a", "b", "a"], ("a", "b"), ()),
        ([3, 1, 3, 1], ("1", "3"), ()),
        ([0.0, 1.0, 0.0, 1.0], ("0", "1"), ("label", "whole numbers such as 0.0, read as integers")),
        ([False, True, False, True], ("False", "True"), ()),
        ([b"b", b"a", b"b", b"a"], ("a", "b"), ()),
        (["01", "1", "01", "1"], ("01", "1"), ()),
        ([[0, 1], [1], [0], [1]], (), ("no labels", "several labels a row", "row 0")),
        ([["a"], ["b"], [], ["a", "b"]], (), ("no labels", "several labels a row", "row 0")),
        ([0.0, 0.5, 1.0, 0.0], (), ("no labels", "numbers between integers", "row 1: 0.5")),
        ([0.0, float("inf"), 1.0, 0.0], (), ("no labels", "infinite", "row 1")),
        ([{"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}], (), ("no labels", "objects", "row 0")),
        ([b"\xff", b"\xff", b"\xff", b"\xff"], (), ("no labels", "bytes", "row 0")),
        ([None] * 4, (), ()),
        ([NAN] * 4, (), ()),
        (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), ()),
    ],
    ids=str,
)
def test_a_column_of_labels_in_a_table(tmp_path, labels, names, words):
    table(tmp_path / "a.parquet", 0, label=labels, other=labels)
    data = open_data(str(tmp_path / "a.parquet"))
    assert data.label_names == names
    assert not words or said(data.notes, *words)
    if words and not names:
        with pytest.raises(UsageError, match=f"--label-column: column other .*{words[1]}"):
            open_data(str(tmp_path / "a.parquet"), label_column="other")


@pytest.mark.parametrize(
    "labels", [[0.0, NAN, 1.0, None], ["a", "", "b", None], [0, None, 1, None], [0.0, None, 1.0, NAN]], ids=str
)
def test_rows_without_a_label_are_named(tmp_path, labels):
    table(tmp_path / "a.parquet", 0, label=labels)
    with pytest.raises(ArtifactError, match=r"2 of 4 rows have no label \(.*a.parquet row 1, .*a.parquet row 3\)"):
        open_data(str(tmp_path / "a.parquet"))


def test_minus_one_is_no_label_where_classes_are_named():
    assert read_labels([0, -1], "label", "a", is_named=False, has_names=True)[0] == [0, None]
    assert read_labels([1, -1], "label", "a", is_named=False)[0] == [1, -1]


def test_where_no_column_is_called_label_others_are_named(tmp_path):
    table(tmp_path / "a.parquet", 0, **{"class": ["a", "b", "a", "b"], "id": [1, 2, 3, 4]})
    data = open_data(str(tmp_path / "a.parquet"))
    assert data.label_names == ()
    assert said(data.notes, "no labels", "--label-column", "class, id")


CSV = {
    "names": ("label\na\nb\na\nb", ("a", "b")),
    "leading zeros": ("label\n01\n02\n01\n02", ("01", "02")),
    "floats as they are written": ("label\n0.0\n1.0\n0.0\n1.0", ("0.0", "1.0")),
    "nan is a name among names": ("label\nnan\nbo\nnan\nbo", ("bo", "nan")),
}


def listed(root: Path, content: str) -> Path:
    """Four pictures and a metadata file; the n-th line tells of the n-th picture."""
    fill(root, ".", count=4)
    head, *lines = content.split("\n")
    text = "\n".join([f"file_name,{head}", *(f"{n}.png,{line}" for n, line in enumerate(lines))])
    (root / "metadata.csv").write_text(text)
    return root


@pytest.mark.parametrize(("content", "names"), CSV.values(), ids=CSV)
def test_a_column_of_labels_in_a_csv_file(tmp_path, content, names):
    assert open_data(str(listed(tmp_path, content))).label_names == names


@pytest.mark.parametrize("empty", ["", "nan", "NaN"])
@pytest.mark.parametrize("label", ["1", "1.0", "01"])
def test_rows_of_a_csv_file_without_a_label_are_named(tmp_path, empty, label):
    with pytest.raises(ArtifactError, match=r"1 of 4 rows have no label \(.*2.png\)"):
        open_data(str(listed(tmp_path, f"label\n0\n{label}\n{empty}\n{label}")))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0.0, 1.0, 0.0, 1.0], ("0", "1")),
        ([True, False, True, False], ("False", "True")),
        ([[1], [2], [1], [1, 2]], ()),
    ],
)
def test_a_column_of_labels_in_a_file_of_json_lines(tmp_path, labels, names):
    fill(tmp_path, ".", count=4)
    lines = [json.dumps({"file_name": f"{n}.png", "label": label}) for n, label in enumerate(labels)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = open_data(str(tmp_path))
    assert data.label_names == names
    assert names or said(data.notes, "no labels", "several labels a row")


@pytest.mark.parametrize("columns", ["caption", "label,caption"])
def test_class_folders_beside_metadata_without_labels_are_the_classes(tmp_path, columns):
    fill(tmp_path, "cat", "dog")
    rest = "," * columns.count(",") + "a picture"
    rows = [f"{name}/{n}.png,{rest}" for name in ("cat", "dog") for n in range(2)]
    (tmp_path / "metadata.csv").write_text("\n".join([f"file_name,{columns}", *rows]))
    data = open_data(str(tmp_path))
    assert "2 classes: cat (2), dog (2)" in data.notes
    assert said(data.notes, "labels: not in the metadata", "caption")


def test_metadata_with_labels_wins_over_class_folders(tmp_path):
    fill(tmp_path, "cat", "dog")
    rows = [f"{name}/{n}.png,{n}x" for name in ("cat", "dog") for n in range(2)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    assert open_data(str(tmp_path)).label_names == ("0x", "1x")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([0, 1, 0, 1]), ("0", "1")),
        (np.array([0.0, 1.0, 0.0, 1.0]), ("0", "1")),
        (np.array(["b", "a", "b", "a"]), ("a", "b")),
        (np.eye(4)[::-1] + np.eye(4), ()),
    ],
)
def test_labels_of_an_array(tmp_path, labels, names):
    np.savez(tmp_path / "a.npz", images=np.arange(4 * 48, dtype=np.uint8).reshape(4, 6, 8), label=labels)
    data = open_data(str(tmp_path / "a.npz"))
    assert data.label_names == names
    assert names or said(data.notes, "several labels a row")


def test_a_label_column_of_a_folder_without_tables_is_refused(tmp_path):
    fill(tmp_path, "cat")
    with pytest.raises(UsageError, match="--label-column applies to tables and metadata files"):
        open_data(str(tmp_path), label_column="x")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ArtifactError, match="give one kind"):
        open_data(str(tmp_path))
