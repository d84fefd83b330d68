"""A folder of numbered samples that one or many processes write: `OUT/000000.png` ..., and a JSON file about them.

Files have the extension of their kind of data. Where many belong in one file, the extension is None: `OUT/samples.npz`.

The work happens in a hidden sibling that a rerun of the same request continues, on any number of processes, and that
one rename publishes. What the JSON file will say of a picture stands, until all are done, in a hidden note beside it.
"""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vq_prior.core.config import pretty_json, read_json
from vq_prior.core.disk.artifacts import publish, remove, require_replaceable, staging_path, write_atomic
from vq_prior.core.disk.locks import claim
from vq_prior.core.disk.places import make_folder
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError
from vq_prior.core.processes.runtime import Runtime
from vq_prior.core.settings import require_folder_to_write

MAX_REQUEST_BYTES = 1 << 30
JOINED = "samples.npz"


def sample_name(index: int, extension: str | None = ".png") -> str:
    """Return the file name of sample `index` of a folder; hidden where it will be joined with the others."""
    return f".{index:06d}.npy" if extension is None else f"{index:06d}{extension}"


def already_done(out: Path, marker: str, request: dict[str, Any], *, kind: str, overwrite: bool) -> bool:
    """Return whether `out` holds what was asked for, by the request in its file `marker`.

    Args:
        out: Folder to write.
        marker: JSON file in it that begins with the request it answers.
        request: What is asked for.
        kind: What to call the contents in a message.
        overwrite: Whether other contents of this kind may be replaced.

    Raises:
        UsageError: If `out` holds anything else.
    """
    require_folder_to_write(out)
    require_replaceable(out, marker, f"{kind} of vq-prior", overwrite=overwrite)
    if overwrite or not (out / marker).is_file():
        return False
    try:
        done = read_json(out / marker, max_bytes=MAX_REQUEST_BYTES)
    except ArtifactError:
        done = {}
    changed = [f"{key} {done.get(key)} -> {value}" for key, value in request.items() if done.get(key) != value]
    if changed:
        raise UsageError(f"{out} holds other {kind} ({'; '.join(changed)}); choose another --out or pass --overwrite")
    return True


def holds_samples(out: Path, count: int, extension: str | None = ".png") -> bool:
    """Return whether `out` has the files of all `count` samples."""
    if extension is None:
        return (out / JOINED).is_file()
    return all((out / sample_name(i, extension)).is_file() for i in range(count))


def join_samples(staging: Path, count: int, name: str) -> None:
    """Write the samples of a kind whose values belong in one file into `samples.npz`, an array [count, ...] by name."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: np.stack([np.load(staging / sample_name(i, None)) for i in range(count)])}
    np.savez(file, **arrays)  # plain numbers: objects were refused when they were read
    write_atomic(staging / JOINED, file.getvalue())


def array_bytes(stored: NDArray[Any]) -> bytes:
    """Return the file of one value that will be joined with the others."""
    file = io.BytesIO()
    np.save(file, stored, allow_pickle=False)
    return file.getvalue()


def open_staging(out: Path, marker: str, request: dict[str, Any], runtime: Runtime) -> Path:
    """Return the folder of the work in progress: that of a run with the same request, or a new one.

    Args:
        out: Folder to write.
        marker: JSON file in it; until all is done it holds the request alone.
        request: What is asked for: all that the pictures and their notes are a function of.
        runtime: Of this process.

    Raises:
        EnvironmentFault: If another process is writing it.
    """
    staging = staging_path(out)
    if runtime.is_main:
        claim(out)
        path = staging / marker
        if not (path.is_file() and path.read_bytes() == pretty_json(request)):
            shutil.rmtree(staging, ignore_errors=True)
            make_folder(staging)
            write_atomic(path, pretty_json(request))
    runtime.barrier()
    return staging


def share_of_missing(
    staging: Path, count: int, runtime: Runtime, *, noted: bool, extension: str | None = ".png"
) -> list[int]:
    """Return this process's part of the images that are not there yet, ascending.

    Args:
        staging: See `open_staging`.
        count: Images in all.
        runtime: Of this process.
        noted: Whether each image has a note.
        extension: Of the files.
    """
    missing = [i for i in range(count) if not _is_done(staging, i, noted, extension)]
    runtime.barrier()  # nobody writes before all have looked
    return missing[runtime.share(len(missing))]


def write_note(staging: Path, index: int, note: Any) -> None:
    """Keep what the JSON file will say of an image, a dataclass or a dict."""
    write_atomic(staging / _note_name(index), pretty_json(note), durable=False)


def read_notes(staging: Path, count: int) -> list[dict[str, Any]]:
    """Return the notes of all images."""
    return [read_json(staging / _note_name(i)) for i in range(count)]


def require_whole(staging: Path, count: int, *, noted: bool, extension: str | None = ".png") -> None:
    """Raise `EnvironmentFault` if an image, or its note, is missing."""
    lost = [i for i in range(count) if not _is_done(staging, i, noted, extension)]
    if lost:
        name = sample_name(lost[0], extension)
        raise EnvironmentFault(f"{len(lost)} images are missing, {name} first; run the same command to continue")


def publish_without_notes(staging: Path, out: Path) -> None:
    """Make the finished folder visible as `out`, without the notes (main process)."""
    for leftover in staging.glob(".*"):
        remove(leftover)
    publish(staging, out)


def _is_done(staging: Path, index: int, noted: bool, extension: str | None) -> bool:
    """Return whether an image is there; a power cut may leave empty files behind."""
    names = [sample_name(index, extension), *([_note_name(index)] if noted else [])]
    return all((staging / name).is_file() and (staging / name).stat().st_size > 0 for name in names)


def _note_name(index: int) -> str:
    return f".{index:06d}.json"
