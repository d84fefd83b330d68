"""What files held when they were last read: their hashes and headers, kept so that they are not read again.

It lies in the user's cache folder, a file for each folder of data. A file of data is known by its path, size, inode and
the times at which its content and its entry were last changed, to the nanosecond. What cannot be read without doubt is
as good as not there, and is written anew.

Letters: n files.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from stage1_vqvae.data.loading import in_threads
from vq_prior.core.config import canonical_json, from_json, parse_json, to_json
from vq_prior.core.modality import Header

SWITCH, OFF = "VQ_PRIOR_CACHE", "off"
FORMAT = 1
MAX_FILE_BYTES, MAX_BYTES = 512 << 20, 1 << 30  # of one file, and of all
UNSETTLED_NS = 2_000_000_000  # a file that was changed since may be changed again without another time
State = tuple[int, ...]
GONE: State = (-1, -1, -1, -1)
COLUMNS = {"names": (np.uint8, ()), "states": (np.int64, (4,)), "sha256": (np.uint8, (32,)), "header": (np.int32, ())}
Seen = tuple[bytes, Header]


@dataclass(frozen=True)
class Memory:
    """What is remembered of n files: paths, states [n, 4], hashes [n, 32] and which header each has."""

    names: list[str]
    states: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    header: NDArray[np.int32]
    headers: list[Header]

    def places(self, names: list[str]) -> NDArray[np.int64]:
        """Return which of the files have these paths; -1 for none."""
        if names == self.names:
            return np.arange(len(names))
        place = {name: number for number, name in enumerate(self.names)}
        return np.array([place.get(name, -1) for name in names], dtype=np.int64)

    def seen(self, number: int) -> Seen:
        """Return hash and header of a file."""
        return self.sha256[number].tobytes(), self.headers[self.header[number]]


def cache_folder() -> Path | None:
    """Return the folder of this program in the user's cache; None where it is switched off."""
    if os.environ.get(SWITCH, "").lower() in (OFF, "0"):
        return None
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return base / "vq-prior" / "files"


class Remembered:
    """The files of one folder of data, those looked at before known again."""

    def __init__(self, folder: Path, called: str, version: str, kinds: tuple[type[Header], ...]) -> None:
        """Take the cache folder, what the files are called together, what decides on headers, and their classes."""
        self._kinds = kinds
        key = canonical_json([FORMAT, os.fsencode(called).hex(), version])
        self._path = folder / sha256(key).hexdigest()

    def inspected(
        self, paths: Sequence[str], some: Sequence[int], inspect: Callable[[int], Seen], num_workers: int | None
    ) -> list[Seen]:
        """Return hash and header of some of the files; `inspect` reads those that are not known.

        Raises:
            ArtifactError: As `inspect` does; what was read until then is remembered.
        """
        settled = time.time_ns() - UNSETTLED_NS
        names = [_whole(paths[row]) for row in some]
        states = [_state(name) for name in names]
        memory = self._read()
        inspected: list[Seen | None] = [None] * len(names)
        if memory is not None:
            at = memory.places(names)
            for number in np.flatnonzero((at >= 0) & _alike(memory.states[at], states)).tolist():
                inspected[number] = memory.seen(at[number])
        unknown = [number for number, seen in enumerate(inspected) if seen is None]

        def look(number: int) -> Seen:
            seen, before = inspect(some[number]), states[number]
            if before[1] > settled or before[2] > settled or _state(names[number]) != before:
                states[number] = GONE
            return seen

        try:
            for number, seen in zip(unknown, in_threads(look, unknown, num_workers), strict=True):
                inspected[number] = seen
        finally:
            if any(inspected[number] is not None and states[number] is not GONE for number in unknown):
                others = set() if len(names) == len(paths) else set(map(_whole, paths))
                self._write(names, states, inspected, memory, others.difference(names))
        return [seen for seen in inspected if seen is not None]

    def _read(self) -> Memory | None:
        """Return what is remembered; None where there is nothing, or where it is damaged."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES or sha256(content[32:]).digest() != content[:32]:
                return None
            held = load(content[32:])
            headers = parse_json(held.pop("headers").tobytes(), str(self._path))
            names = os.fsdecode(held["names"].tobytes()).split("\0")
            known = [from_json(self._kinds[kind], each, "") for kind, each in headers]
            memory = Memory(names, held["states"], held["sha256"], held["header"], known)
            sizes = {len(names), len(memory.states), len(memory.sha256), len(memory.header)}
            for name, (dtype, shape) in COLUMNS.items():
                if held[name].dtype != dtype or held[name].shape[1:] != shape:
                    return None
            fitting = len(sizes) == 1 and memory.header.min() >= 0 and memory.header.max() < len(known)
            return memory if fitting else None
        except Exception:  # whatever a damaged file leads to
            return None

    def _write(
        self,
        names: Sequence[str],
        states: Sequence[State],
        inspected: Sequence[Seen | None],
        memory: Memory | None,
        others: set[str],
    ) -> None:
        """Write what was found, and what is remembered of other files that are still there; not being able is fine."""
        learnt = {
            name: (state, seen)
            for name, state, seen in zip(names, states, inspected, strict=True)
            if seen is not None and state is not GONE
        }
        for number, name in enumerate(memory.names if memory is not None and others else ()):
            if name in others:
                assert memory is not None
                learnt[name] = (tuple(memory.states[number].tolist()), memory.seen(number))
        place: dict[Header, int] = {}
        numbers = [place.setdefault(header, len(place)) for _, (_, header) in learnt.values()]
        kinds = {kind: number for number, kind in enumerate(self._kinds)}
        if any(type(header) not in kinds for header in place):
            return
        headers = canonical_json([[kinds[type(header)], to_json(header)] for header in place])
        tensors: dict[str, NDArray[Any]] = {
            "names": np.frombuffer(os.fsencode("\0".join(learnt)), dtype=np.uint8),
            "states": np.array([state for state, _ in learnt.values()], dtype=np.int64),
            "sha256": np.frombuffer(b"".join(digest for _, (digest, _) in learnt.values()), np.uint8).reshape(-1, 32),
            "header": np.array(numbers, dtype=np.int32),
            "headers": np.frombuffer(headers, dtype=np.uint8),
        }
        content = save(tensors)
        if len(content) + 32 > MAX_FILE_BYTES:
            return
        try:
            _put(self._path, sha256(content).digest() + content)
        except OSError:  # a home that cannot be written, a full disk
            return


def _alike(known: NDArray[np.int64], states: Sequence[State]) -> NDArray[np.bool_]:
    """Return which files have the same states as before, [n] bool."""
    alike: NDArray[np.bool_] = (known == np.array(states, dtype=np.int64).reshape(-1, 4)).all(axis=1)
    return alike


def _whole(path: str) -> str:
    """Return an absolute path."""
    whole = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    return os.path.abspath(whole) if "/." in whole else whole


def _state(name: str) -> State:
    """Return size, times of change in nanoseconds, and inode of a file."""
    try:
        status = os.stat(name)
    except OSError:
        return GONE
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)


def _put(path: Path, content: bytes) -> None:
    """Write a file whole, also where others write it now, and remove the oldest of its folder beyond the bound."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    with os.scandir(path.parent) as entries:
        files = sorted(((each.stat().st_mtime_ns, each.stat().st_size, each.path) for each in entries), reverse=True)
    total = 0
    for _, size, each in files:
        total += size
        if total > MAX_BYTES and each != str(path):
            os.unlink(each)


def remembered(called: str | None, files: Any) -> Remembered | None:
    """Return what is remembered of files; None if files of this kind are not remembered, or the cache is switched off.

    Args:
        called: What they are called together; None for what is no folder.
        files: How they are read: a kind whose `reader_version` tells apart all that may decide on a header, and whose
            `header_kinds` are the classes of those.
    """
    folder, version = cache_folder(), getattr(files, "reader_version", None)
    if folder is None or called is None or version is None:
        return None
    return Remembered(folder, called, version(), files.header_kinds)
