"""Pointers of Git LFS: short texts that stand where a large file should, in a clone that did not fetch it."""

from pathlib import Path

from vq_prior.core.errors import ArtifactError

BEGINNING = b"version https://git-lfs.github.com/spec/"


def is_pointer(content: bytes) -> bool:
    """Return whether these are the bytes of a pointer."""
    return content.startswith(BEGINNING) and len(content) < 1024


def pointer_text(name: str) -> str:
    """Return what is said of a pointer."""
    return f"{name} is a Git LFS pointer, not the file itself; fetch the files with `git lfs pull`"


def require_no_pointer(path: Path) -> None:
    """Raise `ArtifactError` if a pointer lies at this path."""
    try:
        with path.open("rb") as file:
            content = file.read(1024)
    except OSError:
        return
    if is_pointer(content):
        raise ArtifactError(pointer_text(str(path)))
