"""`--num-processes N`: Accelerate's launcher, started in this process.

The processes hand their first error to the launcher through a file, so that one
line reaches stderr whatever fails where.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from vq_prior.cli.invocation import Invocation
from vq_prior.core.errors import ERROR_FILE_VARIABLE, LOST, EnvironmentFault, Stopped
from vq_prior.core.processes.interruption import ignore_signals, let_go_of_dead_terminal, stop_signals

STOPS = [-getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
OF_ANOTHER_LAUNCHER = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
HANDLED_BY_LAUNCHER = "PET_SIGNALS_TO_HANDLE"  # torchrun reads its own flags from variables of such names


def launch(invocation: Invocation) -> int:
    """Run the command on `invocation.num_processes` processes of this machine and return its exit code."""
    assert invocation.num_processes is not None
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "1"
    if not invocation.debug:
        logging.disable(logging.CRITICAL)  # the launcher would announce the signal it passes on
    for name in OF_ANOTHER_LAUNCHER:
        os.environ.pop(name, None)
    stops = stop_signals()
    if hasattr(signal, "SIGHUP") and signal.SIGHUP not in stops:  # nohup: the launcher would hear it all the same
        os.environ.setdefault(HANDLED_BY_LAUNCHER, "SIGTERM,SIGINT,SIGQUIT")
    for number in stops:
        signal.signal(number, signal.default_int_handler)
    if hasattr(signal, "SIGUSR1"):  # the launcher passes SIGTERM on; a scheduler's SIGUSR1 means the same to us
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, lambda *_: _tell_one())
    with tempfile.TemporaryDirectory(prefix="vq-prior-") as folder:
        report = Path(folder) / "error.json"
        os.environ[ERROR_FILE_VARIABLE] = str(report)
        arguments = launch_command_parser().parse_args(_launcher_words(invocation))
        try:
            launch_command(arguments)
            return 0
        except ChildFailedError as error:
            failure = error
        except (SignalException, KeyboardInterrupt):
            failure = None
        while True:
            try:
                ignore_signals()
                let_go_of_dead_terminal()
                return _explain(report, failure)
            except (SignalException, KeyboardInterrupt):  # one more, before it was ignored
                continue


def _tell_one() -> None:
    """Pass SIGUSR2 (save now) on to one of the processes, which agree on it; the launcher would end by it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in [child for child in psutil.Process().children() if "vq_prior" in child.cmdline()][:1]:
            child.send_signal(signal.SIGUSR2)


def _launcher_words(invocation: Invocation) -> list[str]:
    processes = invocation.num_processes
    assert processes is not None
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    debug = ["--debug"] if invocation.debug else []
    return [
        "--multi_gpu",
        f"--num_processes={processes}",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--num_cpu_threads_per_process={threads}",
        f"--main_process_port={_free_port()}",
        "--module",
        "vq_prior",
        invocation.command,
        *invocation.words,
        *debug,
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _explain(report: Path, failure: Any) -> int:
    """Print the first error of the processes and return its exit code.

    Args:
        report: Where they left it, if any did.
        failure: The launcher's `ChildFailedError`; None if the launcher itself was told to stop.
    """
    failures = {} if failure is None else failure.failures
    killed = {rank: each for rank, each in failures.items() if each.exitcode < 0 and each.exitcode not in STOPS}
    stopped = failure is None or any(each.exitcode in STOPS for each in failures.values())
    first = _read_report(report)
    # That a process was killed or stopped says more than that another one missed it.
    if first is not None and not ((killed or stopped) and LOST in first["line"]):
        print(first["line"], file=sys.stderr, flush=True)
        return int(first["exit_code"])
    if stopped and not killed:
        print("error: stopped; run the same command to continue", file=sys.stderr, flush=True)
        return Stopped.exit_code
    rank, cause = next(iter(killed.items()), None) or failure.get_first_failure()
    reason = signal.Signals(-cause.exitcode).name if cause.exitcode < 0 else f"exit code {cause.exitcode}"
    line = f"error: process {rank} ended by {reason}; run the same command to continue from the last saved state"
    print(line, file=sys.stderr, flush=True)
    return EnvironmentFault.exit_code


def _read_report(report: Path) -> dict[str, Any] | None:
    """Return what a process left there; None if none did, or one was ended while it wrote."""
    try:
        return json.loads(report.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
