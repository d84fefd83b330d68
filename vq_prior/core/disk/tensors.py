"""safetensors files from outside, checked before a payload is read."""

import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from vq_prior.core.config import parse_json
from vq_prior.core.disk.names import readable
from vq_prior.core.disk.pointers import require_no_pointer
from vq_prior.core.errors import ArtifactError, NumericError

MAX_HEADER_BYTES, MAX_TENSORS = 4 << 20, 1 << 14
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors header says of one tensor; `start` and `end` are byte positions in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Return the tensors a safetensors file announces, without reading any of them.

    Raises:
        ArtifactError: If the file is missing, truncated, or its header is malformed, overlapping or too large (4 MiB,
            16384 tensors).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                require_no_pointer(path)
                raise ArtifactError(f"{path} is not a whole safetensors file; fetch or write it anew")
            header = file.read(length).rstrip(b" ")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if header.count(b'"dtype"') > MAX_TENSORS:
        raise ArtifactError(f"the header of {path} announces more than {MAX_TENSORS} tensors")
    document = parse_json(header, f"the header of {path}")
    if not isinstance(document, dict):
        raise ArtifactError(f"the header of {path} is not an object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ArtifactError(f"the header of {path} is malformed at '__metadata__'")
    headers: dict[str, TensorHeader] = {}
    for name, entry in document.items():
        announced = _announced(entry, 8 + length)
        if announced is None:
            raise ArtifactError(f"the header of {path} is malformed at tensor {name!r}")
        headers[name] = announced
    position = 8 + length
    for name, tensor in sorted(headers.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            raise ArtifactError(f"{path}: tensor {name!r} overlaps another or leaves a gap")
        position = tensor.end
    if position != size:
        raise ArtifactError(f"{path} has {size} bytes where its header announces {position}; fetch or write it anew")
    return headers


def _announced(entry: object, payload: int) -> TensorHeader | None:
    """Return what an entry of a header says of its tensor, or None if it is malformed."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(shape) > 8 or len(offsets) != 2:
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, *offsets)):
        return None
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        return None
    if offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        return None
    return TensorHeader(dtype, tuple(shape), payload + offsets[0], payload + offsets[1])


def read_tensors(path: Path, expected: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        path: The file.
        expected: Tensors (meta ones will do) whose names and shapes the file must have, no more and no fewer.

    Raises:
        ArtifactError: Naming the first tensor that is missing, unknown or of another shape.
    """
    if expected is None:
        read_header(path)
    else:
        check_header(path, expected)
    return load_file(path) if _is_text(path) else load(path.read_bytes())


def _is_text(path: Path) -> bool:
    """Return whether the name of a file is text, which the library asks of files that it opens itself."""
    return readable(str(path)) == str(path)


def read_named(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return some tensors of a safetensors file whose header was read and has them; the rest is not read."""
    if not _is_text(path):
        tensors = load(path.read_bytes())
        return {name: tensors[name] for name in names}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def check_header(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Raise `ArtifactError` unless a file has tensors of these names and shapes, no more and no fewer; reads none."""
    headers = read_header(path)
    for name in sorted(headers.keys() ^ expected.keys()):
        raise ArtifactError(f"{path} {'lacks' if name in expected else 'has an unknown'} tensor {name!r}")
    for name, header in headers.items():
        if header.shape != tuple(expected[name].shape):
            raise ArtifactError(
                f"{path}: tensor {name!r} has shape {list(header.shape)}, its config {list(expected[name].shape)}"
            )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file; the same tensors give the same bytes.

    Raises:
        NumericError: If a tensor is not finite; nothing is written then.
        OSError: If the disk is full or fails.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NumericError(f"{path.stem} is not finite at {name!r}; it was not written")
    try:
        save_file(dict(sorted(tensors.items())), path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
