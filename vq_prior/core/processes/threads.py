"""How many threads to compute with on a CPU, while other programs come and go.

The threads that share a call wait for each other at its end. Where another program has one of their cores, each of the
many short calls of a training step lasts as long as the thread that had to wait for a core, and two threads do less
than one. So the number follows the machine: where threads wait for cores, fewer are tried; where cores are idle, more.
A trial is some units of work (steps, calls) at the other number; the faster number is kept.

With another number of threads sums are added up in another order. Work that is promised to the byte takes part only
where it was measured to give the same bits; for a training, the numbers are written down, see `StepThreads`.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.errors import ArtifactError

FILE = "threads.jsonl"
LOOK_EVERY = 0.3  # seconds between two looks at what else runs
TRIED = 3  # units of a trial; the first pays for threads that start
KEPT = 8  # units whose median a trial is compared with
CLEARLY = 0.92  # share of the time of the number in force that another one has to take at most
CROWDED, IDLE = 0.12, 0.7  # of our wall clock, waited for a core; of a core, not used by anyone
LOOKS, BETWEEN_LOOKS = 5, 0.002  # at what runs at this moment; seconds
SPARED = 0.4  # of a core, that others may have had before one is taken for lost
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds after a trial that changed nothing, doubled each time


class Cores:
    """What the system tells of the cores: how long our threads waited for one, and how long some were idle.

    Linux tells both; where nothing is told, both are None.
    """

    def waited(self) -> float | None:
        """Return the seconds that the threads of this process were ready and had no core, all together."""
        try:
            threads = os.listdir("/proc/self/task")
            return sum(self._waited(thread) for thread in threads) / 1e9
        except (OSError, ValueError, IndexError):
            return None

    def _waited(self, thread: str) -> int:
        try:
            with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
                return int(file.read().split()[1])
        except FileNotFoundError:  # it ended meanwhile
            return 0

    def idle(self) -> float | None:
        """Return the seconds that the cores which this process may use were idle, all together."""
        try:
            allowed = {b"cpu%d" % number for number in os.sched_getaffinity(0)}
            with open("/proc/stat", "rb") as file:
                rows = [line.split() for line in file if line.startswith(b"cpu")]
            return sum(int(row[4]) for row in rows if row[0] in allowed) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):
            return None

    def others(self) -> int | None:
        """Return how many threads of other programs run or wait for a core at this moment; None where nothing tells.

        Of a few looks within some milliseconds the least counts: what is there in all of them stays for a while.
        """
        least: int | None = None
        try:
            for _ in range(LOOKS):
                with open("/proc/stat", "rb") as file:
                    running = next(int(line.split()[1]) for line in file if line.startswith(b"procs_running"))
                least = running - 1 if least is None else min(least, running - 1)  # without this one
                time.sleep(BETWEEN_LOOKS)
        except (OSError, ValueError, IndexError, StopIteration):
            return None
        return least


class ThreadChoice:
    """The number of threads for the next unit of work; units are of the same kind and cost.

    Args:
        counts: Numbers to choose from.
        cores: What the system tells.
        clock: Seconds.
        first: The number to begin with; None is the largest.
        same_bits: Whether the numbers give the same bits, where that matters; asked once, before the first trial. Where
            they do not, the number stays.

    Attributes:
        number: Threads for the next unit.
    """

    def __init__(
        self,
        counts: set[int],
        cores: Cores | None = None,
        clock: Callable[[], float] = time.monotonic,
        first: int | None = None,
        same_bits: Callable[[], bool] | None = None,
    ) -> None:
        self._counts, self._cores, self._clock = sorted(counts), cores or Cores(), clock
        self._same_bits = same_bits
        self.number = self._counts[-1] if first is None else first
        self._seconds: list[float] = []  # of the latest units at `number`, outside of trials
        self._trial: list[float] = []
        self._untried: list[int] = []
        self._found: dict[int, float] = {}
        self._pause, self._not_before = PAUSE, 0.0
        self._look()

    def took(self, seconds: float) -> None:
        """Note what the unit at `number` threads took, and choose the number for the next one."""
        if self._found:
            self._go_on_trying(seconds)
            return
        self._seconds = [*self._seconds[1 - KEPT :], seconds]
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY or len(self._seconds) < 2 or now < self._not_before:
            return
        others = self._worth_trying()
        if others and self._same_bits is not None:
            others, self._counts = (others, self._counts) if self._same_bits() else ([], [self.number])
            self._same_bits = None
        self._look()
        if others:
            self._found = {self.number: median(self._seconds)}
            self._untried = others
            self._try_next()

    def _look(self) -> None:
        self._looked_at = self._clock()
        self._waited, self._idle = self._cores.waited(), self._cores.idle()

    def _worth_trying(self) -> list[int]:
        """Return other numbers that the machine speaks for; all of them where it tells nothing."""
        seconds = self._clock() - self._looked_at
        waited, idle = self._cores.waited(), self._cores.idle()
        if waited is None or idle is None or self._waited is None or self._idle is None:
            return [count for count in self._counts if count != self.number]
        spare = round((idle - self._idle) / seconds - IDLE + 0.5)
        more = [count for count in self._counts if self.number < count <= self.number + spare]
        crowded = (waited - self._waited) / seconds > CROWDED
        return more[-1:] or ([count for count in self._counts if count < self.number] if crowded else [])

    def _go_on_trying(self, seconds: float) -> None:
        self._trial.append(seconds)
        least = min(self._found.values())
        hopeless = seconds > 2 * least and len(self._trial) > 1
        if len(self._trial) < TRIED and not hopeless:
            return
        self._found[self.number] = sum(self._trial[1:]) / (len(self._trial) - 1)
        self._try_next()

    def _try_next(self) -> None:
        self._trial = []
        if self._untried:
            self.number = self._untried.pop()
            return
        before, *_ = self._found
        best = min(self._found, key=self._found.__getitem__)
        changed = best != before and self._found[best] < CLEARLY * self._found[before]
        self._seconds = [self._found[best]] if changed else [self._found[before]]
        self.number, self._found = best if changed else before, {}
        self._pause = PAUSE if changed else min(2 * self._pause, LONGEST_PAUSE)
        self._not_before = self._clock() + self._pause
        self._look()

    @contextmanager
    def unit(self) -> Iterator[None]:
        """Do a unit of work with the number in force, which stays in force after it."""
        set_threads(self.number)
        began = self._clock()
        yield
        self.took(self._clock() - began)


class Lately:
    """How many cores were ours to use since this was last asked, at first since the program began, or are free now."""

    def __init__(
        self,
        cores: Cores | None = None,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._cores, self._clock, self._used = cores or Cores(), clock, used
        self._seen = self._look()

    def _look(self) -> tuple[float, float, float | None]:
        return self._clock(), self._used(), self._cores.idle()

    def fitting(self, counts: set[int]) -> int:
        """Return the largest of some numbers of threads for which there were cores: those we used, and idle ones.

        The largest of all where the system tells nothing, or too little time has passed. Who used a core while we did
        not, and does no more, is not counted: where no thread of another program runs now, all cores are ours.
        """
        (began, used, idle), self._seen = self._seen, self._look()
        now, used_now, idle_now = self._seen
        if used_now < used:  # a process that was forked counts its own from 0
            used = 0.0
        if idle is None or idle_now is None or now - began < LOOK_EVERY:
            return max(counts)
        cores = (used_now - used + idle_now - idle) / (now - began)
        fitting = max([count for count in counts if count <= cores + SPARED], default=min(counts))
        return max(counts) if fitting < max(counts) and self._cores.others() == 0 else fitting


LATELY = Lately()


def set_threads(number: int) -> None:
    """Compute with so many threads from now on."""
    if torch.get_num_threads() != number:
        torch.set_num_threads(number)


@contextmanager
def using_threads(number: int | None = None) -> Iterator[None]:
    """Compute with so many threads in a block (None: as many as before), and with as many as before after it."""
    before = torch.get_num_threads()
    set_threads(number or before)
    try:
        yield
    finally:
        set_threads(before)


def candidates(most: int) -> set[int]:
    """Return the numbers of threads worth a trial on a machine that has cores for `most`.

    >>> sorted(candidates(8)), sorted(candidates(2))
    ([1, 4, 7, 8], [1, 2])
    """
    return {max(1, count) for count in (1, most // 2, most - 1, most)}


class StepThreads:
    """The number of threads of every step of a training, which its bits depend on: `RUN/...-training/threads.jsonl`.

    A line `{"step": S, "threads": N}` is written before the first step that is done with N threads (S steps are done
    before it). A run that goes on does the steps that are written down with the same numbers, and chooses for itself
    from then on.

    Args:
        path: The file.
        most: The most threads; 1 leaves the number as it is, and writes nothing.

    Attributes:
        written: (S, N) of each line.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._choice = path, None
        self.written = read_steps(path) if most > 1 else []
        if most > 1:
            counts = candidates(most)
            first = self.written[-1][1] if self.written else LATELY.fitting(counts)
            self._choice = ThreadChoice(counts, first=first)
            set_threads(self._choice.number)  # for what is left where no step is

    @contextmanager
    def step(self, done: int) -> Iterator[None]:
        """Do the step after `done` steps."""
        choice = self._choice
        if choice is None:
            yield
            return
        if self.written and done <= self.written[-1][0]:
            set_threads(next(threads for step, threads in reversed(self.written) if step <= done))
            yield
            return
        if not self.written or self.written[-1][1] != choice.number:
            self._write(done, choice.number)
        with choice.unit():
            yield

    def _write(self, done: int, threads: int) -> None:
        self.written.append((done, threads))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": done, "threads": threads}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def threads_record(folder: Path) -> dict[str, Any]:
    """Return what the record of a training says of its threads: nothing, unless their number changed."""
    steps = read_steps(folder / FILE)
    return {"threads_from_step": {str(step): threads for step, threads in steps}} if len(steps) > 1 else {}


def read_steps(path: Path) -> list[tuple[int, int]]:
    """Return (steps done before, threads) of each line of a `threads.jsonl`; a torn last line leaves the file.

    Raises:
        ArtifactError: If another line is malformed.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        write_atomic(path, "".join(lines).encode())
    steps = []
    for line in lines:
        try:
            entry = json.loads(line)
            steps.append((int(entry["step"]), int(entry["threads"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({line[:40].strip()}); remove it") from error
    if any(threads < 1 for _, threads in steps) or [step for step, _ in steps] != sorted({step for step, _ in steps}):
        raise ArtifactError(f"{path} is damaged (its steps must ascend, its threads be at least 1); remove it")
    return steps
