"""What all processes do together: sums, rows of all, and whether they hold the same. Alone, a process gets its own."""

import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vq_prior.core.errors import NumericError
from vq_prior.core.identity import content_id
from vq_prior.core.processes.ordered_sums import NUM_SHARDS, TreeSum

MAX_POLLING = 0.1  # seconds


def _has_others() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _wait(work: Any) -> None:
    """Wait until a collective is done.

    On a host that has a core for each process, by asking again and again for a while: a core that falls asleep at
    every sum of a training step wakes late. Between two questions whoever else wants the core has it, gloo's own
    threads, which carry the numbers, before all.
    """
    if dist.get_backend() == "gloo" and _has_core_each():
        until = time.monotonic() + MAX_POLLING
        while not work.is_completed() and time.monotonic() < until:
            _yield_core()
    work.wait()


def _yield_core() -> None:
    os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)


@functools.cache
def _has_core_each() -> bool:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= cores


def mean_over_processes(number: float, device: torch.device) -> float:
    """Return the mean of what each process measured, in float32, the same number on every one.

    Args:
        number: Of this process.
        device: That its collectives run on.
    """
    mine = torch.tensor(number, dtype=torch.float32, device=device)
    others = dist.get_world_size() if _has_others() else 1
    return float(sum_over_processes(mine)) / others


def sum_over_processes(tensor: Tensor, *, ordered: bool = True) -> Tensor:
    """Return the sum of `tensor` over all processes, the same on each; the input is left alone.

    Args:
        tensor: On this process.
        ordered: Whether up to `NUM_SHARDS` processes are added in the order of a `TreeSum`, which takes memory for
            the tensor of each.
    """
    if not _has_others():
        return tensor
    if not ordered or dist.get_world_size() > NUM_SHARDS:
        total = tensor.clone()
        _wait(dist.all_reduce(total, async_op=True))
        return total
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    _wait(dist.all_gather(parts, tensor.contiguous(), async_op=True))
    tree = TreeSum()
    for part in parts:
        tree.add(part)
    summed = tree.total()
    assert summed is not None
    return summed


def gather_rows(tensor: Tensor) -> Tensor:
    """Return the rows `[n, ...]` of all processes in process order; the counts may differ."""
    if not _has_others():
        return tensor
    counts = _row_counts(tensor)
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    _wait(dist.all_gather(parts, padded, async_op=True))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def take_rows(tensor: Tensor, choose: Callable[[int], Tensor]) -> Tensor:
    """Return some of the rows `[n, ...]` of all processes, on each; only these travel.

    Args:
        tensor: On this process; the counts may differ.
        choose: Gives, for the number of rows of all processes, the indices of those to return, [m] int64 on the host:
            the same on every process. They count the rows in process order.
    """
    if not _has_others():
        return tensor[choose(tensor.shape[0]).to(tensor.device)]
    counts = _row_counts(tensor)
    first = sum(counts[: dist.get_rank()])
    chosen = choose(sum(counts))
    mine = chosen[(chosen >= first) & (chosen < first + tensor.shape[0])] - first
    taken = gather_rows(tensor[mine.to(tensor.device)])
    # They came in the order of processes: row i of them is that which the i-th smallest owner's place in `chosen` has.
    owners = torch.bucketize(chosen, torch.tensor(counts).cumsum(0), right=True)
    order = owners.argsort(stable=True)
    return taken[order.argsort().to(tensor.device)]


def _row_counts(tensor: Tensor) -> list[int]:
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=tensor.device)
    counts[dist.get_rank()] = tensor.shape[0]
    _wait(dist.all_reduce(counts, async_op=True))
    return counts.tolist()


def require_same_everywhere(tensors: Mapping[str, Tensor], what: str) -> None:
    """Compare the bits of named tensors over all processes; every process must call it.

    Args:
        tensors: On this process.
        what: What to call them in a message.

    Raises:
        NumericError: On every process, if two of them differ.
    """
    if not _has_others():
        return
    digest = torch.frombuffer(bytearray.fromhex(content_id({}, tensors)), dtype=torch.int64)
    digests = gather_rows(digest[None].cuda() if dist.get_backend() == "nccl" else digest[None])
    others = (digests != digests[0]).any(dim=1).nonzero().flatten().tolist()
    if others:
        raise NumericError(
            f"{what} of process {others[0]} is not that of process 0; nothing was saved, the last checkpoint is whole"
        )
