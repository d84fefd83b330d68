import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vq_prior.core.disk.artifacts import (
    MANIFEST,
    new_folder,
    publish,
    remove,
    staging_path,
    verify_manifest,
    write_atomic,
    write_manifest,
)
from vq_prior.core.errors import ArtifactError


def write_component(folder: Path, text: str = "weights") -> Path:
    with new_folder(folder) as staging:
        (staging / "model.bin").write_text(text)
        (staging / "deep").mkdir()
        (staging / "deep" / "config.json").write_text("{}")
    return folder


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_appears_whole_with_its_manifest(tmp_path):
    folder = write_component(tmp_path / "vqvae")
    assert names_below(folder) == {"model.bin", "deep/config.json", MANIFEST}
    assert verify_manifest(folder)
    assert os.listdir(tmp_path) == ["vqvae"]


def test_nothing_is_visible_before_the_end_of_the_block(tmp_path):
    with new_folder(tmp_path / "a" / "out") as staging:
        assert staging.name.startswith(".")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / MANIFEST).is_file()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_or_the_old_folder(tmp_path, error):
    def fail(final):
        with new_folder(final) as staging:
            (staging / "half").write_text("x")
            raise error

    with pytest.raises(error):
        fail(tmp_path / "out")
    assert os.listdir(tmp_path) == []
    write_component(tmp_path / "out", "old")
    with pytest.raises(error):
        fail(tmp_path / "out")
    assert (tmp_path / "out" / "model.bin").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_publishing_replaces_the_old_folder_as_a_whole(tmp_path):
    folder = write_component(tmp_path / "out", "old")
    (folder / "stray").write_text("x")
    with new_folder(folder) as staging:
        (staging / "only").write_text("new")
    assert names_below(folder) == {"only", MANIFEST}
    assert os.listdir(tmp_path) == ["out"]


def test_what_an_interrupted_run_left_behind_does_not_enter_the_folder(tmp_path):
    leftover = staging_path(tmp_path / "out")
    leftover.mkdir()
    (leftover / "torn").write_text("x")
    assert "torn" not in names_below(write_component(tmp_path / "out"))


def test_everyone_may_read_what_the_umask_allows(tmp_path):
    former = os.umask(0o022)
    try:
        with new_folder(tmp_path / "out") as staging:
            (staging / "model.safetensors").touch(mode=0o600)
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o644


def test_every_single_flipped_bit_is_found(tmp_path):
    folder = write_component(tmp_path / "out")
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        whole = path.read_bytes()
        for position in range(len(whole)):
            for bit in range(8):
                damaged = bytearray(whole)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                with pytest.raises(ArtifactError):
                    verify_manifest(folder)
        path.write_bytes(whole)
    assert verify_manifest(folder)


def test_a_shortened_or_lengthened_file_is_found(tmp_path):
    folder = write_component(tmp_path / "out")
    for data in (b"", b"weight", b"weights\n"):
        (folder / "model.bin").write_bytes(data)
        with pytest.raises(ArtifactError, match=r"model\.bin is damaged"):
            verify_manifest(folder)


def test_a_missing_and_an_extra_file_are_named(tmp_path):
    folder = write_component(tmp_path / "out")
    (folder / "deep" / "extra.py").write_text("x")
    with pytest.raises(ArtifactError, match=r"deep/extra\.py is not in the manifest"):
        verify_manifest(folder)
    (folder / "deep" / "extra.py").unlink()
    (folder / "deep" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"deep/config\.json is missing"):
        verify_manifest(folder)


def test_hidden_files_are_neither_sealed_nor_missed(tmp_path):
    with new_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("x")
        (staging / ".cache").mkdir()
        (staging / ".cache" / "lock").write_text("x")
    assert verify_manifest(tmp_path / "out")
    (tmp_path / "out" / ".gitattributes").write_text("x")
    assert verify_manifest(tmp_path / "out")


def test_a_manifest_that_points_outside_its_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "out"
    folder.mkdir()
    write_manifest(tmp_path)
    text = (tmp_path / MANIFEST).read_text().replace('"secret"', '"../secret"')
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"\.\./secret is missing"):
        verify_manifest(folder)


def test_a_folder_without_a_manifest_is_told_apart_from_no_folder(tmp_path):
    assert not verify_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="is missing"):
        verify_manifest(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not a folder"):
        verify_manifest(tmp_path / "file")


@pytest.mark.fault("F43")
def test_a_manifest_of_a_later_version_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text('{"format_version": 2, "files": {}}')
    with pytest.raises(ArtifactError, match="format version 2; this version reads 1"):
        verify_manifest(tmp_path)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new and longer")
        assert reader.read() == b"old"  # a reader that had it open still sees the old bytes
    assert path.read_bytes() == b"new and longer"
    assert os.listdir(tmp_path) == ["x.json"]


def test_removing_takes_folders_files_and_nothing(tmp_path):
    write_component(tmp_path / "folder")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file", "none"):
        remove(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_publishing_a_folder_that_was_filled_elsewhere(tmp_path):
    staging = tmp_path / ".codes.partial"
    staging.mkdir()
    (staging / "a").write_text("x")
    publish(staging, tmp_path / "codes")
    assert os.listdir(tmp_path) == ["codes"]


KILLED_WRITER = """
import sys
from pathlib import Path
from vq_prior.core.disk.artifacts import new_folder
number = 0
print("ready", flush=True)
while True:
    number += 1
    with new_folder(Path(sys.argv[1])) as staging:
        for name in "abc":
            (staging / name).write_text(str(number))
"""


def test_after_a_sigkill_the_visible_folder_is_one_whole_version(tmp_path):
    folder = tmp_path / "out"
    for delay in (0.0, 0.011, 0.023, 0.037, 0.052):
        writer = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(folder)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        try:
            writer.wait(delay)
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if folder.exists():
            assert verify_manifest(folder)
            assert len({(folder / name).read_text() for name in "abc"}) == 1


def test_a_failure_leaves_no_folder_that_was_made_for_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for final in (tmp_path / "a" / "b" / "c", tmp_path / "there" / "c"):
        with pytest.raises(RuntimeError), new_folder(final):
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []
