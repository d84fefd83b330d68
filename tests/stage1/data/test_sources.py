"""DATA: every form a user may give, what is refused, and how pictures become pixels."""

import csv
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.data.loading import load_rows, stored_ahead, workers_for
from stage1_vqvae.data.sources import Data, open_data
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.files import read_header, read_picture
from stage1_vqvae.modalities.pictures.values import Transform
from vq_prior.core.disk.code_store import held_out_rows
from vq_prior.core.errors import ArtifactError, UsageError


def picture(value: int, *, size: tuple[int, int] = (8, 6), mode: str = "L") -> Image.Image:
    return Image.new("L", size, value).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def write(path: Path, value: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(value, **options)))
    return path


def first_values(data: Data) -> list[int]:
    """The grey value of every picture, which says which one it is; training rows, then held-out ones."""
    transform = Transform(6, 8, 1)
    rows = (data.train, data.validation)
    pixels = [load_rows(part, PICTURES, transform, num_workers=1) for part in rows]
    return [int(value) for part in pixels for value in part.stored(range(len(part)))[:, 0, 0, 0]]


def table(path: Path, values: list[int], *, features: dict | None = None, **columns: list) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": encoded(picture(value)), "path": None} for value in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    made = pa.table({"image": pa.array(images, kind), **columns})
    if features is not None:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(made, path, row_group_size=2)
    else:
        with pa.ipc.new_stream(path, made.schema) as writer:
            writer.write_table(made)
    return path


def test_digits_are_named_and_spread_over_the_byte_range() -> None:
    data = open_data("digits")
    assert (len(data.train), len(data.validation)) == (1708, 89)
    assert data.label_names[7] == "seven"
    facts = data.facts()
    assert facts.common_shape == (8, 8)
    assert facts.channels == 1
    pixels = load_rows(data.train, PICTURES, Transform(8, 8, 1)).stored(range(1708))
    assert set(np.unique(pixels)) == {int(np.floor(v * 255 / 16 + 0.5)) for v in range(17)}
    assert np.array_equal(data.validation.source_index, held_out_rows(1797))


def test_flat_folder_is_sorted_and_unlabelled(tmp_path: Path) -> None:
    for value in (30, 10, 20):
        write(tmp_path / f"{value}.png", value)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.png").write_bytes(b"")
    data = open_data(str(tmp_path))
    assert data.train.labels is None
    assert data.label_names == ()
    assert first_values(data) == [10, 20, 30]
    assert any("skipped 1 file(s) that are no images" in note for note in data.notes)
    assert any("skipped 1 hidden" in note for note in data.notes)


def test_class_folders_are_sorted(tmp_path: Path) -> None:
    for name, value in (("dog", 1), ("cat", 2), ("cat/deep", 3)):
        write(tmp_path / name / "x.png", value)
    data = open_data(str(tmp_path))
    assert data.label_names == ("cat", "dog")
    assert first_values(data) == [3, 2, 1]
    assert data.train.labels.tolist() == [0, 0]
    assert data.validation.labels.tolist() == [1]


def test_split_folders_keep_their_split_and_leave_test_alone(tmp_path: Path) -> None:
    for split, value in (("train", 1), ("val", 2), ("test", 3)):
        for name in ("a", "b"):
            write(tmp_path / split / name / "x.png", value)
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.validation)) == (2, 2)
    assert data.label_names == ("a", "b")
    assert first_values(data) == [1, 1, 2, 2]
    assert any("left the 2 images of test/ untouched" in note for note in data.notes)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_names_the_labels(tmp_path: Path, kind: str) -> None:
    rows = [{"file_name": f"{n}.png", "label": n % 2, "mood": "sad" if n else "glad"} for n in range(4)]
    for number in range(5):
        write(tmp_path / f"{number}.png", number)
    if kind == "csv":
        with (tmp_path / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "label", "mood"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = open_data(str(tmp_path))
    assert data.label_names == ("0", "1")
    assert data.train.labels.tolist() == [0, 1, 0]
    assert any("skipped 1 image(s) that the metadata does not list" in note for note in data.notes)
    assert open_data(str(tmp_path), label_column="mood").label_names == ("glad", "sad")
    with pytest.raises(UsageError, match="--label-column hue is not in"):
        open_data(str(tmp_path), label_column="hue")


def test_numbers_with_leading_zeros_are_names(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"{number}.png", number)
    lines = [f"{number}.png,{1 + number % 11:02d}" for number in range(40)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    data = open_data(str(tmp_path))
    assert data.label_names == tuple(f"{number:02d}" for number in range(1, 12))
    assert data.label_names[data.train.labels[0]] == "01"


def test_metadata_that_names_a_missing_or_outer_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("file_name,label\na.png,x\nb.png,y\n")
    with pytest.raises(ArtifactError, match=r"b\.png is listed in the metadata but is not there"):
        open_data(str(tmp_path))
    metadata.write_text("file_name,label\n../a.png,x\n")
    with pytest.raises(ArtifactError, match="must be a path within the folder"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_table_reads_features_and_columns(tmp_path: Path, suffix: str) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["tea", "ale", "gin"]}}
    path = table(tmp_path / f"data.{suffix}", [5, 6, 7], features=features, label=[2, 0, 0], other=["u", "v", "u"])
    data = open_data(str(path))
    assert data.label_names == ("tea", "ale", "gin")
    assert data.train.labels.tolist() == [2, 0]
    assert first_values(data) == [5, 6, 7]
    assert open_data(str(path), label_column="other").label_names == ("u", "v")
    with pytest.raises(UsageError, match=r"--image-column photo is not in .* which has image, label, other"):
        open_data(str(path), image_column="photo")


def test_folder_of_tables_is_split_by_name(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train-00000-of-00002.parquet", [1, 2], label=[0, 1])
    table(tmp_path / "data" / "train-00001-of-00002.parquet", [3], label=[1])
    table(tmp_path / "data" / "validation-00000-of-00001.parquet", [4], label=[1])
    table(tmp_path / "data" / "test-00000-of-00001.parquet", [9], label=[1])
    data = open_data(str(tmp_path))
    assert first_values(data) == [1, 2, 3, 4]
    assert (len(data.train), len(data.validation)) == (3, 1)
    assert data.label_names == ("0", "1")


def test_hub_data_set_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "owner" / "name" / "train.parquet", [1, 2, 3], features={"image": {"_type": "Image"}})
    import datasets

    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, revision: real(str(tmp_path / name), cache_dir=str(tmp_path / "cache")),  # noqa: ARG005
    )
    assert first_values(open_data("owner/name@main")) == [1, 2, 3]


def test_data_id_is_the_content_and_nothing_else(tmp_path: Path) -> None:
    for root in ("one", "two"):
        for name, value in (("a/1.png", 1), ("b/2.png", 2), ("b/3.png", 3)):
            write(tmp_path / root / name, value)
    reference = open_data(str(tmp_path / "one"))
    assert open_data(str(tmp_path / "two"), num_workers=3).data_id == reference.data_id
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert open_data(str(tmp_path / "two")).data_id != reference.data_id  # another label name
    write(tmp_path / "one" / "a/1.png", 9)
    assert open_data(str(tmp_path / "one")).data_id != reference.data_id


def _text(path: Path) -> None:
    (path / "bad.png").write_text("this is text")


def _empty(path: Path) -> None:
    (path / "bad.png").write_bytes(b"")


def _header_only(path: Path) -> None:
    (path / "bad.png").write_bytes(encoded(picture(1))[:12])


def _bomb(path: Path) -> None:
    (path / "bad.png").write_bytes(encoded(Image.new("1", (20_000, 4))))


@pytest.mark.parametrize("damage", [_text, _empty, _header_only, _bomb])
def test_bad_header_is_named_before_anything_is_decoded(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write(tmp_path / "good.png", 1)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=r"bad\.png") as caught:
        open_data(str(tmp_path))
    assert caught.value.exit_code == 3


def test_truncated_picture_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(encoded(noise))
    (tmp_path / "b.png").write_bytes(encoded(noise)[:2000])
    data = open_data(str(tmp_path))
    with pytest.raises(ArtifactError, match=r"b\.png cannot be decoded"):
        load_rows(data.train, PICTURES, Transform(8, 8, 1))


@pytest.mark.parametrize("data", ["no/such/folder", "missing", "/nowhere/at/all", "digitz"])
def test_missing_path_does_not_exist(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_data(data)


def test_empty_folder_and_single_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no images"):
        open_data(str(tmp_path))
    write(tmp_path / "a.png", 1)
    with pytest.raises(ArtifactError, match="at least 2 images"):
        open_data(str(tmp_path))


def test_partly_labelled_table_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", [1, 2], label=[0, None])
    with pytest.raises(ArtifactError, match="1 of 2 rows have no label"):
        open_data(str(path))


def test_facts_take_the_common_size(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", number, size=(40, 48))
    write(tmp_path / "odd.png", 1, size=(100, 90), mode="RGB")
    facts = open_data(str(tmp_path)).facts()
    assert facts.common_shape == (48, 40)
    assert facts.short_side == 40
    assert facts.channels == 3


GREY = Transform(6, 8, 1)
COLOUR = Transform(6, 8, 3)


def corner(data: bytes, transform: Transform) -> list[int]:
    return read_picture(data, transform, lambda: "picture")[0, 0].tolist()


def test_alpha_is_laid_over_white() -> None:
    half = Image.new("RGBA", (8, 6), (0, 0, 200, 51))  # a fifth of the blue, four fifths of white
    assert corner(encoded(half), COLOUR) == [204, 204, 244]
    assert corner(encoded(Image.new("LA", (8, 6), (0, 0))), GREY) == [255]


def test_palette_follows_its_colours_and_its_transparency() -> None:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert corner(encoded(image), COLOUR) == [10, 20, 30]
    assert corner(encoded(image, transparency=1), COLOUR) == [255, 255, 255]
    assert read_header(encoded(image), lambda: "p").channels == 3


def test_sixteen_bits_become_eight() -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65534, 65535, 300]], dtype=np.uint16)
    data = encoded(Image.fromarray(values))
    expected = np.floor(values.astype(np.float64) * 255 / 65535 + 0.5)
    assert np.array_equal(read_picture(data, Transform(2, 4, 1), lambda: "x")[..., 0], expected)
    assert read_header(data, lambda: "x").channels == 1


def test_cmyk_and_grey_become_rgb() -> None:
    assert corner(encoded(Image.new("CMYK", (8, 6), (0, 0, 0, 255)), "TIFF"), COLOUR) == [0, 0, 0]
    assert corner(encoded(Image.new("CMYK", (8, 6), (255, 0, 0, 0)), "TIFF"), COLOUR) == [0, 255, 255]
    assert corner(encoded(picture(77)), COLOUR) == [77, 77, 77]


def test_exif_rotation_is_applied() -> None:
    image = Image.new("L", (4, 6), 0)
    image.putpixel((0, 5), 255)  # bottom left; a turn by 90 degrees clockwise brings it to the top left
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, exif=exif)
    assert read_header(data, lambda: "x").shape == (4, 6)
    pixels = read_picture(data, Transform(4, 6, 1), lambda: "x")[..., 0]
    assert pixels[0, 0] == 255
    assert pixels.sum() == 255


def test_picture_of_the_right_size_is_untouched() -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(read_picture(encoded(Image.fromarray(values)), COLOUR, lambda: "x"), values)


def test_resize_covers_and_crops_the_centre() -> None:
    values = np.zeros((20, 60), dtype=np.uint8)
    values[:, 20:40] = 200  # the centred square
    pixels = read_picture(encoded(Image.fromarray(values)), Transform(10, 10, 1), lambda: "x")[..., 0]
    # columns 1 to 8 are far enough from the edge for the bicubic kernel (2 pixels of the result)
    assert (pixels[:, 2:8] == 200).all()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_cached_and_lazy_pixels_are_the_same(num_workers: int) -> None:
    data = open_data("digits")
    cached = load_rows(data.train, PICTURES, Transform(12, 12, 3), num_workers=num_workers)
    lazy = load_rows(data.train, PICTURES, Transform(12, 12, 3), num_workers=num_workers, max_bytes=0)
    rows = [5, 3, 1700, 3]
    assert np.array_equal(cached.stored(rows), lazy.stored(rows))


def test_pictures_are_read_by_as_many_threads_as_they_are_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for seconds, threads in ((0.0, 1), (1e-4, 4), (3e-3, 16)):
        assert workers_for(lambda _, seconds=seconds: time.sleep(seconds) if seconds else None, 5) == threads
    assert workers_for(int, 0) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers_for(lambda _: time.sleep(3e-3), 5) == 1


@pytest.mark.parametrize("worth", [1, 4])
def test_batches_are_the_same_whoever_reads_them(monkeypatch: pytest.MonkeyPatch, worth: int) -> None:
    rows, transform = open_data("digits").train.subset(range(150)), Transform(8, 8, 1)
    alone = list(stored_ahead(rows, PICTURES, transform, 64, num_workers=1))
    monkeypatch.setattr("stage1_vqvae.data.loading.workers_for", lambda *_: worth)
    found = list(stored_ahead(rows, PICTURES, transform, 64, num_workers=None))
    assert [len(batch) for batch in found] == [64, 64, 22]
    assert all(np.array_equal(one, other) for one, other in zip(alone, found, strict=True))


def test_other_columns_of_images_are_named(tmp_path: Path) -> None:
    path = table(tmp_path / "two.parquet", [1, 2, 3, 4], mask=[encoded(picture(value)) for value in (4, 3, 2, 1)])
    said = "took the column image, not mask; --image-column chooses"
    assert any(said in note for note in open_data(str(path)).notes)
    assert not any("took the column" in note for note in open_data(str(path), image_column="mask").notes)
