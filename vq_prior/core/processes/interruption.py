"""What SIGTERM, SIGUSR1, SIGHUP, Ctrl-C and SIGUSR2 do to a command outside the steps of a training."""

import errno
import math
import os
import signal
import sys
import time
from types import FrameType

from vq_prior.core.errors import ERROR_FILE_VARIABLE

STOPPED = "stopped; run the same command to continue"


class Interrupted(KeyboardInterrupt):
    """A signal, wherever it met the command. No `Exception`: what guards against strange files must not take it for
    one. And not KeyboardInterrupt itself: one that leaves the text of an `exec`, of which libraries run many while they
    are imported, has CPython end the process by SIGINT after all (`unhandled_keyboard_interrupt`)."""


class Interruption:
    """What a signal does to a command: it raises `Interrupted`, wherever the command is.

    One within a second of another is taken for its repetition, which would only disturb what the first has set going.

    Attributes:
        message: What the last signal says, if one came; a library may have made another error of it, or dropped it.
        is_too_late: Whether the command's end is known and being told.
    """

    def __init__(self) -> None:
        self.message: str | None = None
        self.is_too_late = False
        self._last = -math.inf

    def heard(self, number: int) -> bool:
        """Note a signal and return whether it is no repetition."""
        now = time.monotonic()
        is_new, self._last = now - self._last > 1, now
        self.message = STOPPED.replace("stopped", f"stopped by {signal.Signals(number).name}")
        return is_new

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if is_hangup(number):
            let_go_of_dead_terminal()
        if not self.is_too_late and self.heard(number):
            raise Interrupted(self.message)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a command here; SIGHUP not where it is ignored, as nohup asks."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    return [number for number in known if not (is_hangup(number) and signal.getsignal(number) == signal.SIG_IGN)]


def is_hangup(number: int) -> bool:
    """Return whether a signal says that the terminal is gone."""
    return number == getattr(signal, "SIGHUP", None)


def let_go_of_dead_terminal() -> None:
    """Discard what is written to a terminal that is gone: else it would be an error, which would end the command."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def hear_signals(interruption: Interruption) -> None:
    """Hand the signals of this process to `interruption`, or to its launcher where one started it."""
    launched = ERROR_FILE_VARIABLE in os.environ
    for number in stop_signals():
        # One of several may be waiting for another where no handler is reached: it goes at once, its launcher speaks.
        signal.signal(number, signal.SIG_DFL if launched else interruption)
    if hasattr(signal, "SIGUSR2"):  # asks a training to save; before its first step and elsewhere nothing is to do
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if launched and sys.platform == "linux":  # its state is saved, too, when the launcher is killed
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG


def ignore_signals() -> None:
    """Let nothing disturb the end of this process: it is a moment away, and its exit code is known."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
