"""Parameters cut over the processes (FSDP2), for models whose training does not fit into one.

Each process holds one part of every parameter, its gradient, its average and its moments; a layer is gathered while
it computes. What is saved is whole, so that nobody can tell a sharded training from another.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def shard(module: nn.Module, layers: Iterable[nn.Module], device: torch.device, num_processes: int) -> nn.Module:
    """Cut the parameters of `module` over the processes, in place, and return it.

    Args:
        module: Whose forward pass calls the layers.
        layers: Parts that are gathered one at a time; what is left is gathered for the whole pass.
        device: Of this process; the parts are moved there.
        num_processes: Of all.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (num_processes,))
    cut: set[nn.Parameter] = set()
    for layer in layers:
        fully_shard(layer, mesh=mesh)
        cut.update(layer.parameters())
    fully_shard(module, mesh=mesh, ignored_params=cut)
    return module


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process holds a part of the tensor only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, of all processes' parts; every process must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor where `other` is, cut as `other` is if it is cut; every process must call it."""
    tensor = tensor.to(other.device)
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements)  # type: ignore[attr-defined]


def gathered(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return copies of named tensors, whole, contiguous and on the host; every process must call it.

    Args:
        tensors: Whole or cut.
        keep: Whether this process wants them; one that does not gets nothing and needs no memory for it.
    """
    copies = {}
    for name, tensor in tensors.items():
        if keep or is_sharded(tensor):
            copy = whole(tensor.detach())
            if keep:
                copies[name] = copy.cpu().contiguous().clone()
    return copies
