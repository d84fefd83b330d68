"""What the repository of a MODEL, codec or prior holds: its names, a local copy of it, sending a component."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vq_prior.core.disk.artifacts import verify_manifest, write_manifest
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.hub.cache import forget_damaged
from vq_prior.core.hub.client import HubId, fetch, is_hub_id, push

MODEL_FILE = re.compile(
    r"((vqvae|prior)/)?(config|preprocessor_config|prior_config|generation_config|manifest|training)\.json"
    r"|(prior/)?tokenizer((_config)?\.json|\.model)"
    r"|((vqvae|prior)/)?(model|conditions)\.safetensors|README\.md|samples\.png|evaluation\.json"
    r"|processor_config\.json|(diffusion_pytorch_)?model\.safetensors(\.index\.json)?"  # codecs of other libraries
)
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")


_fetched: dict[str, Path] = {}


def fetch_once(path: str | Path, **options: Any) -> Path:
    """Return the folder that a path or Hub id names, and hold this process to it.

    From then on `local` gives that folder for `path`, so that a command sees one commit however often it looks.
    `options` are those of `hub.fetch`.
    """
    if not is_hub_id(path):
        return Path(path)
    folder = fetch(HubId.parse(str(path)), wanted=MODEL_FILE, **options)
    _fetched[str(path)] = _fetched[str(folder)] = folder
    return folder


@contextmanager
def local(path: str | Path, *, revision: str | None = None, **options: Any) -> Iterator[Path]:
    """Yield the folder that `path` names: an existing path, or the fetched copy of `owner/name[@revision]` on the Hub.

    If the block finds a fetched copy damaged, its files leave the cache, so that the next fetch brings them anew.

    Args:
        path: Path or Hub id; an existing path wins.
        revision: Branch, tag or commit on the Hub, in place of `@revision`.
        options: Those of `hub.fetch`.
    """
    folder = _fetched.get(str(path)) if revision is None else None
    if folder is None and not is_hub_id(path):
        if revision is not None:
            raise UsageError(f"revision goes with a Hub id, {path} is none")
        yield Path(path)
        return
    if folder is None:
        repo = HubId.parse(str(path))
        if revision is not None and repo.revision is not None:
            raise UsageError(f"{path} names a revision already; leave out revision={revision!r}")
        folder = fetch(HubId.parse(f"{repo.name}@{revision}") if revision else repo, wanted=MODEL_FILE, **options)
    with cache_of(folder):
        yield folder


@contextmanager
def cache_of(folder: Path, *, named: re.Pattern[str] = MODEL_FILE) -> Iterator[None]:
    """Remove from the cache what is proved damaged of a fetched folder if the block ends in an `ArtifactError`.

    Args:
        folder: The folder of a commit in the cache.
        named: Full match of the names that were fetched.
    """
    try:
        yield
    except ArtifactError:
        forget_damaged(folder, files_of(folder, named=named))
        raise


def files_of(folder: Path, *, named: re.Pattern[str] = MODEL_FILE) -> list[Path]:
    """Return the files below `folder` that a repository of a MODEL or component may have, or others, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if named.fullmatch(path.relative_to(folder).as_posix())]


def push_component(
    source: Path,
    kind: str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license_id: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Send the folder of a codec (`kind` "vqvae") or a prior as one commit and return where it can be seen.

    See `push` for the other arguments and what is raised.
    """
    from vq_prior.core.hub.cards import README, component_card, is_ours

    repo = target(repo_id, revision, license_id)
    with tempfile.TemporaryDirectory(prefix="vq-prior-") as temporary:
        folder = Path(temporary) / kind
        copy_component(source, folder)
        if is_ours(source / README):
            card = component_card(folder, kind, repo_id=repo.name, license_id=license_id)
            (folder / README).write_text(card, encoding="utf-8")
        message = f"{'Codec' if kind == 'vqvae' else 'Prior'} by vq-prior"
        return push(
            folder, repo, message=message, private=private, create_pr=create_pr, owns=is_model_file, token=token
        )


def target(repo_id: str, revision: str | None, license_id: str | None) -> HubId:
    """Return the repository to write; raises `UsageError` if an argument is malformed."""
    if "@" in repo_id:
        raise UsageError(f"--repo-id must be owner/name, got {repo_id}; name a branch by --revision")
    if license_id is not None and not LICENSE.fullmatch(license_id):
        raise UsageError(f"--license must be an id such as apache-2.0 or cc-by-4.0, got {license_id}")
    return HubId.parse(repo_id if revision is None else f"{repo_id}@{revision}")


def is_model_file(name: str) -> bool:
    """Return whether a MODEL or component may have a file of this name."""
    return bool(MODEL_FILE.fullmatch(name))


def copy_component(source: Path, folder: Path) -> None:
    """Copy a component into the new folder `folder`; one without a manifest gets one."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".*"))
    if not verify_manifest(folder):
        write_manifest(folder)
