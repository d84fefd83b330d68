"""The processes: how one joins, its device, precision and share of the work.

Accelerate starts and joins the processes; what a step sees and what is saved
stay ours. Letters: W number of processes.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vq_prior.core.errors import EnvironmentFault, UsageError, tell
from vq_prior.core.processes.collectives import sum_over_processes
from vq_prior.core.processes.ordered_sums import NUM_SHARDS
from vq_prior.core.processes.sharding import gathered
from vq_prior.core.processes.threads import FILE, StepThreads
from vq_prior.core.processes.watchdog import Watchdog, watch_over
from vq_prior.core.quiet import muted

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Runtime:
    """Where this process runs.

    Attributes:
        accelerator: The `accelerate.Accelerator` that launched or joined the processes.
        precision: Autocast dtype of the forward passes; weights stay float32.
        reproducible: Whether training gives the same bits on 1, 2, 4 and 8 processes.
    """

    accelerator: Any
    precision: Precision
    reproducible: bool = False

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

    def step_threads(self, folder: Path, fixed: int | None) -> StepThreads:
        """Return the threads of the steps of a training in `folder`; `fixed` is what `--threads` says.

        They change while it runs where one process trains on a CPU, several threads at hand.
        """
        follows = self.device.type == "cpu" and self.num_processes == 1 and fixed is None
        return StepThreads(folder / FILE, torch.get_num_threads() if follows else 1)

    def pieces(self, total: int, count: int = 1) -> list[slice]:
        """Return the consecutive pieces in which this process works through its share of `total` rows.

        Their sizes are one apart at most.

        Args:
            total: Rows of all processes.
            count: Pieces of a process. A reproducible run has its own: the logical shards of this process.
        """
        if not self.reproducible:
            return cut(self.share(total), count)
        count = NUM_SHARDS // self.num_processes
        return cut(slice(0, total), NUM_SHARDS)[self.process_index * count : (self.process_index + 1) * count]

    def sum_over_piece(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over the processes that share a piece of a batch: this one's, if reproducible."""
        return tensor if self.reproducible else sum_over_processes(tensor)

    def require_rows(self, batch_size: int, accumulation_steps: int) -> None:
        """Raise `UsageError` unless a batch has a row for every piece of every process."""
        if self.reproducible and accumulation_steps > 1:
            raise UsageError(
                f"--reproducible works through {NUM_SHARDS} shards of a batch one by one; "
                f"leave out --gradient-accumulation-steps {accumulation_steps}"
            )
        least = NUM_SHARDS if self.reproducible else self.num_processes * accumulation_steps
        if batch_size < least:
            piece = "logical shard" if self.reproducible else "process and accumulation step"
            raise UsageError(f"--batch-size must be at least {least}, one row for each {piece}, got {batch_size}")

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
        """Return `module` on this process's device, on a GPU wrapped so that gradients are averaged over processes.

        Buffers are never broadcast: statistics are summed where they are computed. Without a wrapper `StepSums` sums
        the gradients: where they are reproducible, and on a CPU, where the wrapper would sleep inside of the backward
        pass (see `_wait`).
        """
        module.to(self.device)
        if self.num_processes == 1 or self.reproducible or self.device.type == "cpu":
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module, device_ids=[self.device.index], broadcast_buffers=False)

    def describe(self) -> str:
        """Return one line that names device, precision and processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f" ({torch.get_num_threads()} threads each)" if self.device.type == "cpu" else ""
        plural = "process" if self.num_processes == 1 else "processes"
        mode = ", reproducible" if self.reproducible else ""
        return f"device {name}{threads}, precision {self.precision}, {self.num_processes} {plural}{mode}"


def cut(rows: slice, count: int) -> list[slice]:
    """Return `count` consecutive pieces of some rows, their sizes one apart at most.

    >>> cut(slice(10, 17), 3)
    [slice(10, 12, None), slice(12, 14, None), slice(14, 17, None)]
    """
    many = rows.stop - rows.start
    cuts = [rows.start + many * n // count for n in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


def has_native_bf16(device_type: str) -> bool:
    """Return whether this kind of device multiplies in bfloat16 itself; on a CPU, by AVX512-BF16 or AMX."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    # An older torch cannot tell: then it is taken not to.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device_type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def start_runtime(
    precision: Precision | None = None, *, reproducible: bool = False, threads: int | None = None
) -> Runtime:
    """Join the processes of this launch and return this one's place.

    Args:
        precision: None chooses bf16 on a GPU that has it and fp32 elsewhere.
        reproducible: Whether training has to give the same bits on 1, 2, 4 and 8 processes. Each then computes with
            one thread (the order of a sum depends on their number), on a GPU with deterministic kernels.
        threads: That a process computes with on a CPU; None leaves torch's number.

    Raises:
        EnvironmentFault: If the launcher's WORLD_SIZE and the processes that really joined differ.
        UsageError: If the number of processes or threads cannot be reproducible, or the device has not this precision.
    """
    if reproducible and threads not in (None, 1):
        raise UsageError(f"--reproducible computes with one thread; leave out --threads {threads}")
    if threads is not None:
        torch.set_num_threads(threads)
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    _take_over_sharding()
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    with muted() if expected > 1 else nullcontext():  # gloo speaks of every process that is gone when it would join it
        accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(), mixed_precision="no")
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
    torch.backends.cudnn.allow_tf32 = False  # fp32 is float32
    if reproducible:
        _fix_order(accelerator.num_processes, device)
    return Runtime(accelerator, precision, reproducible)


_sharding_asked = False


def _take_over_sharding() -> None:
    """Remember that the launcher was told to shard, and take it from Accelerate: sharding is ours to do."""
    global _sharding_asked
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        _sharding_asked = True
        os.environ["ACCELERATE_USE_FSDP"] = "false"


def sharding_asked() -> bool:
    """Return whether the file of the launcher says FSDP."""
    return _sharding_asked


def _fix_order(num_processes: int, device: torch.device) -> None:
    """Make this process compute the same bits as any other of a run with another number of processes."""
    if NUM_SHARDS % num_processes:
        raise UsageError(
            f"--reproducible cuts a batch into {NUM_SHARDS} shards and runs on 1, 2, 4 or 8 processes, "
            f"got {num_processes}"
        )
    torch.set_num_threads(1)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


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


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module below a data-parallel wrapper."""
    inner = getattr(module, "module", None)
    return inner if isinstance(inner, nn.Module) and type(module).__name__ == "DistributedDataParallel" else module


def averages_gradients(module: nn.Module) -> bool:
    """Return whether a backward pass through this module, wrapped or not, averages the gradients over the processes."""
    return unwrap(module) is not module or hasattr(module, "set_requires_gradient_sync")


@contextmanager
def accumulating(module: nn.Module) -> Iterator[None]:
    """Make backward passes add to this process's own gradients, not averaged over processes, for a block."""
    if unwrap(module) is not module:
        with module.no_sync():  # type: ignore[operator]
            yield
    elif hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(False)  # type: ignore[operator]
        yield
        module.set_requires_gradient_sync(True)  # type: ignore[operator]
    else:
        yield


def full_state(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer, whole, contiguous and on the host, by its unwrapped name.

    Every process must call it where parameters are sharded; one that does not `keep` gets nothing.
    """
    return gathered(unwrap(module).state_dict(), keep=keep)
