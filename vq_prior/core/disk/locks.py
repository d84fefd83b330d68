"""One run at a time in a folder: a second one would write over the first.

A claim is a lock of the operating system on a hidden file beside the folder; it ends with the process, however that
ends, so that what a killed run leaves behind is never in the way.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from vq_prior.core.disk.places import CANNOT, lock_path, make_folder, say_once
from vq_prior.core.errors import EnvironmentFault

try:
    import fcntl
except ImportError:  # not on this system: there, nothing is claimed
    fcntl = None  # type: ignore[assignment]

P = ParamSpec("P")
T = TypeVar("T")

NO_LOCKS = CANNOT | {errno.ENOLCK}
_HELD: dict[Path, tuple[int, int]] = {}  # open file and process: a fork inherits the first only


def claim(folder: Path) -> None:
    """Make this process the only one that works in `folder`, until a function marked `releasing` ends, or it does.

    Call it on the main process, after all checks. The folder need not exist, its parent is made.

    Raises:
        EnvironmentFault: If another process has claimed it; the message names it.
    """
    path = lock_path(folder)
    if fcntl is None or path in _HELD:
        return
    make_folder(path.parent)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 200).decode("utf-8", "replace") or "another process"
            os.close(file)
            if error.errno in NO_LOCKS:
                path.unlink(missing_ok=True)
                say_once(path, f"the disk of {folder} has no locks: a second run in it would not be noticed")
                return
            if not isinstance(error, BlockingIOError | PermissionError):
                raise
            raise EnvironmentFault(
                f"{folder} is being written by {holder}; wait for it, stop it, or choose another --out"
            ) from None
        if _same_file(file, path):
            break
        os.close(file)  # its holder removed it between our two calls
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _HELD[path] = file, os.getpid()


def releasing(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that gives up the claims it made when it ends, however it ends; those of its caller stay."""

    @wraps(function)
    def released(*args: P.args, **kwargs: P.kwargs) -> T:
        before = frozenset(_HELD)
        try:
            return function(*args, **kwargs)
        finally:
            release_claims(but=before)

    return released


def _same_file(file: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(file)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def release_claims(but: frozenset[Path] = frozenset()) -> None:
    """Give up every claim of this process, but for those to `but`, and remove the files."""
    for path in [path for path in _HELD if path not in but]:
        file, owner = _HELD.pop(path)
        if owner == os.getpid():
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(file)
