"""Trackers: what a run logs, sent to where people watch it as well, by Accelerate's tracker classes.

`metrics.jsonl` and `images/` beside the run stay what counts. A tracker decides about nothing: one that fails while the
run is under way is told of once and then left alone.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import tyro

from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.errors import EnvironmentFault, UsageError
from vq_prior.core.processes.packages import broken
from vq_prior.core.settings import Free

TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
ReportTo = Annotated[
    TrackerName,
    Free(),
    tyro.conf.arg(
        help="Tracker that gets the numbers and pictures that RUN keeps, too; its package has to be installed."
    ),
]
PROJECT = "vq-prior"


def require_tracker(name: TrackerName) -> None:
    """Raise `UsageError` unless the package of a tracker is installed."""
    if name != "none" and find_spec(name) is None:
        raise UsageError(f"--report-to {name} needs the package {name}; run pip install {name}, or leave it out")


class Tracker:
    """One tracker of the run in a folder; main process only.

    tensorboard writes to `tensorboard/` in the folder. wandb and trackio know the run by an id that is kept there, so
    that a continued run goes on as the same one; where they send it, and whether they do, is told by
    their own settings (WANDB_MODE, TRACKIO_SPACE_ID, ...).
    """

    def __init__(
        self, name: TrackerName, folder: Path, *, run_name: str, config: dict[str, Any], first_step: int
    ) -> None:
        self.name = name
        try:
            self._tracker = _started(name, folder, run_name=run_name, config=config, first_step=first_step)
        except Exception as error:  # they raise whatever they like
            fault = EnvironmentFault(f"--report-to {name} cannot start ({str(error)[:200]}); leave it out")
            raise broken(error) or fault from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send named numbers of the state after optimiser step `step`."""
        self._send(lambda: self._tracker.log(values, step=step))

    def show(self, step: int, name: str, picture: Any) -> None:
        """Send a picture (of Pillow's class) of the state after optimiser step `step`."""
        picture = picture.convert("RGB")
        if self.name == "trackio":  # for which Accelerate knows numbers only
            import trackio

            self._send(lambda: self._tracker.log({name: trackio.Image(picture)}, step=step))
            return
        import numpy as np

        image = [picture] if self.name == "wandb" else np.asarray(picture)[None]
        more = {} if self.name == "wandb" else {"dataformats": "NHWC"}
        self._send(lambda: self._tracker.log_images({name: image}, step=step, **more))

    def close(self) -> None:
        """Send what is left and let go."""
        self._send(lambda: self._tracker.finish())
        self._tracker = None

    def _send(self, call: Callable[[], object]) -> None:
        if self._tracker is None:
            return
        try:
            call()
        except Exception as error:  # as above
            print(f"warning: {self.name} failed and gets no more: {str(error)[:200]}", file=sys.stderr, flush=True)
            self._tracker = None


def _started(name: TrackerName, folder: Path, *, run_name: str, config: dict[str, Any], first_step: int) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
    if name == "tensorboard":
        # What a continued run writes again is dropped from the curves.
        options: dict[str, Any] = {"logging_dir": folder, "purge_step": first_step + 1 if first_step else None}
        tracker = LOGGER_TYPE_TO_CLASS[name]("tensorboard", **options)
        tracker.start()
        if not first_step:
            tracker.store_init_configuration(plain)
        return tracker
    known = folder / f"{name}-id"
    if not known.exists():
        write_atomic(known, uuid4().hex.encode())
    run_id = known.read_text()
    if name == "wandb":
        options = {"dir": str(folder), "id": run_id, "name": run_name, "resume": "allow", "config": plain}
    else:
        options = {"name": f"{run_name} {run_id[:8]}", "resume": "allow", "config": plain, "embed": False}
    tracker = LOGGER_TYPE_TO_CLASS[name](PROJECT, **options)
    tracker.start()
    return tracker
