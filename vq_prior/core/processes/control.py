"""What signals ask of a run, agreed by all processes at step boundaries."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from vq_prior.core.processes.collectives import sum_over_processes
from vq_prior.core.processes.interruption import Interruption, is_hangup, let_go_of_dead_terminal, stop_signals


class StepRequest(NamedTuple):
    """What a run was asked for since the last step boundary.

    Attributes:
        stop: To save its state and end.
        save: To save its state, whatever the interval; true where `stop` is.
    """

    stop: bool
    save: bool


class Control:
    """What signals ask of this run; read at step boundaries with `agreed()`.

    Attributes:
        stop_signal: Name of the signal that asked it to stop.
    """

    def __init__(self) -> None:
        self.stop_signal: str | None = None
        self._save = False

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_signal is not None and number == signal.SIGINT:
            os._exit(75)
        if is_hangup(number):
            let_go_of_dead_terminal()
        self.stop_signal = signal.Signals(number).name

    def _on_save(self, _number: int, _frame: FrameType | None) -> None:
        self._save = True

    def agreed(self) -> StepRequest:
        """Return what any process was asked for; every process gets the same answer. A save is asked for once."""
        stop, save, self._save = self.stop_signal is not None, self._save, False
        flags = torch.tensor([stop, save], dtype=torch.int32)
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl":
            flags = flags.cuda()
        stop, save = map(bool, sum_over_processes(flags).tolist())
        return StepRequest(stop, save or stop)


@contextmanager
def signal_control() -> Iterator[Control]:
    """Yield what SIGTERM, SIGUSR1, SIGHUP and Ctrl-C (stop) and SIGUSR2 (save now) ask.

    Former handlers come back afterwards. The handlers only set flags. A second Ctrl-C ends the process at once. SIGHUP
    is left alone where it is ignored.
    """
    control = Control()
    handlers: dict[int, Any] = dict.fromkeys(stop_signals(), control._on_stop)
    if hasattr(signal, "SIGUSR2"):
        handlers[signal.SIGUSR2] = control._on_save
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield control
    finally:
        for number, handler in former.items():
            if control.stop_signal is not None and isinstance(handler, Interruption):
                handler.heard(signal.Signals[control.stop_signal])  # what comes now repeats it
            signal.signal(number, handler)
