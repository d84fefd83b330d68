"""Identity hashes: what binds codes and priors to the codec that wrote them."""

from collections.abc import Mapping
from hashlib import sha1, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vq_prior.core.config import canonical_json
from vq_prior.core.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor


def content_id(description: Any, tensors: "Mapping[str, Tensor]") -> str:
    """Return a sha256 (64 hex digits) over a JSON description and named tensors.

    Tensors enter by sorted name with dtype, shape and little-endian bytes, so the
    result does not depend on the order, device or file they came from.
    """
    import torch

    digest = sha256(canonical_json(description))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(canonical_json([name, kind, list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_same_codec(first: str, first_id: str, second: str, second_id: str) -> None:
    """Raise `ArtifactError` naming both ids unless the two artefacts come from one codec."""
    if first_id != second_id:
        raise ArtifactError(
            f"{first} belongs to codec {first_id}, {second} to codec {second_id}; "
            "use the codec whose codes the prior was trained on"
        )


def hub_digest(path: Path, *, length: int) -> str:
    """Return the name that the Hub gives to the bytes of a file: sha256 (64 digits) or git's id of a blob (40)."""
    if length == 64:
        return file_sha256(path)
    digest = sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
