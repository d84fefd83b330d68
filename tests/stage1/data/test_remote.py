"""Shards on a web server, more than the disk may hold: the same rows as the shards themselves, or one clear error."""

import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.data import web
from stage1_vqvae.data.check import check_data
from stage1_vqvae.data.rows import DataRows
from stage1_vqvae.data.sources import Data, open_data
from stage1_vqvae.settings import CheckData, ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.core.disk.records import public_name
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError

MIB = 1 << 20


@dataclass
class Shelf:
    """Files of a web server on the loopback interface, and how it answers."""

    folder: Path
    port: int = 0
    ranges: bool = True
    tags: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    busy: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


def handler(shelf: Shelf) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def refuse(self, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/").partition("?")[0], self.headers.get("Range", "")
            shelf.asked.append((name, wanted))
            path = shelf.folder / name
            if shelf.busy:
                shelf.busy -= 1
                return self.refuse(503)
            if not path.is_file():
                return self.refuse(404)
            size = path.stat().st_size
            start, stop = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            first, last = int(start), min(int(stop or size), size - 1)
            if first >= size:
                return self.refuse(416)
            if not shelf.ranges:
                first, last = 0, size - 1
            self.send_response(206 if shelf.ranges else 200)
            if shelf.ranges:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("ETag", shelf.tags.get(name, f'"{name}"'))
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            with path.open("rb") as file:
                file.seek(first)
                content = file.read(last + 1 - first)
            if shelf.break_after is not None and len(content) > shelf.break_after:
                content, self.close_connection = content[: shelf.break_after], True
            try:
                self.wfile.write(content)
            except OSError:
                self.close_connection = True
            return None

    return Handler


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(web, "PAUSE_SECONDS", 0.001)
    (tmp_path / "shards").mkdir()
    shelf = Shelf(tmp_path / "shards")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(shelf))
    server.daemon_threads = True
    shelf.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield shelf
    server.shutdown()
    server.server_close()


def picture(number: int, side: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def write(path: Path, numbers: range, side: int = 96, **more: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            kind = b'{"kind": "%c", "much": "%s"}' % (b"pq"[number % 2], b"x" * 50)
            parts = {"png": picture(number, side), "cls": b"%d" % (number % 3), "json": kind, **more}
            for ending, content in parts.items():
                info = tarfile.TarInfo(f"{number:06d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def fill(shelf: Shelf, count: int = 5, each: int = 40) -> str:
    """Write shards of about 400 KiB, and return the URL of all."""
    for shard in range(count):
        write(shelf.folder / f"train-{shard:04d}.tar", range(shard * each, (shard + 1) * each))
    return shelf.url(f"train-{{0000..{count - 1:04d}}}.tar")


def told(data: Data) -> Any:
    return data.data_id, data.label_names, [(s.headers, s.labels.tolist()) for s in (data.train, data.validation)]


def contents(rows: DataRows) -> list[Any]:
    return [rows.encoded(row) for row in range(len(rows))]


class Disk:
    """How much unnamed files of this process take, at most, as the system counts."""

    def __init__(self) -> None:
        self.most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            total = 0
            for entry in os.listdir("/proc/self/fd"):
                try:
                    place = os.readlink(f"/proc/self/fd/{entry}")
                    if place.endswith("(deleted)") or "vq-prior-" in place:
                        total += os.stat(f"/proc/self/fd/{entry}").st_size
                except OSError:
                    continue
            self.most = max(self.most, total)

    def __enter__(self) -> "Disk":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_shards_of_a_server_are_the_shards_themselves_under_a_small_quota(shelf: Shelf) -> None:
    url = fill(shelf)
    local = open_data(str(shelf.folder))
    with Disk() as disk:
        far = open_data(url, shard_cache_mib=1)
        assert told(far) == told(local)
        fetched = sum(path.stat().st_size for path in shelf.folder.iterdir())
        assert fetched > 1.5 * MIB
        assert [name for name, _ in shelf.asked] == [f"train-{shard:04d}.tar" for shard in range(5)]
        shelf.asked.clear()
        assert contents(far.train) == contents(local.train)
        # Rows that follow each other come together, and those of shards that are on the disk not at all.
        assert 0 < len(shelf.asked) < 20
        order = np.random.default_rng(0).permutation(len(far.train))[:20].tolist()
        assert [far.train.encoded(row) for row in order] == [local.train.encoded(row) for row in order]
        assert contents(far.validation) == contents(local.validation)
    if os.path.isdir("/proc/self/fd"):
        assert 0.3 * MIB < disk.most <= MIB
    assert any("2 of them stay on the disk (1 MiB at most" in note for note in far.notes)
    assert far.train.name(1) == f"{shelf.url('train-0000.tar')}/000001.png"


def test_labels_of_json_classes_and_splits(shelf: Shelf) -> None:
    url = fill(shelf, 2, 12)
    write(shelf.folder / "val-0000.tar", range(50, 56))
    write(shelf.folder / "test-0000.tar", range(60, 63))
    everything = f"{url} {shelf.url('val-0000.tar')}\n{shelf.url('test-0000.tar')}?token=secret"
    data = open_data(everything, label_column="kind", shard_cache_mib=1)
    assert (data.label_names, len(data.train), len(data.validation)) == (("p", "q"), 24, 6)
    assert any("left 1 test shard(s) untouched" in note for note in data.notes)
    assert told(data) == told(open_data(str(shelf.folder), label_column="kind"))
    for place in (everything, str(shelf.folder)):
        test = open_data(place, split="test", classes="0,2", max_images=2)
        assert (len(test.train), len(test.validation), test.label_names) == (1, 1, ("0", "2"))
        with pytest.raises(UsageError, match=r"--split other is not among the shards, which are .*train"):
            open_data(place, split="other")
        with pytest.raises(UsageError, match=r"--labels-file a\.csv does not apply to"):
            open_data(place, labels_file="a.csv")
    assert public_name(everything) == "train-{0000..0001}.tar val-0000.tar test-0000.tar"


def test_what_breaks_off_is_asked_for_again(shelf: Shelf) -> None:
    url = fill(shelf, 2, 12)
    whole = told(open_data(str(shelf.folder)))
    shelf.break_after, shelf.busy = 50_000, 3
    data = open_data(url)
    assert told(data) == whole
    shelf.break_after = 0
    with pytest.raises(EnvironmentFault, match=r"train-0000\.tar cannot be read .*; run it again later"):
        open_data(url)


def test_check_data_reads_every_image_and_leaves_out_the_bad(shelf: Shelf, tmp_path: Path) -> None:
    write(shelf.folder / "a-0000.tar", range(6))
    damaged = bytearray((shelf.folder / "a-0000.tar").read_bytes())
    place = damaged.find(picture(2, 96))
    damaged[place : place + 4] = b"none"
    (shelf.folder / "a-0000.tar").write_bytes(bytes(damaged))
    url = shelf.url("a-0000.tar")
    with pytest.raises(ArtifactError, match=r"a-0000\.tar/000002\.png is not a readable picture"):
        open_data(url)
    check_data(CheckData(url, tmp_path / "list.json", policy="skip"))
    assert len(open_data(str(tmp_path / "list.json")).train) == 4


def test_a_shard_that_changes_is_an_error(shelf: Shelf) -> None:
    url = fill(shelf, 4, 40)
    data = open_data(url, shard_cache_mib=1)
    row = next(row for row in range(len(data.train)) if "0002.tar" in data.train.name(row))  # not kept on the disk
    shelf.tags["train-0002.tar"] = '"another"'
    with pytest.raises(ArtifactError, match=r"train-0002\.tar changed while it was used"):
        data.train.encoded(row)
    del shelf.tags["train-0002.tar"]
    assert data.train.encoded(row)
    with (shelf.folder / "train-0002.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ArtifactError, match=r"train-0002\.tar changed while it was used"):
        data.train.encoded(row + 9)


def test_what_cannot_be_is_refused_in_one_line(shelf: Shelf) -> None:
    fill(shelf, 1, 3)
    good = shelf.url("train-0000.tar")
    (shelf.folder / "cut.tar").write_bytes((shelf.folder / "train-0000.tar").read_bytes()[:-9000])
    (shelf.folder / "text.tar").write_bytes(b"no archive" * 100)
    write(shelf.folder / "large.tar", range(12), side=400)
    with tarfile.open(shelf.folder / "folders.tar", "w") as archive:
        info = tarfile.TarInfo("cat/1.png")
        archive.addfile(info, io.BytesIO())
    cases = {
        f"{good} {shelf.url('none.tar')}": (ArtifactError, r"none\.tar: its server answered 404"),
        shelf.url("none.tar?token=" + "x" * 5000): (ArtifactError, r"none\.tar: its server answered 404"),
        shelf.url("cut.tar"): (ArtifactError, r"cut\.tar"),
        shelf.url("text.tar"): (ArtifactError, r"text\.tar is not a readable \.tar"),
        shelf.url("large.tar"): (ArtifactError, r"2 MiB, more than there is room for \(1 MiB\).*--shard-cache-mib"),
        shelf.url("folders.tar"): (ArtifactError, r"folders\.tar is no shard of a WebDataset"),
        shelf.url("train.zip"): (UsageError, r"train\.zip must be a \.tar shard of a WebDataset"),
        shelf.url("x-{0009..0001}.tar"): (UsageError, r"\{0009\.\.0001\} must be a range"),
        shelf.url("x-{0..999999}.tar"): (UsageError, "at most 100000 numbers"),
        f"{good} {good}": (UsageError, "each once"),
        good.replace("127", "me:word@127"): (UsageError, "no user or password"),
        good.replace(":", ":x", 2).replace("http:x", "http:"): (UsageError, "is no URL"),
        f"{good} data": (ArtifactError, "does not exist"),
    }
    for data, (kind, words) in cases.items():
        with pytest.raises(kind, match=words) as raised:
            open_data(data, shard_cache_mib=1)
        assert "word" not in str(raised.value).replace("password", "")
    shelf.ranges = False
    with pytest.raises(ArtifactError, match=r"its server does not send parts of files \(HTTP ranges\)"):
        open_data(good)
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        open_data("http://127.0.0.1:9/a.tar")


@pytest.mark.skipif(os.environ.get("VQ_PRIOR_FAULTS") != "full", reason="200 MB take a minute")
def test_200_megabytes_under_a_quota_of_50(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in range(25):
        write(shelf.folder / f"train-{shard:04d}.tar", range(shard * 30, (shard + 1) * 30), side=530)
    total = sum(path.stat().st_size for path in shelf.folder.iterdir())
    assert total > 200e6
    local = open_data(str(shelf.folder))
    with Disk() as disk:
        far = open_data(shelf.url("train-{0000..0024}.tar"), shard_cache_mib=50)
        assert told(far) == told(local)
        assert contents(far.train) == contents(local.train)
        small = {"steps": 2, "batch_size": 8, "image_size": "16", "model": ModelSettings(width=8)}
        del far  # and with it what it keeps on the disk
        train_vqvae(TrainVQVAE(shelf.url("train-{0000..0024}.tar"), tmp_path / "run", shard_cache_mib=50, **small))
    assert 40 * MIB < disk.most <= 50 * MIB
    with capsys.disabled():
        print(f"\n{total / 1e6:.0f} MB, at most {disk.most / 1e6:.0f} MB of disk, {len(shelf.asked)} requests")
