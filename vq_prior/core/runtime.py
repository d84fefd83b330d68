"""The processes: device, precision, sums over processes, signals.

Accelerate starts and joins the processes; what a step sees and what is saved
stay ours. Letters: W number of processes.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vq_prior.core.errors import EnvironmentFault, NumericError, UsageError, tell
from vq_prior.core.identity import content_id
from vq_prior.core.watchdog import Watchdog, watch_over

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Runtime:
    """Where this process runs.

    Attributes:
        accelerator: The `accelerate.Accelerator` that launched or joined the processes.
        precision: Autocast dtype of the forward passes; weights stay float32.
    """

    accelerator: Any
    precision: Precision

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.accelerator.device

    @property
    def process_index(self) -> int:
        """Number of this process, in [0, W)."""
        return self.accelerator.process_index

    @property
    def num_processes(self) -> int:
        """W."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.accelerator.is_main_process

    def share(self, total: int) -> slice:
        """Return this process's contiguous part of `total` rows; the parts differ by one row at most."""
        first = total * self.process_index // self.num_processes
        return slice(first, total * (self.process_index + 1) // self.num_processes)

    def say(self, line: str) -> None:
        """Print a line on stdout, on the main process only."""
        if self.is_main:
            print(line, flush=True)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def autocast(self) -> Any:
        """Return the context in which forward passes run at `precision`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return `module` on this process's device, wrapped so that gradients are averaged over processes.

        Buffers are never broadcast: statistics are summed where they are computed.
        """
        module.to(self.device)
        if self.num_processes == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def describe(self) -> str:
        """Return one line that names device, precision and processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f" ({torch.get_num_threads()} threads each)" if self.device.type == "cpu" else ""
        plural = "process" if self.num_processes == 1 else "processes"
        return f"device {name}{threads}, precision {self.precision}, {self.num_processes} {plural}"


def has_native_bf16(device_type: str) -> bool:
    """Return whether this kind of device multiplies in bfloat16 itself; on a CPU, by AVX512-BF16 or AMX."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    # An older torch cannot tell: then it is taken not to.
    asked: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device_type == "cpu" else {}
    return bool(asked.get("avx512_bf16") or asked.get("amx_bf16"))


def start_runtime(precision: Precision | None = None) -> Runtime:
    """Join the processes of this launch and return this one's place.

    Args:
        precision: None chooses bf16 on a GPU that has it and fp32 elsewhere.

    Raises:
        EnvironmentFault: If the launcher's WORLD_SIZE and the processes that really joined differ.
    """
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(), mixed_precision="no")
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise EnvironmentFault(
            f"the launcher announced {expected} processes (WORLD_SIZE) but {accelerator.num_processes} joined; "
            "on a machine without a GPU set ACCELERATE_USE_CPU=1 and launch with --multi_gpu"
        )
    _watch_over_others(accelerator)
    device = accelerator.device
    if precision is None:
        precision = "bf16" if device.type == "cuda" and has_native_bf16("cuda") else "fp32"
    if precision == "bf16" and device.type == "mps":
        raise UsageError("precision bf16 is not available on mps; use fp32")
    return Runtime(accelerator, precision)


_watchdogs: list[Watchdog] = []


def _watch_over_others(accelerator: Any) -> None:
    """Start the watchdog of this process, once: a lost process ends this one in half a minute."""

    def lost(sentence: str) -> None:
        tell(f"error: {sentence}; run the same command to continue from the last saved state", 5)
        os._exit(EnvironmentFault.exit_code)

    if not _watchdogs and (watchdog := watch_over(accelerator.process_index, accelerator.num_processes, lost)):
        _watchdogs.append(watchdog)


def leave_runtime(exit_code: int) -> None:
    """End this process with `exit_code` if it is one of several; return if it is alone. Nothing may follow.

    The threads of a process group outlive `destroy_process_group` once a module was wrapped, and a thread that still
    lets go of a tensor while the interpreter is taken down aborts the process. So it is not taken down.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for watchdog in _watchdogs:
            watchdog.leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, the same on each; the input is left alone."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_rows(tensor: Tensor) -> Tensor:
    """Return the rows `[n, ...]` of all processes in process order; the counts may differ."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=tensor.device)
    counts[dist.get_rank()] = tensor.shape[0]
    dist.all_reduce(counts)
    longest = int(counts.max())
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in range(len(counts))]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def require_same_everywhere(tensors: Mapping[str, Tensor], what: str) -> None:
    """Compare the bits of named tensors over all processes; every process must call it.

    Args:
        tensors: On this process.
        what: What to call them in a message.

    Raises:
        NumericError: On every process, if two of them differ.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    digest = torch.frombuffer(bytearray.fromhex(content_id({}, tensors)), dtype=torch.int64)
    digests = gather_rows(digest[None].cuda() if dist.get_backend() == "nccl" else digest[None])
    others = (digests != digests[0]).any(dim=1).nonzero().flatten().tolist()
    if others:
        raise NumericError(
            f"{what} of process {others[0]} is not that of process 0; nothing was saved, the last checkpoint is whole"
        )


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module below a data-parallel wrapper."""
    inner = getattr(module, "module", None)
    return inner if isinstance(inner, nn.Module) and type(module).__name__ == "DistributedDataParallel" else module


def accumulating(module: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which backward passes add to this process's own gradients, not averaged over processes."""
    return module.no_sync() if unwrap(module) is not module else nullcontext()  # type: ignore[operator]


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer, whole, contiguous and on the host, by its unwrapped name.

    The only place that gathers sharded parameters.
    """
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in unwrap(module).state_dict().items()}


class StopFlag:
    """Whether a signal asked this run to stop; read at step boundaries with `agreed()`."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            os._exit(75)
        self.signal_name = signal.Signals(number).name

    def agreed(self) -> bool:
        """Return whether any process was asked to stop; every process gets the same answer."""
        asked = torch.tensor([1 if self.signal_name else 0], dtype=torch.int32)
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl":
            asked = asked.cuda()
        return bool(sum_over_processes(asked).item())


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Yield a flag that SIGTERM, SIGUSR1 and Ctrl-C raise; the former handlers come back afterwards.

    The handler only sets the flag. A second Ctrl-C ends the process at once.
    """
    flag = StopFlag()
    former = {number: signal.signal(number, flag._on_signal) for number in _stop_signals()}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _stop_signals() -> list[signal.Signals]:
    names = ("SIGTERM", "SIGUSR1", "SIGINT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
