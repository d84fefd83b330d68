"""Columns of lists of images: every image is a row, and those of a list are held out as one."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stage1_vqvae.data.check import check_data
from stage1_vqvae.data.columns import with_columns
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import Data, open_data
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.settings import CheckData
from vq_prior.core.errors import ArtifactError

LENGTHS = [2, 1, 3, 0, 2, 1]
FILES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
KINDS = {
    "bytes": pa.list_(pa.binary()),
    "large": pa.large_list(pa.large_binary()),
    "objects": pa.list_(FILES),
}


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def lists(kind: pa.DataType, lengths: list[int] = LENGTHS) -> pa.Array:
    """Lists of pictures of the values 10 r + k of row r, place k; a list of no length is null."""
    contents = [[picture(10 * row + place) for place in range(length)] for row, length in enumerate(lengths)]
    if kind.value_type == FILES:
        made = [[{"bytes": each, "path": "x.png"} for each in some] for some in contents]
        return pa.array([some or None for some in made], kind)
    return pa.array([some or None for some in contents], kind)


def write(path: Path, columns: dict[str, Any], feature: Any = None, rows_per_block: int = 2) -> str:
    table = pa.table(columns)
    if feature is not None:
        told = {"info": {"features": {"images": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_per_block)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=rows_per_block)
    return str(path)


def values_of(rows: Any) -> list[int]:
    stored = load_rows(rows, PICTURES, Transform(6, 8, 1), num_workers=2).stored(range(len(rows)))
    return stored[:, 0, 0, 0].tolist()


def both(data: Data) -> tuple[list[int], list[int]]:
    return values_of(data.train), values_of(data.validation)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_a_row_and_a_list_is_held_out_whole(kind: str, suffix: str, tmp_path: Path) -> None:
    columns = {"images": lists(KINDS[kind]), "label": list("aabbab"), "size": np.arange(6) / 2}
    path = write(tmp_path / f"a{suffix}", columns)
    data = open_data(path)
    assert both(data) == ([0, 1, 10, 20, 21, 22, 40, 41], [50])
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert data.train.name(5) == f"{path} row 2 image 2"
    told = "5 lists hold 9 images, each a row; those of a list are held out together; 1 row(s) without images are none"
    assert told in data.notes
    beside = with_columns(data, ["size"])
    assert beside.train.columns["size"].tolist() == [0, 0, 0.5, 1, 1, 1, 2, 2]
    flat = {"image": [picture(value) for value in (0, 1, 10, 20, 21, 22, 40, 41, 50)], "label": list("aaabbbaab")}
    assert data.data_id == open_data(write(tmp_path / "flat.parquet", flat)).data_id


@pytest.mark.parametrize(
    "feature",
    [{"feature": {"_type": "Image"}, "_type": kind} for kind in ("List", "Sequence")] + [[{"_type": "Image"}]],
    ids=["list", "sequence", "brackets"],
)
def test_type_of_the_features_says_it_too(feature: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"other": [b"no picture"] * 6, "images": lists(KINDS["objects"])}, feature)
    assert len(open_data(path).train) == 8


def test_a_column_of_single_images_is_taken_before_lists(tmp_path: Path) -> None:
    columns = {"images": lists(KINDS["bytes"]), "image": [picture(200 + row) for row in range(6)]}
    path = write(tmp_path / "a.parquet", columns)
    assert both(open_data(path)) == ([200, 201, 202, 203, 204], [205])
    assert both(open_data(path, image_column="images"))[1] == [50]


def test_classes_some_images_and_a_split_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"images": lists(KINDS["bytes"], [3] * 25), "label": ["a", "b"] * 12 + ["a"]})
    data = open_data(str(tmp_path))
    assert values_of(data.validation) == [190, 191, 192]  # the twentieth list
    some = open_data(str(tmp_path), classes="b", max_images=20)
    assert set(values_of(some.validation)) < {190, 191, 192}
    assert {value // 10 % 2 for value in values_of(some.train)} == {1}
    assert not {value // 10 for value in values_of(some.train)} & {19}
    write(tmp_path / "validation.parquet", {"images": lists(KINDS["bytes"]), "label": ["a"] * 6})
    own = open_data(str(tmp_path))
    assert values_of(own.validation) == [0, 1, 10, 20, 21, 22, 40, 41, 50]
    assert any(note.startswith("5 lists of the validation split hold 9 images") for note in own.notes)


def test_frames_of_files_in_lists_stay_with_their_list(tmp_path: Path) -> None:
    def moving(value: int) -> bytes:
        frames, file = [Image.fromarray(np.full((6, 8), value + n, np.uint8)) for n in range(2)], io.BytesIO()
        frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
        return file.getvalue()

    path = write(tmp_path / "a.parquet", {"images": [[moving(10 * row), picture(10 * row + 5)] for row in range(3)]})
    data = open_data(path, frames="all")
    assert both(data) == ([0, 1, 5, 10, 11, 15], [20, 21, 25])
    assert data.train.name(1) == f"{path} row 0 image 0 frame 1"
    assert data.train.file_name(1) == f"{path} row 0"


def test_bad_image_of_a_list_is_named_and_left_out_alone(tmp_path: Path) -> None:
    contents = lists(KINDS["bytes"]).to_pylist()
    contents[2][1], contents[4][0] = b"no picture", None
    path = write(tmp_path / "a.parquet", {"images": pa.array(contents, KINDS["bytes"])})
    with pytest.raises(ArtifactError, match=r"a\.parquet row 2 image 1"):
        open_data(path)
    check_data(CheckData(path, tmp_path / "list.json", policy="skip"))
    listed = json.loads((tmp_path / "list.json").read_text())["splits"]["train"]["bad"]
    assert [row["name"] for row in listed] == [f"{path} row 2 image 1", f"{path} row 4 image 0"]
    assert both(open_data(str(tmp_path / "list.json"))) == ([0, 1, 10, 20, 22, 41], [50])
    one = write(tmp_path / "one.parquet", {"images": lists(KINDS["bytes"], [4])})
    with pytest.raises(ArtifactError, match="holds one list, whose images are held out together; give at least two"):
        open_data(one)


def test_lists_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    columns = {"images": lists(KINDS["objects"]), "label": list("aabbab")}
    feature = {"feature": {"_type": "Image"}, "_type": "List"}
    path = write(tmp_path / "train.parquet", columns, feature)
    files, real = {"train": path}, datasets.load_dataset
    made = real("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    made = made.cast_column("images", datasets.List(datasets.Image()))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision: made)  # noqa: ARG005
    monkeypatch.chdir(tmp_path)
    data = open_data("owner/name")
    assert both(data) == ([0, 1, 10, 20, 21, 22, 40, 41], [50])
    assert data.train.name(5) == "owner/name row 2 image 2"
    assert data.data_id == open_data(path).data_id
