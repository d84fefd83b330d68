"""One run of `vq-prior train`: what it works with, and what the commands below it are asked for."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_vqvae.data.sources import Data, said_of_data
from stage1_vqvae.modalities.pictures.settings import PictureSize
from stage1_vqvae.settings import TrainVQVAE
from stage2_prior.settings import TrainPrior
from vq_prior.cli.clock import Clock
from vq_prior.cli.plan import PLAN, Plan, PriorPlan
from vq_prior.core.config import from_json, to_json
from vq_prior.core.processes.collectives import mean_over_processes
from vq_prior.core.processes.runtime import Runtime
from vq_prior.settings import Train

SAYS_NOTHING = {"train", "test", "validation", "val", "data", "images", "pictures", "dataset", "shared"}
OF_PICTURES = tuple(each.name for each in dataclasses.fields(PictureSize))  # how pictures are brought to one form


@dataclass
class Road:
    """One run of the command.

    Attributes:
        settings: What was typed, and what its RUN has beside it.
        out: RUN.
        runtime: This process.
        data: Opened.
        open_seconds: That this took.
        clock: Of RUN.
        plan: What was chosen so far; None before the first choice.
    """

    settings: Train
    out: Path
    runtime: Runtime
    data: Data
    open_seconds: float
    clock: Clock
    plan: Plan | None

    def stage(self, number: int, text: str) -> None:
        """Say what begins, and how much of the time is left."""
        minutes = None if self.plan is None else self.plan.allowed()
        left = ""
        if minutes is not None:
            left = f"  ({max(0.0, minutes - self.clock.seconds() / 60):.1f} of {minutes:g} minutes left)"
        self.runtime.say(f"{number}/4  {text}{left}")

    def spent(self) -> float:
        """Return the seconds spent so far, the same on every process, each of which must call it."""
        return mean_over_processes(self.clock.seconds(), self.runtime.device)

    def of_data(self) -> dict[str, Any]:
        """Return what every command is told of the data."""
        s = self.settings
        told = {"data": s.data, "modality": s.modality, "options": s.options, "image_column": s.image_column}
        return {**told, "num_workers": s.num_workers, **said_of_data(s)}

    def codec_settings(self, more: dict[str, Any]) -> TrainVQVAE:
        """Return the settings of train-vqvae: those of the data that are not their defaults, and `more` of the plan."""
        asked = {**self.of_data(), **{name: getattr(self.settings, name) for name in OF_PICTURES}}
        defaults = {field.name: field.default for field in dataclasses.fields(TrainVQVAE)}
        told = {name: value for name, value in asked.items() if value != defaults[name]}
        where = {"out": str(self.out), "seed": self.settings.seed}
        return from_json(TrainVQVAE, to_json({**told, **where, **more}), f"{self.out / PLAN}: codec.settings")

    def prior_settings(self, part: PriorPlan | None = None) -> TrainPrior:
        """Return the settings of train-prior by the plan, or those for timing where a part is still to be chosen."""
        assert self.plan is not None
        where: dict[str, Any] = {"codes": str(self.out / "codes"), "out": str(self.out), "seed": self.settings.seed}
        if self.settings.from_model is None:
            where["codec"] = str(self.out / "vqvae")
        else:
            where["from_model"] = self.settings.from_model
        more = {} if part is None else part.settings
        merged = {**where, **self.plan.codec.prior, **more}
        return from_json(TrainPrior, merged, f"{self.out / PLAN}: prior.settings")


def name_of(data: str) -> str:
    """Return what to call a RUN on these data.

    >>> name_of("../cifar10-jpeg/train.parquet"), name_of("owner/flowers:small@main"), name_of("my pictures/")
    ('cifar10-jpeg', 'flowers', 'my-pictures')
    """
    path = Path(data if Path(data).exists() else data.partition("@")[0].partition(":")[0] if "//" not in data else data)
    parts = [part for part in (path if path.name not in ("", "..") else path.resolve()).parts if part not in ("/", ".")]
    names = [re.sub(r"[^\w.-]+", "-", part).strip("-.") for part in parts]
    if names:
        names[-1] = names[-1].partition(".")[0] or names[-1]
    told = [name for name in names if name and name.lower() not in SAYS_NOTHING]
    return told[-1] if told else (names or ["data"])[0]
