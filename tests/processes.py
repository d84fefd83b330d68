"""The processes of a run, found in /proc."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def children_of(parent: int) -> list[int]:
    """Return the processes that a process started, ascending, of their own children, too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        pid, rest = int(text.split(" ", 1)[0]), text.rpartition(")")[2].split()
        if int(rest[1]) == parent and rest[0] != "Z":
            found += [pid, *children_of(pid)]
    return sorted(found)


def ranks_of(launcher: int) -> dict[str, int]:
    """Return the pid of each process of the run by its RANK."""
    ranks = {}
    for pid in children_of(launcher):
        with suppress(OSError):
            entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks |= {entry[5:].decode(): pid for entry in entries if entry.startswith(b"RANK=")}
    return ranks


def kill_all(launcher: int) -> None:
    """Kill a process and all that it started, as a machine that loses its power does."""
    with suppress(ProcessLookupError):
        os.kill(launcher, signal.SIGSTOP)  # so that it cannot start another one meanwhile
    for pid in [*children_of(launcher), launcher]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
