"""The cache of headers and hashes: a second opening reads what is new, and nothing that changed looks unchanged."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import fill
from PIL import Image

from stage1_vqvae.data import remembered
from stage1_vqvae.data.check import check_data
from stage1_vqvae.data.rows import FileRows
from stage1_vqvae.data.sources import Data, open_data
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.settings import CheckData
from vq_prior.core.errors import ArtifactError

CLASSES = ("a", "b")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which is on; files are taken to be settled at once."""
    monkeypatch.delenv(remembered.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "UNSETTLED_NS", -(10**12))
    return tmp_path / "cache" / "vq-prior" / "files"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, as they are."""
    names: list[str] = []
    real = FileRows.encoded

    def encoded(self: FileRows, row: int) -> Any:
        names.append("/".join(self.paths[row].split("/")[-2:]))
        return real(self, row)

    monkeypatch.setattr(FileRows, "encoded", encoded)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "data", *CLASSES, count=3)
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "data" / "b" / "deep.png")
    return tmp_path / "data"


def told(data: Data) -> Any:
    splits = (data.train, data.validation)
    return data.data_id, data.notes, data.label_names, [(s.headers, s.labels.tolist()) for s in splits]


def without_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> Any:
    with monkeypatch.context() as context:
        context.setenv(remembered.SWITCH, "off")
        return told(open_data(str(folder), **asked))


def test_a_second_opening_reads_nothing_and_says_the_same(
    folder: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = told(open_data(str(folder)))
    assert len(read) == 7
    assert len(list(cache.iterdir())) == 1
    read.clear()
    assert told(open_data(str(folder))) == first
    monkeypatch.chdir(folder)
    for place in ("../data", ".", str(folder)):
        assert open_data(place, num_workers=3).data_id == first[0]
    assert open_data(".").train.name(0) == "a/0.png"
    assert read == []


CHANGES = {
    "content": lambda path: Image.new("L", (8, 6), 250).save(path),
    "size of the picture": lambda path: Image.new("L", (9, 6)).save(path),
    "another file in its place": lambda path: os.replace(path.with_name("1.png"), path),
    "nothing but its time": lambda path: os.utime(path, ns=(1, 1)),
    "a bit, and the old time": lambda path: _edit_in_place(path),
    "a link to another": lambda path: (path.unlink(), path.symlink_to(path.parent.parent / "b" / "1.png")),
}


def _edit_in_place(path: Path) -> None:
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[30] ^= 1  # of the checksum of the header, which Pillow looks at
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_is_read_anew(
    change: str, folder: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = told(open_data(str(folder)))
    CHANGES[change](folder / "a" / "0.png")
    read.clear()
    if "bit" in change:
        with pytest.raises(ArtifactError, match=r"0\.png"):
            open_data(str(folder))
        assert read == ["a/0.png"]
        return
    after = told(open_data(str(folder)))
    assert read == ["a/0.png"]
    assert (after[0] == before[0]) == (change == "nothing but its time")
    assert after == without_cache(folder, monkeypatch)
    assert len(list(cache.iterdir())) == 1


def test_files_that_come_go_and_are_chosen(
    folder: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_data(str(folder), classes="b")
    read.clear()
    open_data(str(folder))
    assert sorted(read) == ["a/0.png", "a/1.png", "a/2.png"]
    (folder / "a" / "1.png").unlink()
    Image.new("L", (8, 6), 3).save(folder / "a" / "new.png")
    read.clear()
    assert told(open_data(str(folder))) == without_cache(folder, monkeypatch)
    assert read[0] == "a/new.png"
    read.clear()
    open_data(str(folder), max_images=4)
    assert read == []
    (folder / "a" / "0.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"0\.png is empty"):
        open_data(str(folder))
    assert len(list(cache.iterdir())) == 1


def test_what_was_read_before_a_bad_file_is_known(folder: Path, read: list[str], cache: Path) -> None:
    (folder / "b" / "2.png").write_bytes(b"no picture")
    for expected in (["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"], ["b/2.png"]):
        read.clear()
        with pytest.raises(ArtifactError, match=r"2\.png"):
            open_data(str(folder), num_workers=1)
        assert read == expected
    assert cache.is_dir()


def test_files_that_may_still_change_are_not_kept(
    folder: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "UNSETTLED_NS", 2 * 10**9)
    open_data(str(folder))  # its files were written just now
    assert not cache.exists()
    real = PICTURES.files.inspect  # bound: it stays what it was

    def slow(_: Any, encoded: Any, name: Any) -> Any:  # while a file is read, another program writes it
        if name().endswith("b/1.png"):
            os.utime(folder / "b" / "1.png", ns=(5, 5))
        return real(encoded, name)

    monkeypatch.setattr(remembered, "UNSETTLED_NS", -(10**12))
    monkeypatch.setattr(type(PICTURES.files), "inspect", slow)
    open_data(str(folder))
    read.clear()
    open_data(str(folder))
    assert read == ["b/1.png"]


def test_a_damaged_cache_is_not_believed_and_is_replaced(folder: Path, cache: Path, read: list[str]) -> None:
    first = told(open_data(str(folder)))
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    damages = [whole[:n] for n in (0, 20, 32, 100, len(whole) - 1)] + [whole + b"x"]
    damages += [whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :] for n in range(0, len(whole), len(whole) // 20)]
    for damaged in damages:
        path.write_bytes(damaged)
        read.clear()
        assert told(open_data(str(folder))) == first
        assert len(read) == 7
        assert path.read_bytes() == whole


def test_contents_that_do_not_fit_each_other_are_not_believed(folder: Path, cache: Path, read: list[str]) -> None:
    from hashlib import sha256

    from safetensors.numpy import load, save

    open_data(str(folder))
    (path,) = cache.iterdir()
    held = load(path.read_bytes()[32:])
    wrong = [
        {"header": held["header"] + 9},
        {"header": held["header"] - 1},
        {"states": held["states"][:3]},
        {"sha256": held["sha256"][:, :31].copy()},
        {"names": held["names"][5:].copy(), "sha256": held["sha256"][:1]},
        {"headers": np.frombuffer(b'[[0, {"shape": "no", "channels": 1, "several": false}]]', np.uint8)},
        {"headers": np.frombuffer(b"[[7, {}]]", np.uint8)},
        {"states": held["states"].astype(np.float64)},
    ]
    for change in wrong:
        content = save({**held, **change})
        path.write_bytes(sha256(content).digest() + content)
        read.clear()
        open_data(str(folder))
        assert len(read) == 7, change


def test_another_version_of_the_reader_reads_anew(
    folder: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_data(str(folder))
    read.clear()
    monkeypatch.setattr(type(PICTURES.files), "reader_version", staticmethod(lambda: "another"))
    open_data(str(folder))
    assert len(read) == 7
    assert len(list(cache.iterdir())) == 2


def test_the_cache_is_bounded_and_the_oldest_goes_first(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_data(str(folder))
    (first,) = cache.iterdir()
    os.utime(first, (1, 1))
    (cache / ".partial-left").write_bytes(b"x" * 100)  # of a process that was killed
    os.utime(cache / ".partial-left", (2, 2))
    monkeypatch.setattr(remembered, "MAX_BYTES", first.stat().st_size)
    fill(tmp_path / "other", *CLASSES, count=3)
    open_data(str(tmp_path / "other"))
    assert not first.exists()
    assert len([path for path in cache.iterdir() if not path.name.startswith(".")]) == 1
    monkeypatch.setattr(remembered, "MAX_FILE_BYTES", 100)
    open_data(str(folder))
    assert not first.exists()


def test_it_can_be_switched_off_and_a_cache_that_cannot_be_written_is_none(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("off", "OFF", "0"):
        monkeypatch.setenv(remembered.SWITCH, value)
        open_data(str(folder))
    assert not cache.exists()
    monkeypatch.delenv(remembered.SWITCH)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(open_data(str(folder)).train) == 6
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # is to be ignored, says its standard
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert remembered.cache_folder() == tmp_path / "home" / ".cache" / "vq-prior" / "files"


def test_check_data_reads_everything_and_its_list_still_sees_changes(
    folder: Path, cache: Path, read: list[str], tmp_path: Path
) -> None:
    open_data(str(folder))
    read.clear()
    check_data(CheckData(str(folder), tmp_path / "list.json"))
    assert len(read) == 7
    read.clear()
    assert len(open_data(str(tmp_path / "list.json")).train) == 6
    assert read == []
    Image.new("L", (8, 6), 250).save(folder / "a" / "0.png")
    with pytest.raises(ArtifactError, match=r"0\.png is not what it was"):
        open_data(str(tmp_path / "list.json"))
    assert cache.is_dir()


def test_many_at_once_leave_a_whole_cache(folder: Path, cache: Path, read: list[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: open_data(str(folder), num_workers=2).data_id, range(16)))
    assert len(ids) == 1
    read.clear()
    open_data(str(folder))
    assert read == []
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == []
