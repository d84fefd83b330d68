"""How far the trainings of a RUN are, from their folders alone: settings, log, newest picture, time left."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vq_prior.core.config import read_json
from vq_prior.core.training.runs import flatten, read_run_config

FOLDERS = {"codec": "vqvae-training", "prior": "prior-training"}
COMPONENTS = {"codec": "vqvae", "prior": "prior"}
PRIOR_CONFIG = "prior_config.json"
PACE_OF = 20  # log lines: the pace of late is what is left to come at


@dataclass(frozen=True)
class Training:
    """What the folder of a training holds.

    Attributes:
        name: "codec" or "prior".
        settings: By dotted name.
        log: Its lines, in order.
        picture: The newest, if there is one.
        finished: Whether the component is there, with the steps that were asked for.
        written: When the last line was, in seconds since 1970; None without a line.
    """

    name: str
    settings: dict[str, Any]
    log: tuple[dict[str, float], ...]
    picture: Path | None
    finished: bool
    written: float | None

    @property
    def step(self) -> int:
        """The step of the last line; 0 without one."""
        return int(self.log[-1]["step"]) if self.log else 0

    @property
    def steps(self) -> int | None:
        """The steps that were asked for."""
        steps = self.settings.get("steps")
        return steps if isinstance(steps, int) else None

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of every line that has this number."""
        return [(entry["step"], entry[name]) for entry in self.log if name in entry]

    def of_levels(self, name: str) -> list[str]:
        """Return the names under which the log has a number of each level: NAME, or NAME.0, NAME.1 ... of several."""
        return list(dict.fromkeys(key for entry in self.log for key in entry if key.partition(".")[0] == name))

    def seconds(self) -> float:
        """Return the seconds of all processes that worked on it; each counts from its own start."""
        return sum(part[-1]["elapsed_seconds"] for part in self._parts())

    def seconds_left(self) -> float | None:
        """Return the seconds that the steps to come take at the pace of late; None where the log has no pace yet."""
        parts = list(self._parts())
        if self.steps is None or not parts:
            return None
        before = parts[-2][-1]["step"] if len(parts) > 1 else 0
        lines = [{"step": before, "elapsed_seconds": 0.0}, *parts[-1]][-PACE_OF:]
        steps = lines[-1]["step"] - lines[0]["step"]
        if steps <= 0:
            return None
        return (lines[-1]["elapsed_seconds"] - lines[0]["elapsed_seconds"]) / steps * max(0, self.steps - self.step)

    def status(self) -> str | None:
        """Return a line on what is not finished, None where nothing is left."""
        if self.finished:
            return None
        if not self.log or self.written is None:
            return f"The {self.name} is being trained; its log is empty yet."
        of = f" of {self.steps:,}" if self.steps is not None else ""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.written))
        if self.steps is not None and self.step >= self.steps:
            return f"The {self.name} is trained ({self.step:,} steps) and being measured, as of {when}."
        left, most = self.seconds_left(), "at most " if self.name == "prior" else ""  # which may stop early
        remaining = "" if left is None else f", {most}about {clock(left)} left at the pace of late"
        return f"The {self.name} is being trained: step {self.step:,}{of}{remaining}, as of {when}."

    def _parts(self) -> Iterator[list[dict[str, float]]]:
        """Yield the lines of each process that worked on it."""
        part: list[dict[str, float]] = []
        for entry in self.log:
            if part and entry["elapsed_seconds"] < part[-1]["elapsed_seconds"]:
                yield part
                part = []
            part.append(entry)
        if part:
            yield part


def read_training(run: Path, name: str) -> Training | None:
    """Return the training "codec" or "prior" of a RUN; None if there is none.

    Raises:
        ArtifactError: If its `config.json` is malformed.
    """
    folder, component = run / FOLDERS[name], run / COMPONENTS[name]
    if not (folder / "config.json").is_file():
        return None
    path = folder / "metrics.jsonl"
    log = tuple(_lines(path)) if path.is_file() else ()
    pictures = sorted((folder / "images").glob("step-*.png"))
    settings = flatten(read_run_config(folder / "config.json").settings)
    written = path.stat().st_mtime if log else None
    finished = component.is_dir() and not _goes_on(component, settings, int(log[-1]["step"]) if log else 0)
    return Training(name, settings, log, pictures[-1] if pictures else None, finished, written)


def _goes_on(component: Path, settings: dict[str, Any], step: int) -> bool:
    """Return whether a training whose component is there goes on, to more steps than that has."""
    if (component / PRIOR_CONFIG).is_file():  # a prior may have stopped before its steps
        return step > int(read_json(component / PRIOR_CONFIG).get("trained_steps", step))
    return 0 < step < (settings.get("steps") or 0)


def _lines(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed, or is being written
            continue


def clock(seconds: float) -> str:
    """Return a time as people read it.

    >>> clock(75), clock(3700)
    ('1:15 min', '1:01:40 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h" if minutes >= 60 else f"{minutes}:{rest:02d} min"
