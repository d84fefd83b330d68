"""`vq-prior verify PATH`: whether an artefact is whole and its parts belong together."""

from pathlib import Path

from vq_prior.core.config import pretty_json, read_json
from vq_prior.core.disk.artifacts import MANIFEST, verify_manifest
from vq_prior.core.disk.code_store import MAX_INDEX_BYTES
from vq_prior.core.errors import ArtifactError


def verify(path: Path) -> list[str]:
    """Return a line on each artefact at `path` that holds.

    Args:
        path: A MODEL, component, code store, checkpoint, training folder, or RUN.

    Raises:
        ArtifactError: Naming the first thing that is missing or damaged.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    if not path.is_dir():
        raise ArtifactError(f"{path} is a file; every artefact of vq-prior is a folder")
    if (path / "codes.json").is_file():
        return [_verify_store(path)]
    if (path / "vqvae").is_dir() and (path / "prior").is_dir() and (path / "config.json").is_file():
        from vq_prior.model.pipeline import VQPriorPipeline

        VQPriorPipeline.from_pretrained(path)
        _require_as_written(path / "config.json")
        for part in ("vqvae", "prior"):
            _require_as_written(path / part / MANIFEST)
        return [f"{path}: the model is whole, its codec and prior belong together"]
    if (path / MANIFEST).is_file():
        _verify_sealed(path)
        return [f"{path}: every file matches the manifest"]
    if (path / "checkpoints").is_dir():
        return _verify_checkpoints(path / "checkpoints")
    lines = [line for part in sorted(path.iterdir()) if is_artefact(part) for line in verify(part)]
    if not lines:
        raise ArtifactError(f"{path} holds no artefact of vq-prior that could be checked")
    return lines


def _verify_sealed(folder: Path) -> bool:
    sealed = verify_manifest(folder)
    if sealed:
        _require_as_written(folder / MANIFEST)
    return sealed


def _require_as_written(path: Path) -> None:
    """Raise `ArtifactError` if a JSON file that no manifest covers is not byte for byte as this program writes it."""
    if path.is_file() and path.read_bytes() != pretty_json(read_json(path, max_bytes=MAX_INDEX_BYTES)):
        raise ArtifactError(f"{path} is damaged: its bytes are not those that were written; fetch or make it anew")


def is_artefact(path: Path) -> bool:
    """Return whether a folder is a MODEL, component, code store or training folder, by the files in it."""
    known = ("codes.json", MANIFEST, "checkpoints", "config.json")
    return path.is_dir() and not path.name.startswith(".") and any((path / name).exists() for name in known)


def _verify_store(path: Path) -> str:
    from vq_prior.core.disk.code_store import CodeStore

    store = CodeStore.open(path)
    store.verify()
    _require_as_written(path / "codes.json")
    rows = len(store) + len(CodeStore.open(path, "validation"))
    return f"{path}: {rows} rows of codes match their index"


def _verify_checkpoints(folder: Path) -> list[str]:
    lines = []
    for checkpoint in sorted(folder.glob("step-*")):
        if not _verify_sealed(checkpoint):
            raise ArtifactError(f"{checkpoint} has no {MANIFEST}")
        lines.append(f"{checkpoint}: every file matches the manifest")
    if not lines:
        raise ArtifactError(f"{folder} holds no checkpoint")
    return lines
