"""A training run on disk: its settings, its log, and continuing it.

`RUN/vqvae-training/` and `RUN/prior-training/` hold `config.json`,
`metrics.jsonl`, `checkpoints/`, `images/` and, if libraries warned, `library.log`.
"""

import contextlib
import errno
import io
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from vq_prior.core.config import from_json, pretty_json, read_json, to_json
from vq_prior.core.disk.artifacts import remove, write_atomic
from vq_prior.core.disk.locks import claim
from vq_prior.core.disk.places import make_folder
from vq_prior.core.errors import ArtifactError, NumericError, UsageError
from vq_prior.core.processes.interruption import let_go_of_dead_terminal
from vq_prior.core.settings import (
    Free,
    Once,
    Place,
    Unsaid,
    absent_means,
    given_names,
    names_marked,
    overlaid,
    settings_in,
    with_absent,
    with_defaults,
)
from vq_prior.core.training.tracking import Tracker, TrackerName

S = TypeVar("S")


CHANGEABLE_INPUTS = frozenset({"data"})  # other codes, or another start, are another run


@dataclass(frozen=True)
class Change:
    """What a run goes on with from a step on: a line `name old -> new` for each setting."""

    step: int
    changed: tuple[str, ...]


@dataclass(frozen=True)
class RunConfig:
    """`config.json` of a training run.

    Attributes:
        format_version: Version of this file.
        command: The command that made the run.
        settings: Every setting of the command, as resolved for this data and machine.
        inputs: Identity of what was read, such as `{"data": id}`; compared instead of paths.
        changes: What was changed on the way, by `--accept-changes`; a file without any has no such key.
    """

    format_version: int
    command: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    changes: tuple[Change, ...] = ()


def run_config(command: str, settings: Any, inputs: dict[str, str]) -> RunConfig:
    """Return the config of a run with these resolved settings (a dataclass); one-off flags are left out."""
    once, unsaid = names_marked(type(settings), Once), names_marked(type(settings), Unsaid)
    entries = to_json(settings).items()
    saved = {
        name: value
        for name, value in entries
        if name not in once and not (name in unsaid and (value is None or value is False))
    }
    return RunConfig(1, command, saved, inputs)


def read_run_config(path: Path) -> RunConfig:
    """Return the `config.json` of a run; raises `ArtifactError` if it is missing or malformed."""
    config = from_json(RunConfig, read_json(path), str(path))
    if config.format_version != 1:
        raise ArtifactError(f"{path} has format version {config.format_version}; this version reads 1")
    return config


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name.

    >>> flatten({"steps": 5, "model": {"width": 64}})
    {'steps': 5, 'model.width': 64}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def by_number(value: Any) -> Any:
    """Return JSON values in which lists of objects are objects by position, so that `flatten` reaches into them."""
    if isinstance(value, list | tuple) and value and all(isinstance(part, dict) for part in value):
        return {str(number): by_number(part) for number, part in enumerate(value)}
    return {name: by_number(part) for name, part in value.items()} if isinstance(value, dict) else value


def continued(settings: S, folder: Path) -> S:
    """Return the settings of a rerun: what the person gave, and for all else what the run in `folder` has.

    So a default may change, and a setting may be added, without a change to the runs that are there. Where something
    lies is not taken from the run, but for what it started from (`Place("MODEL")`).

    Raises:
        ArtifactError: If the run's `config.json` is malformed.
    """
    path = folder / "config.json"
    if not path.exists():
        return settings
    saved = from_json(type(settings), with_absent(type(settings), read_run_config(path).settings), f"{path}: settings")
    places = {each.name for each in settings_in(type(settings)) if each.mark(Place) not in (None, Place("MODEL"))}
    not_taken = given_names(settings) | places | names_marked(type(settings), Once)
    return overlaid(settings, saved, leave=not_taken)


@contextlib.contextmanager
def beside_run(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Add to a `UsageError` of the block that what was not typed is that of the continued run in `folder`."""
    try:
        yield
    except UsageError as error:
        if overwrite or not (folder / "config.json").exists():
            raise
        raise UsageError(
            f"{error}; what was not typed is that of the run in {folder}, --overwrite starts anew"
        ) from error


def explained(typed: S, settings: S, resolve: Callable[[S], S]) -> S:
    """Return what was typed and what else is to be typed so that `resolve` gives `settings`, for the record of a run.

    Args:
        typed: What was typed; of what was not given, only where something lies.
        settings: Resolved, partly from a run that was there.
        resolve: Makes every choice that is left open.
    """
    known: set[str] = set(free_names(type(typed)))
    typed = with_defaults(typed, leave=given_names(typed) | names_marked(type(typed), Place))
    while True:
        try:
            chosen = flatten(to_json(resolve(typed)))
        except UsageError:  # what was typed does not fit the run's other settings alone
            return settings
        wanted = flatten(to_json(settings))
        wrong = {name for name in wanted if wanted[name] != chosen.get(name)} - known
        if not wrong:
            return typed
        known |= wrong
        typed = overlaid(typed, settings, leave=set(wanted) - wrong)


def free_names(settings_class: type) -> frozenset[str]:
    """Return the settings that may differ between a run and its continuation: the result does not depend on them."""
    return names_marked(settings_class, Free, Place, Once)


def check_continues(old: RunConfig, new: RunConfig, folder: Path, *, settings: Any) -> tuple[str, ...]:
    """Return what `new` changes of the run `old`, a line `name old -> new` each, if that was accepted.

    `steps` may grow and what `free_names` lists may change without that.

    Args:
        old: The run that is there.
        new: What is asked for.
        folder: Of the run.
        settings: As typed; their class tells what is free, and what a setting means that `old` does not name.

    Raises:
        UsageError: If there are changes, and they were not accepted or cannot be.
    """
    free = free_names(type(settings))
    absent = absent_means(settings)
    before, after = {**absent, **flatten(old.settings)}, {**absent, **flatten(to_json(new.settings))}
    changes = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        grows = name == "steps" and isinstance(was, int) and isinstance(now, int) and now >= was
        if was != now and name not in free and not grows:
            changes.append(f"{name.replace('_', '-')} {was} -> {now}")
    others = [
        name for name in sorted(old.inputs.keys() | new.inputs.keys()) if old.inputs.get(name) != new.inputs.get(name)
    ]
    changes += [f"the content of {name} {old.inputs.get(name)} -> {new.inputs.get(name)}" for name in others]
    can_change = hasattr(settings, "accept_changes") and CHANGEABLE_INPUTS.issuperset(others)
    if changes and not (can_change and settings.accept_changes):
        accept = "--accept-changes to go on with these, or " if can_change else ""
        raise UsageError(
            f"{folder} holds a run with other settings ({'; '.join(changes)}); "
            f"repeat its settings to continue it, choose another --out, or pass {accept}--overwrite"
        )
    return tuple(changes)


def open_run(
    folder: Path, config: RunConfig, *, settings: Any, overwrite: bool, is_main: bool, step: int = 0
) -> tuple[str, ...]:
    """Create the folder of a run, or check that `config` continues the one that is there; return what was changed.

    Call it on every process after all other checks, and wait for the main one afterwards.

    Args:
        folder: Of the run.
        config: What is asked for.
        settings: Those of `check_continues`.
        overwrite: Whether it starts anew.
        is_main: Whether this is the main process.
        step: Optimiser steps done, from which what was changed holds.

    Returns:
        A line on each change that the run has seen since its start, for its record.

    Raises:
        UsageError: If the folder holds a run with other settings.
        EnvironmentFault: If another process is training in it.
    """
    path = folder / "config.json"
    if path.exists() and not overwrite:
        former = read_run_config(path)
        changed = check_continues(former, config, folder, settings=settings)
        config = replace(config, changes=former.changes + ((Change(step, changed),) if changed else ()))
        if is_main:
            for line in changed:
                print(f"changed from step {step} on: {line}", flush=True)
    if is_main:
        claim(folder)
        if overwrite and folder.exists():
            remove(folder)
        make_folder(folder)
        entries = to_json(config)
        write_atomic(path, pretty_json({key: value for key, value in entries.items() if value or key != "changes"}))
    return tuple(f"from step {each.step} on: {line}" for each in config.changes for line in each.changed)


def require_finite(folder: Path, step: int, rows: NDArray[np.int64], loss: Tensor, norm: Tensor, *, main: bool) -> None:
    """Raise unless loss and gradient of the step after `step` are finite; they are the same on every process.

    Args:
        folder: Of the run; the main process writes the rows there, for whoever looks for what made them not finite.
        step: Optimiser steps done.
        rows: Which training rows the step saw.
        loss: Of the batch, scalar.
        norm: Of its gradient, scalar.
        main: Whether this is the main process.

    Raises:
        NumericError: Before the update, on every process.
    """
    if bool(torch.isfinite(loss) & torch.isfinite(norm)):
        return
    listed = folder / "not-finite.json"
    if main:
        write_atomic(listed, pretty_json({"step": step + 1, "rows": rows.tolist()}))
    raise NumericError(
        f"the loss ({float(loss):.4g}) or gradient norm ({float(norm):.4g}) is not finite at step {step + 1}; "
        f"the step was not taken, its rows are in {listed}; lower --learning-rate and start anew by --overwrite"
    )


class RunLog:
    """What a training run says: one JSON line a log interval on disk, the same line on stdout, a bar on stderr.

    Times in the file are seconds of this process, for reading only. On a process that is not the main one it is mute.

    Args:
        folder: Of the run; holds its `config.json`.
        step: Optimiser steps done before.
        steps: Of the whole run.
        is_main: Whether this is the main process.
        report_to: Tracker that gets the same numbers, and pictures.
    """

    def __init__(self, folder: Path, *, step: int, steps: int, is_main: bool, report_to: TrackerName = "none") -> None:
        self._path = folder / "metrics.jsonl"
        self._steps = steps
        self._first_step, self._started = step, time.monotonic()
        self._is_main = is_main
        self._library_log = _library_log(folder) if is_main else None
        if self._library_log is not None:
            self._keep_until(step)
            logging.getLogger().addHandler(self._library_log)
        self._tracker: Tracker | None = None
        if is_main and report_to != "none":
            config = read_run_config(folder / "config.json")
            run_name = f"{folder.absolute().parent.name} {config.command}"
            self._tracker = Tracker(
                report_to, folder, run_name=run_name, config=flatten(config.settings), first_step=step
            )
        self._bar = tqdm(
            total=steps, initial=step, unit="step", disable=None if is_main else True, file=sys.stderr, leave=False
        )

    def _keep_until(self, step: int) -> None:
        """Drop the lines that a resumed run will write again, a torn last line among them."""
        lines = []
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if entry["step"] <= step:
                    lines.append(line + "\n")
        write_atomic(self._path, "".join(lines).encode("utf-8"))

    def advance(self) -> None:
        """Move the bar by one step."""
        with _terminal_may_go():
            self._bar.update(1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log named numbers of the state after optimiser step `step`."""
        if not self._is_main:
            return
        elapsed = time.monotonic() - self._started
        done = step - self._first_step
        entry = {"step": step, **values, "elapsed_seconds": round(elapsed, 3)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._tracker is not None:
            self._tracker.log(step, dict(values))
        left = elapsed / done * (self._steps - step) if done else 0.0
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"step {step}/{self._steps}  {numbers}  {_clock(left)} left")

    def say(self, line: str) -> None:
        """Print a line on stdout without tearing the bar."""
        if self._is_main:
            with _terminal_may_go(), tqdm.external_write_mode(file=sys.stdout):
                print(line, flush=True)

    def show(self, step: int, name: str, picture: Any) -> None:
        """Write a picture, of Pillow's class, of the state after step `step` to `images/`; on the main process only."""
        path = self._path.parent / "images" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        file = io.BytesIO()
        picture.save(file, format="PNG")
        write_atomic(path, file.getvalue())
        if self._tracker is not None:
            self._tracker.show(step, name, picture)

    def close(self) -> None:
        """Remove the bar, let go of the tracker and end the log of library warnings."""
        with _terminal_may_go():
            self._bar.close()
        if self._tracker is not None:
            self._tracker.close()
        if self._library_log is not None:
            logging.getLogger().removeHandler(self._library_log)
            self._library_log.close()


def _library_log(folder: Path) -> logging.FileHandler:
    path = folder / "library.log"
    return logging.FileHandler(path, delay=True, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _terminal_may_go() -> Iterator[None]:
    """Let a block that writes to a terminal end well where that is gone: the training goes on, unseen."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        let_go_of_dead_terminal()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise `EnvironmentFault` if the disk below `folder` has less than `needed_bytes` left."""
    from vq_prior.core.errors import EnvironmentFault

    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise EnvironmentFault(f"{folder} needs about {needed_bytes} bytes of disk, {free} are free")
