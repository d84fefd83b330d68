"""How artefacts appear: whole or not at all.

A folder is written into a hidden sibling, every file is flushed to disk, the
manifest is written last, and one rename makes it visible.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vq_prior.core.config import from_json, pretty_json, read_json
from vq_prior.core.disk.places import FILE_SYSTEMS_OWN, make_folder, sync, sync_open, true_place, why_fixed
from vq_prior.core.disk.pointers import require_no_pointer
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.identity import file_sha256

MANIFEST = "manifest.json"
ARRIVING = ".arriving.json"
NOT_TO_BE_MOVED = (errno.EXDEV, errno.EBUSY)  # of a folder: it lies in a lower layer of a container, or is mounted


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds: the files of a folder, by name."""

    format_version: int
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class _Arriving:
    names: list[str]


def staging_path(final: Path) -> Path:
    """Return the hidden folder in which `final` is prepared: beside it, or in it where it cannot be replaced."""
    place = true_place(final)
    return place.parent / f".{place.name}.partial" if why_fixed(final) is None else place / ".partial"


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole: a reader sees the old bytes or the new ones, also after a power cut.

    Args:
        path: The file.
        data: Its bytes.
        durable: Whether to wait for the disk; False survives a kill but not a power cut, for files in a staging
            folder, which `publish` flushes.
    """
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe
        path.write_bytes(data)
        return
    path = true_place(path)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            sync_open(file.fileno(), path)
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.EBUSY:  # the file itself is a mount point
            raise
        path.write_bytes(data)
        temporary.unlink()
    if durable:
        sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; what is left of an interrupted deletion stays hidden."""
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.name.startswith(".") else path.with_name(f".{path.name}.retired")
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            try:
                os.rename(path, doomed)
            except OSError as error:
                if error.errno not in NOT_TO_BE_MOVED:
                    raise
                doomed = path
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def require_replaceable(out: Path, marker: str, kind: str, *, overwrite: bool = False) -> None:
    """Raise `UsageError` if `out` holds files but not `marker`: what is not ours is never replaced.

    Args:
        out: Folder to write.
        marker: A file that it holds if it is ours.
        kind: What to call the contents in a message.
        overwrite: Whether what is there is to be replaced as a whole, though the names of the new may be others.
    """
    if not out.is_dir():
        return
    why = why_fixed(out)
    names = {path.name for path in out.iterdir()}
    if why is not None:  # nothing but what has our names is replaced there
        names -= {*FILE_SYSTEMS_OWN, *_arriving(out)} | {name for name in names if name.startswith(".")}
    if names and not (out / marker).is_file():
        raise UsageError(f"{out} holds files that are no {kind}; choose another --out")
    if names and why is not None and overwrite:
        raise UsageError(f"{why}, and what it holds cannot be replaced; empty it or choose another --out")


def _flush_tree(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with contextlib.suppress(PermissionError, NotImplementedError):  # a disk without permissions
                path.chmod(0o666 & ~umask)  # safetensors writes files that only their owner can read
        sync(path)
    sync(folder)


def _visible_files(folder: Path) -> list[str]:
    """Return the sorted names of the files below `folder` that a manifest speaks of: not hidden, not itself.

    A `README.md` is for people, who may edit it.
    """
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    return [name for name in names if name not in (MANIFEST, "README.md")]


def write_manifest(folder: Path) -> None:
    """Write size and sha256 of every file below `folder` into its `manifest.json`."""
    names = _visible_files(folder)
    files = {name: FileEntry((folder / name).stat().st_size, file_sha256(folder / name)) for name in names}
    write_atomic(folder / MANIFEST, pretty_json(Manifest(1, files)))


def verify_manifest(folder: Path) -> bool:
    """Return whether `folder` has a manifest; one that is there must hold.

    Raises:
        ArtifactError: If the folder is missing, or a file is missing, extra, of another size or of other bytes.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder" if folder.exists() else f"{folder} is missing")
    if not (folder / MANIFEST).exists():
        return False
    manifest = from_json(Manifest, read_json(folder / MANIFEST), str(folder / MANIFEST))
    if manifest.format_version != 1:
        raise ArtifactError(f"{folder / MANIFEST} has format version {manifest.format_version}; this version reads 1")
    present = _visible_files(folder)
    for name in [name for name in present if name not in manifest.files]:
        raise ArtifactError(f"{folder / name} is not in the manifest of its folder; remove it or fetch the folder anew")
    for name, entry in manifest.files.items():
        path = folder / name
        if name not in present:
            raise ArtifactError(f"{path} is missing; fetch or train it anew")
        if path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
            require_no_pointer(path)
            raise ArtifactError(f"{path} is damaged: its bytes differ from the manifest; fetch or train it anew")
    return True


def publish(staging: Path, final: Path) -> None:
    """Make a finished staging folder visible as `final` by one rename, then retire what stood there.

    Where `final` cannot be replaced, what it holds is, name by name, the files that say what the others are last.
    """
    _flush_tree(staging)
    fixed, final = why_fixed(final) is not None, true_place(final)
    if not final.exists():
        os.rename(staging, final)
    elif fixed or not _replaced(staging, final):
        for former in [] if fixed else list(final.iterdir()):
            remove(former)
        _move_in(staging, final)
        sync(final)
    sync(final.parent)


def _replaced(staging: Path, final: Path) -> bool:
    """Put one folder in the place of another; return False if that one is not to be moved (a layer below, a mount)."""
    retired = final.with_name(f".{final.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    try:
        if _exchange(staging, final):
            shutil.rmtree(staging)
            return True
        os.rename(final, retired)
    except OSError as error:
        if error.errno not in NOT_TO_BE_MOVED:
            raise
        return False
    os.rename(staging, final)
    shutil.rmtree(retired)
    return True


def _move_in(staging: Path, final: Path) -> None:
    """Move the contents of one folder into another that stays; a rerun after a kill knows what had come."""
    for name in _arriving(final):
        remove(final / name)
    inside = sorted(staging.iterdir(), key=lambda path: (path.is_file(), path.suffix == ".json", path.name == MANIFEST))
    write_atomic(final / ARRIVING, pretty_json(_Arriving([path.name for path in inside])))
    for path in inside:
        place = final / path.name
        if place.is_dir() or path.is_dir():
            remove(place)
        os.replace(path, place)
    (final / ARRIVING).unlink()
    staging.rmdir()


def _arriving(final: Path) -> list[str]:
    """Return the names that were on their way into a folder when that was interrupted."""
    try:
        names = from_json(_Arriving, read_json(final / ARRIVING), str(final / ARRIVING)).names
    except ArtifactError:
        return []
    return [name for name in names if not name.startswith(".") and "/" not in name]


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step where the system can (Linux's renameat2); return whether it did."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    at_cwd, rename_exchange = -100, 2
    if library.renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), rename_exchange) == 0:
        return True
    if ctypes.get_errno() in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))


@contextlib.contextmanager
def new_folder(final: Path, *, manifest: bool = True) -> Iterator[Path]:
    """Yield an empty staging folder that becomes `final` when the block ends without an error.

    After an error nothing is left, not even the folders above `final` that were made for it.
    """
    staging = staging_path(final)
    made = [folder for folder in staging.parents if not folder.exists()]
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    try:
        yield staging
        if manifest:
            write_manifest(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
    publish(staging, final)
