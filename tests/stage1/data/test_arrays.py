"""Files of several arrays: which are pictures, labels and splits is told by their names, alike in every format."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stage1_vqvae.data.check import check_data
from stage1_vqvae.data.sources import Data, open_data
from stage1_vqvae.settings import CheckData
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError

RNG = np.random.default_rng(0)


def pixels(count: int, *more: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 8, 6, *more), dtype=np.uint8)


def digits(count: int) -> np.ndarray:
    return np.arange(count) % 3


def write(path: Path, arrays: dict[str, Any]) -> str:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                chunks = (5, *array.shape[1:]) if array.ndim > 2 else None
                kept = array.astype(h5py.string_dtype()) if array.dtype.kind == "U" else array
                file.create_dataset(name, data=kept, chunks=chunks, compression="gzip" if chunks else None)
    return str(path)


def rows_of(data: Data) -> np.ndarray:
    """All rows of both splits, in the order of the source."""
    splits = (data.train, data.validation)
    parts = {int(at): split.rows.encoded(int(at)) for split in splits for at in split.source_index}
    return np.stack([parts[at] for at in sorted(parts)])


def labels_of(data: Data) -> list[int]:
    parts = [pair for s in (data.train, data.validation) for pair in zip(s.source_index, s.labels, strict=True)]
    return [int(label) for _, label in sorted(parts)]


def said(data: Data, *parts: str) -> bool:
    return any(all(part in note for part in parts) for note in data.notes)


SUFFIXES = [".npz", ".h5"]
KERAS = {"x_train": pixels(20), "y_train": digits(20), "x_test": pixels(6), "y_test": digits(6)}
MEDMNIST = {
    f"{split}_{what}": pixels(count, 3) if what == "images" else digits(count)[:, None].astype(np.uint8)
    for split, count in (("train", 12), ("val", 7), ("test", 5))
    for what in ("images", "labels")
}
GALAXY10 = {"images": pixels(9, 3), "ans": digits(9), "ra": np.ones(9), "redshift": np.ones(9)}
COURSE = {"train_set_x": pixels(9, 3), "train_set_y": digits(9), "list_classes": np.array([b"cat", b"no cat", b"dog"])}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_train_and_test_arrays_with_their_labels(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"mnist{suffix}", KERAS)
    data = open_data(path)
    assert np.array_equal(rows_of(data), KERAS["x_train"])
    assert labels_of(data) == KERAS["y_train"].tolist()
    assert said(data, "arrays: x_train -> train, y_train -> train, x_test -> test, y_test -> test")
    assert said(data, "left the test arrays untouched (x_test, y_test)")
    assert data.notes[0] == f"data {path}: pictures, uint8 [20, 8, 6]"
    test = open_data(path, split="test")
    assert np.array_equal(rows_of(test), KERAS["x_test"])
    assert labels_of(test) == KERAS["y_test"].tolist()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_own_validation_arrays_and_labels_in_a_column(suffix: str, tmp_path: Path) -> None:
    data = open_data(write(tmp_path / f"blood{suffix}", MEDMNIST))
    for split, name in ((data.train, "train"), (data.validation, "val")):
        assert np.array_equal([split.encoded(row) for row in range(len(split))], MEDMNIST[f"{name}_images"])
        assert split.labels is not None
        assert split.labels.tolist() == MEDMNIST[f"{name}_labels"][:, 0].tolist()
    assert data.train.name(2) == f"{tmp_path / f'blood{suffix}'}: train_images row 2"
    some = open_data(str(tmp_path / f"blood{suffix}"), classes="2,0", max_images=4)
    assert (len(some.train), len(some.validation), some.label_names) == (4, 4, ("0", "2"))
    columns = {"image_column": "images", "label_column": "train_labels"}
    by_rest = open_data(str(tmp_path / f"blood{suffix}"), split="val", **columns)
    assert labels_of(by_rest) == MEDMNIST["val_labels"][:, 0].tolist()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_that_are_neither_are_told(suffix: str, tmp_path: Path) -> None:
    galaxies = open_data(write(tmp_path / f"galaxies{suffix}", GALAXY10))
    assert labels_of(galaxies) == GALAXY10["ans"].tolist()
    assert said(galaxies, "did not read the array(s) ra, redshift")
    course = open_data(write(tmp_path / f"train_cats{suffix}", COURSE))
    assert labels_of(course) == COURSE["train_set_y"].tolist()
    assert said(course, "did not read the array(s) list_classes")
    other = open_data(write(tmp_path / f"cifar{suffix}", {"data": pixels(8), "fine": digits(8)}))
    assert said(other, "no labels: no column is called label; --label-column takes another (fine)")
    assert labels_of(open_data(str(tmp_path / f"cifar{suffix}"), label_column="fine")) == digits(8).tolist()
    test_alone = {name.replace("train", "test"): array for name, array in COURSE.items()}
    assert len(rows_of(open_data(write(tmp_path / f"test_cats{suffix}", test_alone)))) == 9


def test_all_formats_give_the_same_data(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", KERAS["x_train"])
    ids = {open_data(write(tmp_path / f"a{s}", {"x": KERAS["x_train"]})).data_id for s in SUFFIXES}
    assert ids == {open_data(str(tmp_path / "a.npy")).data_id}
    text = {"images": pixels(6), "labels": np.array(["cat", "dög"] * 3)}
    both = [open_data(write(tmp_path / f"b{suffix}", text)) for suffix in SUFFIXES]
    assert both[0].data_id == both[1].data_id
    assert both[0].label_names == both[1].label_names == ("cat", "dög")
    groups = {name.replace("_", "/"): array for name, array in MEDMNIST.items()}
    nested = open_data(write(tmp_path / "nested.hdf5", groups))
    assert nested.data_id == open_data(write(tmp_path / "flat.h5", MEDMNIST)).data_id
    deep = {"x": RNG.integers(0, 4096, (6, 8, 8)).astype(">u2"), "y": np.arange(6) % 2 == 0}
    big_endian = open_data(write(tmp_path / "deep.h5", deep))
    assert np.array_equal(rows_of(big_endian), deep["x"])
    assert big_endian.label_names == ("False", "True")


FLOATS = {"data": pixels(6), "labels": np.array([0.0, 1.0, 2.0] * 2)}
MANY = {"images": pixels(6), "labels": RNG.integers(0, 2, (6, 14)) | np.eye(14, dtype=np.int64)[:6] | 1}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_of_floats_and_of_several_columns(suffix: str, tmp_path: Path) -> None:
    floats = open_data(write(tmp_path / f"a{suffix}", FLOATS))
    assert labels_of(floats) == [0, 1, 2, 0, 1, 2]
    assert said(floats, "labels: column labels holds whole numbers such as 0.0, read as integers")
    several = open_data(write(tmp_path / f"b{suffix}", MANY))
    assert several.label_names == ()
    assert said(several, "no labels", "several labels a row")


REFUSED = [
    ({"x": pixels(6), "y": np.eye(3)[digits(6)]}, {}, UsageError, r"y is \[6, 3\], a .*\(one-hot\)"),
    ({"x": pixels(6), "y": digits(5)}, {}, ArtifactError, r"y must be 6 labels, got int64 \[5\]"),
    ({"x": pixels(6), "y": digits(6), "labels": digits(6)}, {}, UsageError, "labels in .*; choose by --label-column"),
    ({"images": pixels(6), "masks": pixels(6)}, {}, ArtifactError, r"got images uint8 \[6, 8, 6\], .*--image-column"),
    ({"a": digits(6), "b": digits(6)}, {}, ArtifactError, r"must hold one array of rows \[N, ...\], got a int64 \[6\]"),
    ({"x_val": pixels(6), "x_test": pixels(6)}, {}, ArtifactError, "no arrays to train on, only .*--split"),
    ({"x": pixels(6)}, {"split": "test"}, UsageError, "--split test is not in .*no arrays of splits by their names"),
    (KERAS, {"split": "val"}, UsageError, "--split val is not in .*, which has train, test"),
    (KERAS, {"label_column": "kind"}, UsageError, "--label-column kind is not in .*x_train, y_train"),
    (KERAS, {"image_column": "kind"}, UsageError, "--image-column kind is not in"),
    ({"x": np.zeros((6, 8, 8, 3)), "y": digits(6)}, {}, ArtifactError, r"looks like arrays \(float64 \[6, 8, 8, 3\]\)"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("arrays", "asked", "kind", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_cannot_be_told_apart_is_refused(
    arrays: dict[str, Any], asked: dict[str, str], kind: type[Exception], words: str, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        open_data(write(tmp_path / f"a{suffix}", arrays), **asked)


def test_masks_are_left_where_images_are_named(tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "a.npz", REFUSED[3][0]), image_column="images")
    assert np.array_equal(rows_of(data), REFUSED[3][0]["images"])
    assert said(data, "did not read the array(s) masks")
    assert data.notes[0].endswith("pictures, by --image-column")


def test_hdf5_that_lies_in_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(6 * 48))
    other = write(tmp_path / "other.h5", {"x": pixels(6)})
    layout = h5py.VirtualLayout((6, 8, 6), np.uint8)
    layout[:] = h5py.VirtualSource(other, "x", (6, 8, 6))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("x", (6, 8, 6), np.uint8, external=[(str(tmp_path / "secret"), 0, 6 * 48)])
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["x"] = h5py.ExternalLink(other, "x")
    for name in ("virtual", "external", "linked"):
        with pytest.raises(ArtifactError, match=rf"{name}.h5: x lies in another file; copy it into this one"):
            open_data(str(tmp_path / f"{name}.h5"))


def test_damage_is_named_and_pickles_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("a.npz", "numpy"), ("a.h5", "HDF5")):
        whole = Path(write(tmp_path / name, {"x": pixels(200)})).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArtifactError, match=f"{name} is not a readable {kind} file"):
            open_data(str(tmp_path / name))
    with h5py.File(tmp_path / "flip.h5", "w") as file:
        made = file.create_dataset("x", data=pixels(20), chunks=(5, 8, 6), compression="gzip", fletcher32=True)
        place = made.id.get_chunk_info(2).byte_offset
    flipped = bytearray((tmp_path / "flip.h5").read_bytes())
    flipped[place + 20] ^= 255
    (tmp_path / "flip.h5").write_bytes(bytes(flipped))
    with pytest.raises(ArtifactError, match=r"flip.h5 row 10 cannot be read"):
        open_data(str(tmp_path / "flip.h5"))
    np.savez(tmp_path / "objects.npz", x=pixels(6), y=digits(6), names=np.array([{}, []], dtype=object))
    assert said(open_data(str(tmp_path / "objects.npz")), "did not read the array(s) names")
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        header = str({"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 8, 8)}).ljust(117) + "\n"
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("x.npy", start + header.encode() + bytes(64))
    with pytest.raises(ArtifactError, match=r"x.npy has another size than its header says"):
        open_data(str(tmp_path / "lie.npz"))
    np.savez(tmp_path / "b.npz", x=pixels(6))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")  # what a file is, it says itself
    assert len(rows_of(open_data(str(tmp_path / "b.npy")))) == 6
    path = write(tmp_path / "c.h5", {"x": pixels(6)})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EnvironmentFault, match=r'needs h5py; run `pip install "vq-prior\[hdf5\]"`'):
        open_data(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_list_of_checked_arrays_stands_for_them(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", KERAS)
    check_data(CheckData(path, tmp_path / "list.json", split="test"))
    assert len(json.loads((tmp_path / "list.json").read_text())["splits"]["train"]["sha256"]) == 6
    assert np.array_equal(rows_of(open_data(str(tmp_path / "list.json"))), KERAS["x_test"])
    changed = {**KERAS, "x_test": KERAS["x_test"] ^ 1}
    write(tmp_path / f"a{suffix}", changed)
    with pytest.raises(ArtifactError, match=r"x_test row 0 is not what it was"):
        open_data(str(tmp_path / "list.json"))
