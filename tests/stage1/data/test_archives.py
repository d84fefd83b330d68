"""Archives as DATA: the same rows, classes and splits as the folder that they were packed from."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.data.sources import Data, open_data
from vq_prior.core.errors import ArtifactError, UsageError


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


CLASSES = {f"{kind}/{number:02d}.png": picture(n * 100 + number) for n, kind in enumerate("ab") for number in range(12)}
SPLITS = {f"{'val' if number > 8 else 'train'}/{name}": c for number, (name, c) in enumerate(CLASSES.items())}
LISTED = {f"{number:02d}.png": picture(number) for number in range(12)}
LISTED["metadata.csv"] = b"file_name,label\n" + b"".join(b"%02d.png,%s\n" % (n, b"xy"[n % 2 :][:1]) for n in range(12))


CLASSES_AND_FOLDER = {**CLASSES, "c/": b""}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(content))
    return path


def told(data: Data) -> Any:
    splits = (data.train, data.validation)
    return data.data_id, data.label_names, [(len(rows), rows.labels.tolist()) for rows in splits]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("files", [CLASSES, SPLITS, LISTED], ids=["classes", "splits", "metadata"])
def test_an_archive_is_the_folder_that_it_was_packed_from(files: dict[str, bytes], suffix: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    packed = open_data(str(pack(tmp_path / f"packed{suffix}", files)))
    assert told(packed) == told(open_data(str(tmp_path / "folder")))
    assert packed.train.name(0).startswith(str(tmp_path / f"packed{suffix}") + "/")
    assert packed.train.encoded(0) in files.values()


def shard(numbers: range, **more: bytes) -> dict[str, bytes]:
    files = {}
    for number in numbers:
        files |= {f"{number:06d}.png": picture(number), f"{number:06d}.cls": b"%d" % (number % 3)}
        files |= {f"{number:06d}.json": b'{"kind": "%c"}' % b"pq"[number % 2]}
        files |= {f"{number:06d}.{ending}": content for ending, content in more.items()}
    return files


def test_shards_of_a_webdataset_are_samples_with_their_labels(tmp_path: Path) -> None:
    pack(tmp_path / "train-000000.tar", shard(range(20)))
    pack(tmp_path / "train-000001.tar", shard(range(20, 35)))
    pack(tmp_path / "val-000000.tar", shard(range(35, 41)))
    pack(tmp_path / "test-000000.tar", shard(range(41, 44)))
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.validation), data.label_names) == (35, 6, ("0", "1", "2"))
    assert data.train.labels.tolist() == [number % 3 for number in range(35)]
    assert data.train.encoded(22) == picture(22)
    assert any("1 test shard(s) untouched" in note for note in data.notes)
    assert open_data(str(tmp_path), label_column="kind").label_names == ("p", "q")
    alone = open_data(str(tmp_path / "train-000000.tar"))
    assert len(alone.train) + len(alone.validation) == 20


def test_what_is_ambiguous_or_damaged_in_an_archive_is_refused_by_name(tmp_path: Path) -> None:
    two = pack(tmp_path / "two.tar", shard(range(4), **{"seg.png": picture(1)}))
    with pytest.raises(UsageError, match=r"png, seg.png.*--image-column png"):
        open_data(str(two))
    assert len(open_data(str(two), image_column="png").train) == 3
    whole = pack(tmp_path / "whole.tar", CLASSES).read_bytes()
    for length in (len(whole) // 2 + 100, 1024, 5 * 1024 + 512):  # the last two at the border of two files
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"cut.tar"):
            open_data(str(tmp_path / "cut.tar"))
    (tmp_path / "no.zip").write_bytes(b"PK no archive")
    with pytest.raises(ArtifactError, match=r"not a readable .zip"):
        open_data(str(tmp_path / "no.zip"))
    for name in ("../out.png", "/abs.png"):
        with pytest.raises(ArtifactError, match="no plain relative path"):
            open_data(str(pack(tmp_path / "bad.tar", {name: picture(0)})))
    assert len(open_data(str(pack(tmp_path / "folder.tar", CLASSES_AND_FOLDER))).train) > 20
    with pytest.raises(ArtifactError, match=r"words.zip holds no images"):
        open_data(str(pack(tmp_path / "words.zip", {"a.txt": b"a"})))
    data = bytearray(pack(tmp_path / "flip.zip", CLASSES).read_bytes())
    data[60] ^= 255
    (tmp_path / "flip.zip").write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"flip.zip: a/00.png cannot be read"):
        open_data(str(tmp_path / "flip.zip"))
