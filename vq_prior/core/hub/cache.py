"""What leaves the Hub client's cache: files that are proved to be damaged, and nothing else.

A file of a commit is a link `snapshots/COMMIT/NAME` to `blobs/ETAG`; since Xet that may be another link, to contents
that all repositories of the cache share. The name of those has 64 digits like a sha256 and is none, so the name of a
file proves nothing but where it is git's id of the bytes (40 digits).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from vq_prior.core.config import from_json, read_json
from vq_prior.core.disk.artifacts import MANIFEST, Manifest
from vq_prior.core.errors import VQPriorError
from vq_prior.core.identity import file_sha256, hub_digest

GIT_DIGITS = 40

_listed: dict[Path, dict[str, str]] = {}


def remember(folder: Path, digests: Mapping[str, str]) -> None:
    """Keep what the Hub itself says of the files of a fetched folder: sha256 or git's id, by name."""
    _listed[folder] = dict(digests)


def forget_damaged(folder: Path, paths: Iterable[Path]) -> None:
    """Remove from the cache those of `paths` that are proved to be damaged: links, and the contents behind them.

    The Hub client does not look again at what it has, so it would be damaged for ever. The proof is, for each file,
    what the Hub said of it when it was fetched, else git's id in its name, else the manifest of its folder; bytes
    that are what the Hub has are not damaged, whatever a manifest says of them.

    Args:
        folder: The folder of a commit in the cache.
        paths: The files below it that may be removed.
    """
    verdicts = {path: _as_the_hub_has_it(folder, path) for path in paths}
    for path in [path for path in verdicts if path.name == MANIFEST and verdicts[path] is not False]:
        for name, sha256 in _promised(path).items():
            promised = path.parent / name
            if verdicts.get(promised, True) is None:
                verdicts[promised] = file_sha256(promised) in (sha256, _first_name(promised))
    for path, whole in verdicts.items():
        if whole is False:
            _remove(path, cache=folder.parents[2])


def _as_the_hub_has_it(folder: Path, path: Path) -> bool | None:
    """Return whether the bytes of a file are those that the Hub has, or None where nobody told."""
    digest = _listed.get(folder, {}).get(path.relative_to(folder).as_posix())
    if digest is None and len(_first_name(path)) == GIT_DIGITS:
        digest = _first_name(path)
    return None if digest is None else hub_digest(path, length=len(digest)) == digest


def _first_name(path: Path) -> str:
    """Return the name of the first link's target, which the client takes from the Hub; empty for a plain file."""
    return path.readlink().name if path.is_symlink() else ""


def _promised(manifest: Path) -> dict[str, str]:
    """Return the sha256 of each file that a manifest lists; nothing where it cannot be read."""
    try:
        entries = from_json(Manifest, read_json(manifest), str(manifest)).files
    except VQPriorError:
        return {}
    return {name: entry.sha256 for name, entry in entries.items()}


def _remove(path: Path, *, cache: Path) -> None:
    """Remove a file, each link on the way to it and its bytes, as far as they lie in the cache."""
    root = cache.resolve()
    while path.parent.resolve().is_relative_to(root):
        target = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target
