"""Where a folder that was asked for really lies, and what the file system there can do.

A link is followed and stays a link. The current folder, a mount point, and a folder above which nothing can be written
cannot be replaced by a rename: they are written into. What a file system cannot do is said, once a command.
"""

import errno
import os
import re
import sys
from pathlib import Path

CANNOT = frozenset(
    getattr(errno, name) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL") if hasattr(errno, name)
)
FILE_SYSTEMS_OWN = frozenset({"lost+found"})  # in a file system that was just made
_said: set[object] = set()


def true_place(path: Path) -> Path:
    """Return a path to what `path` means that is no link itself and ends in a name."""
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def make_folder(path: Path) -> None:
    """Make a folder and those above it, through links to folders that are not there yet, too."""
    path.resolve().mkdir(parents=True, exist_ok=True)


def why_fixed(final: Path) -> str | None:
    """Return why a folder cannot be replaced by a rename, in words; None where it can."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return _why_alone(final, final)
    place = final.resolve()
    if here.is_relative_to(place):
        return f"{final} is the current folder" if here == place else f"{final} holds the current folder"
    return _why_alone(final, place)


def lock_path(folder: Path) -> Path:
    """Return the file whose lock is the claim to a folder: beside it, or in it where it is alone on its disk."""
    place = true_place(folder).absolute()
    name = f".{place.name}.lock"
    return place.with_name(name) if _why_alone(folder, place) is None else place / name


def _why_alone(final: Path, place: Path) -> str | None:
    if _is_mount(place):
        return f"{final} is a mount point"
    if place.is_dir() and not os.access(place.parent, os.W_OK):
        return f"the folder above {final} cannot be written"
    return None


def _is_mount(place: Path) -> bool:
    """Return whether something is mounted at a path; a folder of the same disk, too, which `ismount` does not see."""
    if os.path.ismount(place):
        return True
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split()[4] for line in file]
    except OSError:
        return False
    return str(place) in (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point) for point in points)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk; see `sync_open`."""
    if sys.platform == "win32" and path.is_dir():  # a folder cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor, path)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int, path: Path) -> None:
    """Flush an open file to the disk; where that kind of disk cannot, say so.

    Raises:
        OSError: If the disk could and failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        what = ("sync", os.fstat(descriptor).st_dev, error.errno)
        say_once(what, f"the disk of {path} cannot sync: what was written last may be lost in a power cut")


def say_once(what: object, line: str) -> None:
    """Print a line about what is not protected, from the main process, once a command."""
    if what not in _said:
        _said.add(what)
        if os.environ.get("RANK", "0") == "0":
            print(line, flush=True)


def forget_what_was_said() -> None:
    """Begin a command: all there is to say is said anew."""
    _said.clear()
