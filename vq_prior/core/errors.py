"""The errors a user can meet, one class per exit code.

Each carries one sentence: what was given, what is allowed, what to do. The
command line prints it as `error: ...` and exits with `exit_code`.
"""

import contextlib
import errno
import json
import os
import sys

from vq_prior.core.disk.names import readable

NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed")
LOST = "a process of this run was lost"
ERROR_FILE_VARIABLE = "VQ_PRIOR_ERROR_FILE"  # where the processes of a launch put their first error


def tell(line: str, exit_code: int, *, aloud: bool = True) -> None:
    """Hand an error to the launcher, which keeps the first one of a run; without a launcher, print it if `aloud`."""
    report = os.environ.get(ERROR_FILE_VARIABLE)
    if report is not None:
        with contextlib.suppress(FileExistsError), open(report, "x", encoding="utf-8") as file:
            json.dump({"line": line, "exit_code": exit_code}, file)
    elif aloud:
        print(line, file=sys.stderr, flush=True)


def in_one_line(error: BaseException) -> str:
    """Return what an error of another library says, shortened to a line of ours; its kind if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ended: Python's, the system's, or that of a library or device."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)


class VQPriorError(Exception):
    """A failure that is explained in one line; what a file or server smuggled into it cannot steer a terminal."""

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in readable(text)))


class UsageError(VQPriorError, ValueError):
    """A wrong flag, setting or argument."""

    exit_code = 2


class ArtifactError(VQPriorError, ValueError):
    """A path that is missing, empty, damaged or does not belong."""

    exit_code = 3


class NumericError(VQPriorError, ArithmeticError):
    """A loss, gradient, weight or code that is not finite."""

    exit_code = 4


class EnvironmentFault(VQPriorError, RuntimeError):
    """The machine failed: disk, memory, network, or a lost process."""

    exit_code = 5


class Stopped(VQPriorError):
    """Stopped by a signal, with the state saved; run the same command to continue."""

    exit_code = 75
