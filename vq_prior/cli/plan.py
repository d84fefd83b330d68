"""`RUN/plan.json`: what `vq-prior train` chose, from which measured rates, and why. A rerun reads it and never chooses
again.

A part of the plan is written before the work that depends on it: the codec's before the first training, the prior's
when its codes are there, and one more of the prior each time that a finished RUN is given more minutes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stage1_vqvae.settings import TrainVQVAE
from stage2_prior.settings import TrainPrior
from vq_prior.core.config import from_json, pretty_json, read_json, to_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.errors import ArtifactError

PLAN = "plan.json"


@dataclass(frozen=True)
class CodecPlan:
    """What was chosen first.

    Attributes:
        recipe: Name of the recipe; "defaults" where nothing was chosen, "from" where a codec was given.
        settings: Of train-vqvae beside data, RUN and seed, as JSON.
        prior: Of train-prior, those that go with this codec.
        measured: Rates that the choice rests on: seconds by name.
        why: In words.
    """

    recipe: str
    settings: dict[str, Any]
    prior: dict[str, Any]
    measured: dict[str, float]
    why: str


@dataclass(frozen=True)
class PriorPlan:
    """What was chosen when the codes were there.

    Attributes:
        minutes: That the whole RUN may take by it; None without a limit.
        settings: Of train-prior, beside those of the codec's plan.
        num_images: Samples drawn and compared by the evaluation; 0 where there is no time for one.
        measured: Rates that the choice rests on: seconds by name.
        why: In words.
    """

    minutes: float | None
    settings: dict[str, Any]
    num_images: int
    measured: dict[str, float]
    why: str


@dataclass(frozen=True)
class Plan:
    """`plan.json`.

    Attributes:
        format_version: Of this file.
        settings: What was typed, but for the minutes, which stand in the parts.
        data_id: Of the data.
        minutes: That were asked for when the codec was chosen; None without a limit.
        codec: The codec's part.
        prior: The prior's parts; the last one is the present.
    """

    format_version: int
    settings: dict[str, Any]
    data_id: str
    minutes: float | None
    codec: CodecPlan
    prior: tuple[PriorPlan, ...] = field(default=())

    def and_then(self, part: PriorPlan) -> "Plan":
        """Return the plan with one more part of the prior."""
        return replace(self, prior=(*self.prior, part))

    def allowed(self) -> float | None:
        """Return the minutes that the RUN may take by this plan; None without a limit."""
        return self.prior[-1].minutes if self.prior else self.minutes


def read_plan(run: Path) -> Plan | None:
    """Return the plan of a RUN, None if it has none.

    Raises:
        ArtifactError: If it is malformed, names a setting that does not exist, or is of another version.
    """
    path = run / PLAN
    if not path.exists():
        return None
    plan = from_json(Plan, read_json(path), str(path))
    if plan.format_version != 1:
        raise ArtifactError(f"{path} has format version {plan.format_version}; this version reads 1")
    where = f"{path}: codec"
    from_json(TrainVQVAE, {"data": "", "out": "", **plan.codec.settings}, f"{where}.settings")
    from_json(TrainPrior, {"out": "", **plan.codec.prior}, f"{where}.prior")
    for number, part in enumerate(plan.prior):
        from_json(TrainPrior, {"out": "", **part.settings}, f"{path}: prior[{number}].settings")
        if part.num_images < 0:
            raise ArtifactError(f"{path}: prior[{number}].num_images must be at least 0, got {part.num_images}")
    return plan


def write_plan(run: Path, plan: Plan) -> None:
    """Write the plan of a RUN, whole; seconds are kept to six digits."""
    entries = to_json(plan)
    for part in (entries["codec"], *entries["prior"]):
        part["measured"] = {name: float(f"{seconds:.6g}") for name, seconds in part["measured"].items()}
    write_atomic(run / PLAN, pretty_json(entries))
