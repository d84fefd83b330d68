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


def interleaved(contenders: Contenders, *, rounds: int, warmup: int = 1) -> RoundSeconds:
    """Return the seconds of each contender in each round.

    Each round runs every contender once, and starts with another one than the round before: what the machine does
    beside falls on all of them. Warm-up rounds come first and are not kept.
    """
    names = list(contenders)
    seconds: RoundSeconds = {name: [] for name in names}
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            contenders[name]()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
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
    None where the system does not tell.
    """
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
