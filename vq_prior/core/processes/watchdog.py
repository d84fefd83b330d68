"""Noticing that another process of the run is gone: killed, stopped, or hung outside of the launcher's sight.

A process that waits for one that will never answer waits for the group's timeout, half an hour. So each one beats: it
writes a rising number into the group's store, and looks at those of the others. Who has not beaten for too long is
lost: the first to see it says so, kills what is left of it on this machine, and ends.
"""

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from torch.distributed import TCPStore

from vq_prior.core.errors import LOST

PERIOD, PATIENCE = 2.0, 16.0  # seconds; together with the launcher's own, a lost process ends the run within 30
FAREWELL = "left"


class Watchdog(threading.Thread):
    """Beats for this process and watches the others, until `leave`."""

    def __init__(self, store: TCPStore, process: int, num_processes: int, lost: Callable[[str], object]) -> None:
        """Prepare it.

        Args:
            store: A connection of its own.
            process: Number of this process.
            num_processes: Of all.
            lost: Called with a sentence once another process is lost; must end this one.
        """
        super().__init__(daemon=True, name="watchdog")
        self._store, self._process, self._lost = store, process, lost
        self._others = [other for other in range(num_processes) if other != process]
        self._left = threading.Event()

    def beat(self, number: int) -> None:
        """Tell the others that this process is alive, and where."""
        self._store.set(_key(self._process), f"{number} {os.getpid()} {socket.gethostname()}")

    def run(self) -> None:
        """Beat and look, every two seconds."""
        host = socket.gethostname()
        seen = {other: ("", time.monotonic()) for other in self._others}
        beat, woke = 0, time.monotonic()
        while not self._left.wait(PERIOD):
            beat, slept, woke = beat + 1, time.monotonic() - woke, time.monotonic()
            if slept > 2 * PERIOD:  # this process was stopped itself (Ctrl-Z): the others have not been late for it
                seen = {other: (said, woke) for other, (said, _) in seen.items()}
            try:
                self.beat(beat)
                for other in list(seen):
                    said = self._store.get(_key(other)).decode() if self._store.check([_key(other)]) else ""
                    if said == FAREWELL:
                        del seen[other]
                    elif said != seen[other][0]:
                        seen[other] = said, time.monotonic()
                    elif time.monotonic() - seen[other][1] > PATIENCE:
                        _kill(said, host)
                        self._lost(_sentence(other, said))
            except RuntimeError:  # the store went with the process that held it
                if not self._left.wait(2 * PERIOD):
                    self._lost(f"{LOST}: the one that held the group together")
                return

    def leave(self) -> None:
        """Say that this process ends as it should."""
        if not self._left.is_set():
            self._left.set()
            try:
                self._store.set(_key(self._process), FAREWELL)
            except RuntimeError:  # the others may be gone already
                return


def _key(process: int) -> str:
    return f"vq-prior/beat/{process}"


def _sentence(other: int, said: str) -> str:
    _, pid, host = said.split(" ", 2) if said else ("", "unknown", "an unknown host")
    return f"process {other} (pid {pid} on {host}) has not answered for {PATIENCE:.0f} s and was given up"


def _kill(said: str, host: str) -> None:
    """Kill a process that does not answer if it is on this machine: one that was stopped would stay."""
    _, pid, where = said.split(" ", 2) if said else ("", "", "")
    if where == host:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            return


def watch_over(process: int, num_processes: int, lost: Callable[[str], object]) -> Watchdog | None:
    """Return a running watchdog; None without others, or where the launcher tells no address of its store."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if num_processes == 1 or not address or not port:
        return None
    from datetime import timedelta

    store = TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE))
    watchdog = Watchdog(store, process, num_processes, lost)
    atexit.register(watchdog.leave)
    watchdog.beat(0)
    watchdog.start()
    return watchdog
