"""Folders that are links, mount points or the current one, and disks that cannot do all that others can."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from vq_prior.cli import main
from vq_prior.core.disk import artifacts
from vq_prior.core.disk.artifacts import new_folder, require_replaceable, staging_path, verify_manifest, write_atomic
from vq_prior.core.disk.locks import claim, release_claims
from vq_prior.core.disk.places import lock_path, make_folder, true_place, why_fixed
from vq_prior.core.errors import UsageError
from vq_prior.core.settings import require_folder_to_write


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(out, text="new", *, extra=()):
    with new_folder(out) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "a.bin").write_text(text)
        for name in ("model.bin", *extra):
            (staging / name).write_text(text)


def mount(monkeypatch, *places):
    """Let these folders be mount points: renaming one fails, as the system has it."""
    names, rename = {str(place) for place in places}, os.rename

    def refusing(source, target):
        if {str(source), str(target)} & names:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
        rename(source, target)

    def exchange(first, second):
        if {str(first), str(second)} & names:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(second))
        return False

    monkeypatch.setattr(os, "rename", refusing)
    monkeypatch.setattr(artifacts, "_exchange", exchange)
    return names


@pytest.fixture
def fixed(tmp_path, monkeypatch):
    """An empty folder that cannot be replaced, for each reason, and how it is named."""

    def make(kind):
        place = tmp_path / "place"
        place.mkdir()
        if kind == "current":
            monkeypatch.chdir(place)
            return place, Path()
        if kind == "above the current":
            (place / ".git").mkdir()
            monkeypatch.chdir(place / ".git")
            return place, Path("..")
        names = mount(monkeypatch, place)
        if kind == "mount":
            (place / "lost+found").mkdir()
            monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in names)
        if kind == "no room beside":
            monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
        return place, place

    return make


@pytest.mark.parametrize("kind", ["current", "above the current", "mount", "no room beside", "unseen mount"])
def test_a_folder_that_stays_is_written_into(kind, fixed, tmp_path):
    place, out = fixed(kind)
    node = place.stat().st_ino
    assert (why_fixed(out) is None) == (kind == "unseen mount")
    require_replaceable(out, "manifest.json", "codec")
    write(tmp_path / "plain")
    write(out)
    assert contents(place) == contents(tmp_path / "plain")
    assert verify_manifest(place)
    assert sorted(os.listdir(tmp_path)) == ["place", "plain"]
    write(out, "newer")
    assert contents(place)["deep/a.bin"] == b"newer"
    assert verify_manifest(place)
    assert place.stat().st_ino == node


def test_what_a_folder_that_stays_holds_is_neither_lost_nor_mixed(fixed):
    place, out = fixed("current")
    write(out)
    require_replaceable(out, "manifest.json", "codec")
    with pytest.raises(UsageError, match="is the current folder, and what it holds cannot be replaced; empty it"):
        require_replaceable(out, "manifest.json", "codec", overwrite=True)
    (place / "diary.txt").write_text("dear diary")
    (place / "manifest.json").unlink()
    with pytest.raises(UsageError, match="holds files that are no codec"):
        require_replaceable(out, "manifest.json", "codec")


def test_an_interrupted_arrival_is_no_hindrance_and_leaves_nothing(fixed, monkeypatch, tmp_path):
    place, out = fixed("current")
    replace, calls = os.replace, iter(range(100))

    def killed(source, target):
        if Path(target).parent == place and not Path(target).name.startswith(".") and next(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(out, extra=["more.bin"])
    assert {"deep", "model.bin"} <= set(os.listdir(place))  # two of four had come, and not what says that all are there
    require_replaceable(out, "manifest.json", "codec")
    write(out)
    write(tmp_path / "plain")
    assert contents(place) == contents(tmp_path / "plain")


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "disk" / "there").mkdir(parents=True)
    for name, target in (("link", "there"), ("new", "not yet/there")):
        link = tmp_path / name
        link.symlink_to(tmp_path / "disk" / target)
        for text in ("first", "second"):
            write(link, text)
            assert link.is_symlink()
            assert contents(tmp_path / "disk" / target)["model.bin"] == text.encode()
        assert staging_path(link).parent == (tmp_path / "disk" / target).parent
        assert lock_path(link) == lock_path(tmp_path / "disk" / target)
    make_folder(tmp_path / "new" / "run")
    (tmp_path / "file.json").symlink_to(tmp_path / "disk" / "real.json")
    for text in (b"first", b"second"):
        write_atomic(tmp_path / "file.json", text)
        assert (tmp_path / "file.json").is_symlink()
        assert (tmp_path / "disk" / "real.json").read_bytes() == text
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UsageError, match="leads to itself"):
        require_folder_to_write(tmp_path / "circle")
    assert true_place(tmp_path / "plain") == tmp_path / "plain"


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", b"numbers")
    assert os.read(reader, 100) == b"numbers"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_file_that_is_a_mount_point_is_written_into(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")

    def busy(*_paths):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", busy)
        write_atomic(tmp_path / "file", b"new")
    assert contents(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_a_run_goes_on_and_says_so(number, tmp_path, monkeypatch, capsys):
    def no_locks(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    words = ["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), "--steps", "1"]
    claim(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count("has no locks: a second run in it would not be noticed") == 2
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EIO])
def test_a_lock_that_fails_otherwise_ends_it(number, tmp_path, monkeypatch, capsys):
    def failing(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", failing)
    assert main(["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), "--steps", "1"]) == 5
    assert ("is being written by" in capsys.readouterr().err) == (number == errno.EWOULDBLOCK)
    assert not (tmp_path / "run" / "vqvae-training").exists()
    release_claims()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_folders_that_cannot_be_synced_are_told_once_and_a_broken_disk_is_an_error(
    number, tmp_path, monkeypatch, capsys
):
    fsync = os.fsync

    def of_files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    words = ["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), "--steps", "1"]
    broken = number == errno.EIO
    assert main(words) == (5 if broken else 0)
    assert capsys.readouterr().out.count("cannot sync: what was written last may be lost") == (not broken)
    assert (tmp_path / "run" / "vqvae").is_dir() == (not broken)


def test_a_disk_without_permissions_is_no_error(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "chmod", refuse)
    write(tmp_path / "out")
    assert verify_manifest(tmp_path / "out")


@pytest.mark.usefixtures("quick")
def test_each_command_writes_into_the_current_folder_and_through_a_link(tiny_run, tmp_path, monkeypatch, capsys):
    words = {
        "generate": ["--model", tiny_run / "model", "--num-images", 2],
        "reconstruct": ["--codec", tiny_run, "--data", "digits", "--num-images", 2],
        "assemble": ["--codec", tiny_run, "--prior", tiny_run / "prior"],
        "extract-codes": ["--codec", tiny_run, "--data", "digits"],
    }
    for name, flags in words.items():
        folder = tmp_path / name
        (folder / "here").mkdir(parents=True)
        (folder / "link").symlink_to(folder / "away")
        command = [name, *map(str, flags), "--out"]
        assert main([*command, str(folder / "plain")]) == 0
        assert main([*command, str(folder / "link")]) == 0
        monkeypatch.chdir(folder / "here")
        assert main([*command, "."]) == 0, capsys.readouterr().err
        assert contents(folder / "here") == contents(folder / "plain") == contents(folder / "away"), name
        assert (folder / "link").is_symlink()
        sheets = ["plain.png"] if name in ("generate", "reconstruct") else []
        assert sorted(os.listdir(folder)) == ["away", "here", "link", "plain", *sheets]
        if name != "reconstruct":  # a rerun
            assert main([*command, "."]) == 0
