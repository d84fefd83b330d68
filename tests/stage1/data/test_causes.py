"""What is wrong with data that people bring: each has its own cause and remedy, and `check-data` finds all of it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import fill, table
from PIL import Image

from stage1_vqvae.data.hub import _explained
from stage1_vqvae.data.sources import open_data
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import verify_manifest, write_manifest
from vq_prior.core.disk.tensors import read_tensors
from vq_prior.core.errors import ArtifactError, UsageError, VQPriorError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
FTYP = b"\x00\x00\x00\x18ftyp"
FOREIGN = {
    "pointer": (POINTER, "Git LFS pointer.*git lfs pull"),
    "heic": (FTYP + b"heic" + bytes(40), "HEIC picture.*convert it to PNG"),
    "avif": (FTYP + b"avif" + bytes(40), "AVIF picture.*convert it"),
    "video": (FTYP + b"isom" + bytes(40), "a video.*remove it"),
    "web page": (b"\n<!DOCTYPE html><html></html>", "a web page: its download failed.*fetch it anew"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG picture.*convert it"),
    "photoshop": (b"8BPS" + bytes(40), "a Photoshop file"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive"),
    "jpeg xl": (b"\xff\x0a" + bytes(40), "a JPEG XL picture"),
}


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_another_format_is_called_what_it_is(tmp_path, content, message):
    fill(tmp_path, ".", count=3)
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ArtifactError, match=f"photo.jpg is .*{message}"):
        open_data(str(tmp_path))


def test_pictures_in_formats_that_are_not_read_are_named(tmp_path):
    fill(tmp_path, ".", count=3)
    for name in ("a.HEIC", "b.avif"):
        (tmp_path / name).write_bytes(b"x")
    notes = open_data(str(tmp_path)).notes
    assert any("left out 2 picture(s)" in note and "a.HEIC" in note and "PNG or JPEG" in note for note in notes)


@pytest.mark.parametrize("name", ["a.parquet", "a.npy", "a.npz", "metadata.csv/x"])
def test_a_pointer_of_git_lfs_is_called_one_wherever_it_lies(tmp_path, name):
    path = tmp_path / name.partition("/")[0]
    path.write_bytes(POINTER)
    if "/" in name:
        fill(tmp_path, ".")
        path = tmp_path
    with pytest.raises(ArtifactError, match=r"Git LFS pointer.*git lfs pull"):
        open_data(str(path))


def test_pointers_in_place_of_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"right")
    (tmp_path / "config.json").write_bytes(b"{}")
    write_manifest(tmp_path)
    path.write_bytes(POINTER)
    for read in (verify_manifest, lambda folder: read_tensors(folder / "model.safetensors")):
        with pytest.raises(ArtifactError, match=r"model.safetensors is a Git LFS pointer.*git lfs pull"):
            read(tmp_path)


def bad_folder(root: Path) -> None:
    """A folder with a metadata file in which one of each is wrong."""
    fill(root, ".", count=40)
    lines = [f"{n}.png,{'cat' if n % 2 else 'dog'}" for n in range(40)]
    lines[3] = "3.png,"
    lines += ["gone.png,cat", "gone too.png,cat"]
    (root / "4.png").write_bytes(POINTER)
    (root / "5.png").write_bytes(FTYP + b"heic" + bytes(40))
    (root / "6.png").write_bytes(b"")
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))


def test_check_data_lists_and_leaves_out_all_of_them(tmp_path, capsys):
    bad_folder(tmp_path / "data")
    words = ["check-data", str(tmp_path / "data"), "--out", str(tmp_path / "a.json")]
    assert main(words) == 3
    assert main([*words, "--policy", "skip"]) == 0
    told = capsys.readouterr().out.splitlines()
    wanted = {
        "3.png": "has no label",
        "4.png": "Git LFS pointer",
        "5.png": "HEIC",
        "6.png": "is empty",
        "gone.png": "is not there",
        "gone too.png": "is not there",
    }
    for name, why in wanted.items():
        assert any(line.startswith("bad: ") and f"/{name} " in line and why in line for line in told), name
    assert len({line for line in told if line.startswith("bad: ")}) == 6
    data = open_data(str(tmp_path / "a.json"))
    assert len(data.train) + len(data.validation) == 36
    assert data.label_names == ("cat", "dog")


def test_files_that_are_missing_are_named_at_once(tmp_path):
    fill(tmp_path, ".", count=2)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\nx.png,a\ny.png,b\n")
    with pytest.raises(ArtifactError, match=r"x\.png is listed .* not there.*, as are 1 more \(.*y\.png\).*check-data"):
        open_data(str(tmp_path))


def test_rows_of_a_table_without_a_label_are_left_out(tmp_path):
    table(tmp_path / "a.parquet", 0, label=["a", None, "b", "a"])
    words = ["check-data", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "a.json"), "--policy", "skip"]
    assert main(words) == 0
    data = open_data(str(tmp_path / "a.json"))
    assert (len(data.train) + len(data.validation), data.label_names) == (3, ("a", "b"))


LABELS = {
    "stems": ("labels.csv", "id,breed", "{n}", {}),
    "names": ("labels.csv", "id,breed", "{n}.png", {}),
    "paths": ("labels.csv", "id,breed", "pics/{n}.png", {}),
    "paths without suffix": ("labels.csv", "id,breed", "pics/{n}", {}),
    "backslashes": ("labels.csv", "id,breed", "pics\\{n}.png", {}),
    "tabs": ("labels.tsv", "id\tbreed", "{n}", {}),
    "json lines": ("labels.jsonl", "id,breed", "{n}", {}),
    "parquet": ("labels.parquet", "id,breed", "{n}", {}),
    "other columns": ("labels.csv", "x,id,breed", "{n}", {"label_column": "breed"}),
}


@pytest.mark.parametrize(("file", "head", "name", "more"), LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("inside", [True, False])
def test_a_file_of_labels_is_read(tmp_path, monkeypatch, file, head, name, more, inside):
    fill(tmp_path / "data", "pics", count=4)
    separator = "\t" if file.endswith(".tsv") else ","
    columns = head.split(separator)
    rows = [{"x": "1", "id": name.format(n=n), "breed": "pug" if n % 2 else "boxer"} for n in range(4)]
    path = (tmp_path / "data" if inside else tmp_path) / file
    told = [{column: row[column] for column in columns} for row in rows]
    if file.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, told)))
    elif file.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(told), path)
    else:
        path.write_text("\n".join([head, *(separator.join(row[column] for column in columns) for row in rows)]))
    monkeypatch.chdir(tmp_path)
    data = open_data(str(tmp_path / "data"), labels_file=file, file_column="id", **more)
    assert data.label_names == ("boxer", "pug")
    assert [data.train.name(row)[-5] for row in range(3)] == ["0", "1", "2"]
    assert data.train.labels.tolist() == [0, 1, 0]


def test_what_is_wrong_with_a_file_of_labels_is_said(tmp_path):
    fill(tmp_path, "one", "two")
    path = tmp_path / "labels.csv"

    def refused(kind: type[VQPriorError], message: str, **more: str) -> None:
        with pytest.raises(kind, match=message):
            open_data(str(tmp_path), **({"labels_file": "labels.csv"} | more))

    path.write_text("id,label\n0,a\n")
    refused(ArtifactError, "must have a file_name column, got id, label; name another by --file-column")
    refused(UsageError, "--file-column name is not in .*labels.csv, which has id, label", file_column="name")
    refused(ArtifactError, "several files are called 0; write their paths", file_column="id")
    refused(ArtifactError, "--labels-file none.csv is not a file", labels_file="none.csv")
    path.write_text("id,a,b\none/0.png,x,y\n")
    refused(UsageError, "no column label, only a, b, id; name that of the labels by --label-column", file_column="id")
    with pytest.raises(UsageError, match="--file-column id goes with --labels-file"):
        open_data(str(tmp_path), file_column="id")
    with pytest.raises(UsageError, match=r"--labels-file x.csv does not apply to digits"):
        open_data("digits", labels_file="x.csv")


def test_a_table_of_labels_that_is_not_read_is_pointed_to(tmp_path):
    fill(tmp_path, ".", count=3)
    (tmp_path / "labels.csv").write_text("id,label\n0,a\n")
    told = "labels.csv is not read; if it holds labels: --labels-file labels.csv --file-column id"
    assert any(note.startswith(told) for note in open_data(str(tmp_path)).notes)


def test_metadata_may_be_a_parquet_file(tmp_path):
    fill(tmp_path, ".", count=4)
    rows = [{"file_name": f"{n}.png", "label": n % 2, "size": float(n)} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    data = open_data(str(tmp_path))
    assert data.label_names == ("0", "1")
    assert data.train.labels.tolist() == [0, 1, 0]


def test_names_in_metadata_may_have_another_form_of_unicode(tmp_path):
    fill(tmp_path, "cafe\u0301", count=2)
    (tmp_path / "metadata.csv").write_text("file_name,label\ncaf\u00e9/0.png,a\ncaf\u00e9/1.png,b\n", encoding="utf-8")
    assert open_data(str(tmp_path)).label_names == ("a", "b")


@pytest.mark.parametrize("asked", ["test", "Testing"])
def test_a_split_may_be_taken_alone(tmp_path, asked):
    fill(tmp_path, *(f"{split}/{name}" for split in ("Training", "Testing") for name in ("cat", "dog")), count=3)
    data = open_data(str(tmp_path), split=asked)
    names = [data.train.name(row) for row in range(len(data.train))]
    assert len(names) == 5
    assert all("Testing" in name for name in names)
    assert data.label_names == ("cat", "dog")
    with pytest.raises(UsageError, match=r"--split dev is not in .*, which has test, train"):
        open_data(str(tmp_path), split="dev")
    with pytest.raises(UsageError, match="--split test does not apply to digits"):
        open_data("digits", split="test")


def test_a_split_of_tables_may_be_taken_alone(tmp_path):
    table(tmp_path / "train.parquet", 0)
    table(tmp_path / "test.parquet", 100)
    data = open_data(str(tmp_path), split="test")
    assert all("test.parquet" in data.train.name(row) for row in range(len(data.train)))
    with pytest.raises(UsageError, match="--split dev is not among the tables, which are test, train"):
        open_data(str(tmp_path), split="dev")


def test_the_first_cause_of_a_failing_data_set_is_told():
    import datasets

    def failing() -> None:
        try:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        except UnicodeDecodeError as error:
            raise datasets.exceptions.DatasetGenerationError(
                "An error occurred while generating the dataset"
            ) from error

    with pytest.raises(datasets.exceptions.DatasetGenerationError) as raised:
        failing()
    told = str(_explained(raised.value, "owner/name"))
    assert "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte" in told


def test_configurations_and_splits_of_a_hub_data_set(tmp_path, monkeypatch):
    import datasets

    real = datasets.load_dataset
    for config, first in (("small", 0), ("large", 100)):
        for split, more in (("train", 0), ("test", 10), ("extra", 20)):
            (tmp_path / config).mkdir(exist_ok=True)
            table(tmp_path / config / f"{split}.parquet", first + more)
    asked: list[tuple[str, ...]] = []

    def load(name: str, *config: str, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, *config, str(revision)))
        folder = tmp_path / (config[0] if config else "small")
        if not folder.is_dir():
            raise ValueError(f"BuilderConfig '{config[0]}' not found. Available: ['small', 'large']")
        files = {path.stem: str(path) for path in folder.iterdir()}
        made = real("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
        return made.cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path / "small")

    def values(data: str, **more: str) -> set[int]:
        rows = open_data(data, **more)
        from stage1_vqvae.data.loading import load_rows
        from stage1_vqvae.modalities.pictures import PICTURES
        from stage1_vqvae.modalities.pictures.values import Transform

        parts = [load_rows(part, PICTURES, Transform(6, 8, 1)) for part in (rows.train, rows.validation)]
        return {int(value) for part in parts for value in part.stored(range(len(part)))[:, 0, 0, 0]}

    assert values("owner/name") == {0, 1, 2, 3}
    assert values("owner/name:large@main") == {100, 101, 102, 103}
    assert asked == [("owner/name", "None"), ("owner/name", "large", "main")]
    assert values("owner/name:large", split="extra") == {120, 121, 122, 123}
    with pytest.raises(UsageError, match=r"--split dev is not in owner/name, which has .*extra"):
        open_data("owner/name", split="dev")
    with pytest.raises(UsageError, match="owner/name:huge has the configurations small, large; name one"):
        open_data("owner/name:huge")


def test_an_image_of_a_picture_is_still_one(tmp_path):
    """What none of these formats is keeps the message of a damaged picture."""
    fill(tmp_path, ".", count=3)
    (tmp_path / "x.png").write_bytes(b"no picture at all")
    with pytest.raises(ArtifactError, match=r"x.png is not a readable picture"):
        open_data(str(tmp_path))
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "x.png")
    assert len(open_data(str(tmp_path)).train) == 3
