"""Training checkpoints: named modules, optimisers and averages as flat tensors, and a JSON state.

`checkpoints/step-00000500/` holds `modules.NAME.safetensors`,
`optimizers.NAME.safetensors`, `averages.NAME.safetensors`, `state.json` and the
manifest. The latest is the highest step whose manifest holds.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vq_prior.core.config import from_json, pretty_json, read_json
from vq_prior.core.disk.artifacts import new_folder, remove, verify_manifest, write_atomic
from vq_prior.core.disk.tensors import read_tensors, write_tensors
from vq_prior.core.errors import ArtifactError

KINDS = ("modules", "optimizers", "averages")


@dataclass
class Checkpoint:
    """The state of a training run after `step` optimiser steps.

    Attributes:
        step: Optimiser steps done.
        modules: Tensors of each named module.
        optimizers: Flat tensors of each named optimiser.
        averages: Tensors of each named set of averaged (or best) weights.
        state: JSON values that the loop needs besides, the best validation loss, say.
    """

    step: int
    modules: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """`state.json`."""

    format_version: int
    step: int
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write a checkpoint whole below `folder`, retire all but the `keep` newest, and return its path.

    Raises:
        NumericError: If a tensor is not finite; no checkpoint is written then.
    """
    groups = {kind: getattr(checkpoint, kind) for kind in KINDS}
    final = folder / f"step-{checkpoint.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with new_folder(final) as staging:
        for kind, members in groups.items():
            for name, tensors in members.items():
                write_tensors(staging / f"{kind}.{name}.safetensors", tensors)
        write_atomic(staging / "state.json", pretty_json(_State(1, checkpoint.step, checkpoint.state)))
    # A later step is a damaged one that was passed over; it must not push this checkpoint out.
    for old in [path for path in _steps(folder) if path <= final][:-keep]:
        remove(old)
    return final


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that verifies (None without one), and a line on each one passed over."""
    passed_over: list[str] = []
    for path in reversed(_steps(folder)):
        try:
            return load_checkpoint(path), passed_over
        except ArtifactError as error:
            passed_over.append(f"passed over checkpoint {path.name}: {error}")
    return None, passed_over


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in the folder `path`.

    Raises:
        ArtifactError: If it has no manifest or does not match it.
    """
    if not verify_manifest(path):
        raise ArtifactError(f"{path} has no manifest.json")
    document = from_json(_State, read_json(path / "state.json"), str(path / "state.json"))
    if document.format_version != 1:
        raise ArtifactError(f"{path} has format version {document.format_version}; this version reads 1")
    checkpoint = Checkpoint(document.step, {}, state=document.state)
    for file in sorted(path.glob("*.safetensors")):
        kind, _, name = file.stem.partition(".")
        if kind not in KINDS:
            raise ArtifactError(f"{file} is of no known kind")
        getattr(checkpoint, kind)[name] = read_tensors(file)
    return checkpoint
