"""Contenders in interleaved rounds, the extra memory of each, and how both are told."""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

Contenders = Mapping[str, Callable[[], object]]
RoundSeconds = dict[str, list[float]]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def require(**packages: str) -> None:
    """Leave with one line and exit code 2 if a module (by name; its package) is not installed."""
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        print(
            f'error: this benchmark compares with {", ".join(missing)}; run pip install "vq-prior[benchmark]"',
            file=sys.stderr,
        )
        raise SystemExit(2)


def device_of(arguments: argparse.Namespace) -> Any:
    """Return the device that the flags name, or the one that the commands would take."""
    import torch

    return torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="left out: a GPU if there is one")


def wait_for_device() -> None:
    """Return when everything that was asked of a GPU is done."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def interleaved(contenders: Contenders, *, rounds: int, warmup: int = 1, calls: int = 1) -> RoundSeconds:
    """Return the seconds of each contender in each round, for one call.

    Each round runs every contender once (or `calls` times, for what takes less than a clock can tell), and starts
    with another one than the round before: what the machine does beside falls on all of them. Warm-up rounds come
    first and are not kept.
    """
    names = list(contenders)
    seconds: RoundSeconds = {name: [] for name in names}
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wait_for_device()
            started = time.perf_counter()
            for _ in range(calls):
                contenders[name]()
            wait_for_device()
            if number >= warmup:
                seconds[name].append((time.perf_counter() - started) / calls)
    return seconds


def row(name: str, seconds: Sequence[float], **more: Any) -> dict[str, Any]:
    """Return the row of one contender: median seconds, the seconds of each round, and what else is known."""
    return {"name": name, "seconds": median(seconds), "seconds_per_round": list(seconds), **more}


def faster_by(ours: str, other: str, seconds: RoundSeconds) -> float:
    """Return how many times faster `ours` is than `other`, by medians."""
    return median(seconds[other]) / median(seconds[ours])


def extra_mb(function: Callable[[], object]) -> float | None:
    """Return by how many MB (10^6 bytes) the process grows at most while `function` runs, beyond what it holds before.

    For a process that did nothing like it yet: memory that an earlier run left to the allocator would hide the growth.
    None where the system does not tell. Once a GPU was used, it is that one's memory.
    """
    import torch

    if torch.cuda.is_initialized():
        wait_for_device()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        function()
        wait_for_device()
        return (torch.cuda.max_memory_allocated() - allocated) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        function()
        return (_status("VmHWM") - before) * 1024 / 1e6
    except (OSError, AttributeError):
        return None


def _status(entry: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(entry))


def extra_mb_of(name: str, arguments: Sequence[str]) -> float | None:
    """Return `extra_mb` of one contender of the benchmark that `arguments` call, in a fresh process."""
    command = [sys.executable, str(Path(__file__).parent), *arguments, "--memory-of", name]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(printed.splitlines()[-1])


def tell(
    benchmark: str,
    rows: Sequence[dict[str, Any]],
    ratios: Mapping[str, float | None],
    arguments: argparse.Namespace,
    **more: Any,
) -> None:
    """Print rows and ratios (above 1 we are faster); with `--json` the last line is all of it as one JSON object."""
    for entry in rows:
        spread = f"{min(entry['seconds_per_round']):.4f} to {max(entry['seconds_per_round']):.4f}"
        rest = ", ".join(f"{key} {_short(value)}" for key, value in entry.items() if not key.startswith("seconds"))
        print(f"{entry['seconds']:10.4f} s  ({spread})  {rest.removeprefix('name ')}")
    for key, value in ratios.items():
        print(f"{_short(value):>10}    {key}")
    if arguments.json:
        ratios = {key: value for key, value in ratios.items() if value is not None}
        print(json.dumps({"benchmark": benchmark, "rows": list(rows), "ratios": ratios, **more}))


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
