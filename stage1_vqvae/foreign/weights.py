"""The tensors of one module out of the safetensors files of another program, whole or in shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq_prior.core.config import read_json
from vq_prior.core.disk.components import WEIGHTS
from vq_prior.core.disk.tensors import read_header, read_named
from vq_prior.core.errors import ArtifactError

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (WEIGHTS, DIFFUSERS_WEIGHTS)
INDICES = tuple(f"{name}.index.json" for name in FILES)
PICKLES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "pytorch_model.bin.index.json")
PREFIXES = ("model.vqmodel.", "vqmodel.")  # of a tokeniser within a whole model: with its head, and without
MAX_INDEX_BYTES = 32 << 20


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds safetensors weights under a name that other programs use."""
    return any((folder / name).is_file() for name in (*FILES, *INDICES))


def foreign_files(config: Mapping[str, Any], index: Mapping[str, Any] | None = None) -> list[str]:
    """Return the files of a repository that its tokeniser needs, as far as they exist; nothing else need be fetched.

    Args:
        config: Its config.json.
        index: Its model.safetensors.index.json, if it has one: then only the shards that hold the tokeniser are named.
    """
    names = ["config.json", "preprocessor_config.json", "processor_config.json", "manifest.json"]
    if index is None:
        return [*names, *((DIFFUSERS_WEIGHTS,) if "_class_name" in config else ()), WEIGHTS, *INDICES]
    weight_map = index.get("weight_map")
    weight_map = weight_map if isinstance(weight_map, dict) else {}
    whole = "vq_config" in config
    shards = {file for name, file in weight_map.items() if not whole or name.startswith(PREFIXES)}
    return [*names, *INDICES, *sorted(file for file in shards if _is_plain(file))]


def _is_plain(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")


def _homes(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of a folder."""
    for name in FILES:
        if (folder / name).is_file():
            return dict.fromkeys(read_header(folder / name), folder / name)
    for name in INDICES:
        if (folder / name).is_file():
            index = read_json(folder / name, max_bytes=MAX_INDEX_BYTES)
            weight_map = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(weight_map, dict) or not all(map(_is_plain, weight_map.values())):
                raise ArtifactError(f"{folder / name}: weight_map must give each tensor a .safetensors file beside it")
            return {tensor: folder / file for tensor, file in weight_map.items()}
    raise ArtifactError(f"{folder} has no {' or '.join(FILES)}")


def read_module_tensors(
    folder: Path, expected: Mapping[str, Tensor], *, whole: bool, spare: str | None
) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of one module by its own names, floating ones as float32, and how many spare ones there are.

    Args:
        folder: Of a module, or of a whole model that holds it.
        expected: Names and shapes that the module must have, no more and no fewer; meta tensors will do.
        whole: Whether it is a part of a whole model; the rest is then not read.
        spare: Prefix of tensors that may be there without being expected.

    Raises:
        ArtifactError: Naming the first tensor that is missing, unknown, of another shape or type, or not finite.
    """
    homes, prefix = _homes(folder), ""
    if whole:
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in homes)), PREFIXES[0])
    mine = {name.removeprefix(prefix): file for name, file in homes.items() if name.startswith(prefix)}
    unused = {name for name in mine.keys() - expected.keys() if spare is not None and name.startswith(spare)}
    for name in sorted((mine.keys() - unused) ^ expected.keys()):
        raise ArtifactError(f"{folder} {'lacks' if name in expected else 'has an unknown'} tensor {prefix + name!r}")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(mine.values())):
        names = {prefix + name: name for name, home in mine.items() if home == file and name not in unused}
        _check_header(file, {full: expected[name] for full, name in names.items()})
        for full, tensor in read_named(file, names).items():
            if tensor.is_floating_point():
                tensor = tensor.float()
                if not torch.isfinite(tensor).all():
                    raise ArtifactError(f"{file}: tensor {full!r} holds values that are not finite")
            tensors[names[full]] = tensor
    return tensors, len(unused)


def _check_header(file: Path, expected: Mapping[str, Tensor]) -> None:
    headers = read_header(file)
    for name, tensor in expected.items():
        header = headers.get(name)
        if header is None:
            raise ArtifactError(f"{file} lacks tensor {name!r}")
        if header.shape != tuple(tensor.shape) or header.dtype.is_floating_point != tensor.is_floating_point():
            raise ArtifactError(
                f"{file}: tensor {name!r} is {header.dtype} {list(header.shape)}, its config wants {list(tensor.shape)}"
            )
