"""`RUN/clock.json`: the seconds that were spent on a RUN, over all the processes that worked on it one after another.

A thread writes it every second, so that a run that is killed loses no more than that.
"""

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vq_prior.core.config import from_json, pretty_json, read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.errors import ArtifactError

FILE = "clock.json"
PERIOD = 1.0  # seconds


@dataclass(frozen=True)
class _Spent:
    format_version: int
    seconds: float


class Clock:
    """Counts the seconds of a RUN, those before a kill too.

    Args:
        run: The RUN; need not be there.
        began: When this process began, on `time.monotonic`.

    Raises:
        ArtifactError: If the file is malformed.
    """

    def __init__(self, run: Path, began: float) -> None:
        self._path, self._began, self._before = run / FILE, began, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="clock")
        if self._path.exists():
            spent = from_json(_Spent, read_json(self._path), str(self._path))
            if spent.format_version != 1 or spent.seconds < 0:
                raise ArtifactError(f"{self._path} is no clock of this version; remove it")
            self._before = spent.seconds

    def seconds(self) -> float:
        """Return the seconds spent so far."""
        return self._before + time.monotonic() - self._began

    def start(self) -> None:
        """Keep the file from now on; the RUN is there."""
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Write the file once more and leave it."""
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
            self._write()

    def _keep(self) -> None:
        while not self._ended.wait(PERIOD):
            self._write()

    def _write(self) -> None:
        # Of a disk that is full the work itself will tell.
        with contextlib.suppress(OSError):
            write_atomic(self._path, pretty_json(_Spent(1, round(self.seconds(), 3))), durable=False)
