"""The command line: which command, its settings, and errors in one line.

Nothing here imports torch or transformers; a command's code is imported when it runs.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vq_prior import __version__
from vq_prior.cli.invocation import COMMANDS, Invocation
from vq_prior.cli.parsing import flags_of, parse, usage
from vq_prior.core.disk.places import forget_what_was_said
from vq_prior.core.errors import LOST, EnvironmentFault, Stopped, UsageError, VQPriorError, is_out_of_memory, tell
from vq_prior.core.processes.interruption import (
    STOPPED,
    Interruption,
    hear_signals,
    ignore_signals,
    let_go_of_dead_terminal,
)
from vq_prior.core.processes.packages import broken, leave_out

__all__ = ["COMMANDS", "Invocation", "main", "parse", "usage"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `vq_prior.core.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if words in (["--version"], ["-V"]):
        print(f"vq-prior {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if words else 2
    if argv is None:
        leave_out()
    interruption, stderr = Interruption(), sys.stderr
    try:
        try:
            hear_signals(interruption)
            code = _run(words, debug)
            interruption.is_too_late = True
        except Exception as error:
            interruption.is_too_late = True
            code = _fail(*_explain(error, interruption.message, words[0]), debug)
    except KeyboardInterrupt as error:  # before anything was told
        interruption.is_too_late = True
        sys.stderr = stderr  # it can come where a block has ended that turned it elsewhere and has not turned it back
        code = _fail(str(error) or STOPPED, Stopped.exit_code, debug)
    if argv is None:
        ignore_signals()
    if "torch" in sys.modules:
        from vq_prior.core.processes.runtime import leave_runtime

        leave_runtime(code)
    return code


def _run(words: list[str], debug: bool) -> int:
    forget_what_was_said()
    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        with contextlib.suppress(AttributeError, OSError):  # a stream of another kind
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show is shown by its number
    _quiet_libraries(debug)
    try:
        invocation = parse(words)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes out at the end
        return 0
    there = _processes_of_launcher()
    if invocation.num_processes not in (None, there):
        if there > 1:
            raise UsageError(
                f"--num-processes {invocation.num_processes} cannot go with a launcher that says there are {there} "
                "(WORLD_SIZE in the environment); leave it out, or unset WORLD_SIZE"
            )
        from vq_prior.cli.launch import launch

        return launch(invocation)
    commands = import_module("vq_prior.cli.commands")
    getattr(commands, invocation.command.replace("-", "_"))(invocation.settings)
    return 0


def _processes_of_launcher() -> int:
    """Return how many processes the launcher of this one announces; 1 without a launcher."""
    number = os.environ.get("WORLD_SIZE", "")
    if not number:
        os.environ.pop("WORLD_SIZE", None)
        return 1
    if not (number.isascii() and number.isdigit() and int(number)):
        raise EnvironmentFault(f"WORLD_SIZE in the environment must be a number of processes, got {number}; unset it")
    return int(number)


def _explain(error: Exception, interrupted: str | None, command: str) -> tuple[str, int]:
    """Return the one line and the exit code of what ended a command.

    Args:
        error: It.
        interrupted: What a signal said that came before; libraries make errors of their own of its exception.
        command: Its name, as typed.
    """
    if interrupted and not isinstance(error, Stopped):
        return interrupted, Stopped.exit_code
    if isinstance(error, VQPriorError):
        return str(error), error.exit_code
    if isinstance(error, BrokenPipeError):
        return STOPPED, Stopped.exit_code
    fault = broken(error)  # an OSError too: a library of the system that a package cannot load
    if fault is not None:
        return str(fault), fault.exit_code
    if is_out_of_memory(error):
        return f"out of memory; {_memory_remedy(command)}", EnvironmentFault.exit_code
    if isinstance(error, OSError):
        return _describe_os_error(error), EnvironmentFault.exit_code
    text = re.sub(r"\s+", " ", str(error)).strip()[:300]
    if ("torch" in type(error).__module__ and "Dist" in type(error).__name__) or "gloo" in text:
        return f"{LOST}; run the same command to continue", EnvironmentFault.exit_code
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)", 1


def _memory_remedy(command: str) -> str:
    """Return what to do where memory ended outside of the steps of a training; those say it themselves."""
    if command in COMMANDS and "train" not in command:
        module, _, attribute = COMMANDS[command].settings.partition(":")
        if "--batch-size" in flags_of(getattr(import_module(module), attribute)):
            return "lower --batch-size"
    return "end other programs, take fewer or smaller data, or a machine with more memory"


def _describe_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = ""
        with contextlib.suppress(OSError, TypeError, ValueError):
            free = f" ({shutil.disk_usage(Path(error.filename).parent).free} bytes are free)"
        return f"{where}the disk is full{free}; free some space and run the same command to continue"
    return f"{where}{error.strerror or error}"


def _quiet_libraries(debug: bool) -> None:
    """Keep what libraries warn of off the terminal unless --debug asks for it; a training run logs it to a file."""
    import logging

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    if not debug:
        # What is an error to a command is raised; gloo would tell of each peer that ends before it could join.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        logging.captureWarnings(True)
        logging.getLogger().addHandler(logging.NullHandler())


def _fail(message: str, exit_code: int, debug: bool) -> int:
    """Print the one line, or hand it to the launcher, and return the exit code."""
    line = "error: " + re.sub(r"\s*\n\s*", " ", message).strip()
    let_go_of_dead_terminal()
    if debug:
        import traceback

        traceback.print_exc()
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    tell(line, exit_code, aloud=is_alone or os.environ.get("RANK", "0") == "0")
    if "WORLD_SIZE" in os.environ and "torch" in sys.modules:
        # The others may still wait for this process; taking the group apart here could wait for them.
        sys.stdout.flush()
        os._exit(exit_code)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
