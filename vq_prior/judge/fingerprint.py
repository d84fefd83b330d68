"""`vq-prior fingerprint PATH`: one hash of what an artefact is, whenever, wherever and in how many goes it was made.

Weights, averages, optimiser state, the losses to their last digit, codes and images count; what differs between two
equal runs does not: names of folders, times and rates in a log, hidden files, checkpoints but the newest, and the
pictures of a training, of which one that was stopped has more.
"""

import json
from hashlib import sha256
from pathlib import Path

from vq_prior.core.config import canonical_json
from vq_prior.core.disk.checkpoints import latest_checkpoint
from vq_prior.core.errors import ArtifactError
from vq_prior.core.identity import file_sha256
from vq_prior.judge.verify import is_artefact

TIMES = ("elapsed_seconds", "images_per_second")


def fingerprint(path: Path) -> list[str]:
    """Return a line on each artefact at `path`, and one on all of them.

    Args:
        path: A MODEL, component, code store, training folder, folder of pictures, or RUN.

    Raises:
        ArtifactError: If there is nothing of ours, or a training folder has no checkpoint that verifies.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    if is_artefact(path) or (path / "samples.json").is_file():
        return [f"fingerprint {_digest(path)}"]
    parts = {part.name: _digest(part) for part in sorted(path.iterdir()) if is_artefact(part)}
    if not parts:
        raise ArtifactError(f"{path} holds no artefact of vq-prior")
    lines = [f"{name} {digest}" for name, digest in parts.items()]
    return [*lines, f"fingerprint {sha256(canonical_json(parts)).hexdigest()}"]


def _digest(folder: Path) -> str:
    if (folder / "checkpoints").is_dir():
        newest, _ = latest_checkpoint(folder / "checkpoints")
        if newest is None:
            raise ArtifactError(f"{folder} has no checkpoint that verifies")
        checkpoint = folder / "checkpoints" / f"step-{newest.step:08d}"
        hashes = {path.name: file_sha256(path) for path in checkpoint.iterdir()}
        hashes["metrics.jsonl"] = sha256(_losses(folder / "metrics.jsonl")).hexdigest()
    else:
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    return sha256(canonical_json(hashes)).hexdigest()


def _losses(path: Path) -> bytes:
    """Return the lines of a log without what depends on the clock, numbers with every bit."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        entry = {name: value for name, value in json.loads(line).items() if name not in TIMES}
        lines.append({k: v.hex() if isinstance(v, float) else v for k, v in entry.items()})
    return canonical_json(lines)
