"""Component folders: a model's weights and configs, sealed by a manifest.

A component is a folder such as `RUN/vqvae` or `MODEL/prior`, readable by
transformers. Its weights are loaded strictly, after the config was checked.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vq_prior.core.config import read_json
from vq_prior.core.disk.artifacts import verify_manifest
from vq_prior.core.disk.tensors import read_tensors
from vq_prior.core.errors import ArtifactError

WEIGHTS = "model.safetensors"
MAX_DIMENSION = 1 << 20
RUNS_CODE = re.compile(
    r"auto_map|_target_|trust_remote_code|custom_\w+|\w*(attn|experts)_implementation\w*|\w*kernels?"
)


def find_component(path: Path, name: str) -> Path:
    """Return the folder of component `name` ("vqvae", "prior") given itself, a RUN or a MODEL.

    Raises:
        ArtifactError: If neither `path` nor `path/name` holds one.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    for candidate in (path / name, path / "model" / name, path):
        if (candidate / WEIGHTS).is_file():
            return candidate
    raise ArtifactError(f"{path} holds no {name}: neither it nor {path / name} has a {WEIGHTS}")


def check_sealed(folder: Path) -> list[str]:
    """Return notes on a component folder whose bytes match its manifest: one line if it has no manifest.

    Raises:
        ArtifactError: If it has a manifest that does not hold.
    """
    if verify_manifest(folder):
        return []
    return [f"{folder} has no manifest.json (saved by another program?); its bytes were not verified"]


def check_transformers_config(path: Path, *, model_types: tuple[str, ...]) -> dict[str, Any]:
    """Return a transformers config.json that is safe to hand to transformers.

    Raises:
        ArtifactError: On an unknown model type, a dimension beyond reason, or a key that names code to be imported:
            `auto_map`, or an attention kernel of another repository.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} must hold an object")
    for key in filter(RUNS_CODE.fullmatch, _keys(config)):
        raise ArtifactError(f"{path} asks to run code ({key}); remove the key if you trust the weights alone")
    if config.get("model_type") not in model_types:
        raise ArtifactError(f"{path}: model_type must be {' or '.join(model_types)}, got {config.get('model_type')!r}")
    _check_dimensions(config, str(path))
    return config


def _keys(value: Any) -> Iterator[str]:
    """Yield the keys of every object within a JSON value."""
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(item)


def _check_dimensions(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_dimensions(item, f"{where}: {key}")
    elif isinstance(value, list):
        for item in value:
            _check_dimensions(item, where)
    elif isinstance(value, int) and abs(value) > MAX_DIMENSION:
        raise ArtifactError(f"{where} is {value}, beyond the {MAX_DIMENSION} allowed")


def load_strictly(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into `module`, every tensor and no other.

    Raises:
        ArtifactError: Naming the first tensor that is missing, unknown, of another shape, or not finite.
    """
    expected = module.state_dict()
    tensors = read_tensors(path, expected)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(f"{path}: tensor {name!r} holds values that are not finite")
    module.load_state_dict(tensors, strict=True, assign=False)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a transformers config dict that describe architecture: no paths, no versions."""
    dropped = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
    return {key: value for key, value in config.items() if key not in dropped}
