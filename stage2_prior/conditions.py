"""What a prior knows of a row before it draws: columns of the code store as places of the prompt.

The class is a token of the vocabulary. Every other condition is a small module, trained with the prior, that turns
one column into vectors which stand behind the class in the prompt; a kind from outside is an entry point of the group
`vq_prior.conditions`, and says itself which columns it takes.

Letters: B rows, P places of a condition, D width of the prior.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stage2_prior.layout import SequenceLayout
from vq_prior.core.disk.code_store import CodeIndex, Column
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.registry import Registry
from vq_prior.core.training.randomness import keyed_generator

CONDITIONS: Registry[Any] = Registry("condition", group="vq_prior.conditions")
MAX_PLACES = 1024


class ClassCondition:
    """The class of a row, or no class: one token of the vocabulary, which the prior's own embedding knows."""

    num_places: ClassVar[int] = 1

    def __init__(self, layout: SequenceLayout) -> None:
        self.layout = layout

    @classmethod
    def takes(cls, column: Column) -> bool:
        """Return whether the column is that of the classes."""
        return column.name == "label"

    def prompt(self, labels: Tensor) -> Tensor:
        """Return the token of each label, [B, 1] int64, from labels [B]."""
        return self.layout.prompt(labels)[:, None]

    def null(self, num_rows: int) -> Tensor:
        """Return the label that means no class for so many rows, [B] int64."""
        return torch.full((num_rows,), self.layout.null_label)


class Condition(nn.Module):
    """A column of the code store as `num_places` vectors of the prompt; what every kind but the class inherits.

    A kind overrides `takes` and `forward`, and, if it needs them, `num_places`, `fit` and `check`. Its parameters and
    buffers are its state: trained, averaged, stored and sealed with the prior.

    Args:
        column: Name, type and shape of the column.
        width: Of the prior, D.

    Attributes:
        num_places: P, vectors in the prompt.
        kind: Name of the kind.
        nothing: What stands in the prompt of a row without a value, [P, D]; learnt.
    """

    num_places: int = 1
    kind: str = ""

    def __init__(self, column: Column, width: int) -> None:
        super().__init__()
        self.column, self.width = column, width
        self.nothing = nn.Parameter(torch.zeros(self.num_places, width))

    @classmethod
    def takes(cls, column: Column) -> bool:
        """Return whether this kind is for such a column."""
        raise NotImplementedError

    def fit(self, values: Tensor) -> None:
        """Take from the training rows, [n, *shape] float32, what is not learnt by gradients; called once."""

    def check(self, values: Tensor) -> None:
        """Raise `UsageError` if values [B, *shape], finite, are none that this kind takes."""

    def forward(self, values: Tensor) -> Tensor:
        """Return vectors [B, P, D] of values [B, *shape] float32, all of them there."""
        raise NotImplementedError

    def prompt(self, values: Tensor) -> Tensor:
        """Return vectors [B, P, D] of values [B, *shape]; a row that is not a number has none, and gets `nothing`."""
        flat = values.reshape(len(values), -1)
        missing = flat.isnan().any(dim=1)
        here = torch.where(missing[:, None], 0.0, flat).reshape(values.shape)
        return torch.where(missing[:, None, None], self.nothing, self(here))


class VectorCondition(Condition):
    """Numbers, standardised by the mean and deviation of the training rows, through one linear map."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, column: Column, width: int) -> None:
        super().__init__(column, width)
        size = max(1, int(torch.Size(column.shape).numel()))
        self.map = nn.Linear(size, width)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    @classmethod
    def takes(cls, column: Column) -> bool:
        """Return whether the column holds floating-point numbers."""
        return column.dtype.startswith("float")

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the mean and the deviation of each number; one that never changes keeps deviation 1."""
        flat = values.reshape(len(values), -1).double()
        deviation = flat.std(dim=0, correction=0)
        self.mean.copy_(flat.mean(dim=0))
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """Return vectors [B, 1, D]."""
        mapped: Tensor = self.map((values.reshape(len(values), -1) - self.mean) / self.deviation)
        return mapped[:, None]


CONDITIONS.add("class", ClassCondition)
CONDITIONS.add("vector", VectorCondition)


@dataclass(frozen=True)
class Conditioned:
    """What the rows of a batch are conditioned on.

    Attributes:
        labels: Class of each row, [B] int64; the null label for none.
        columns: Values of the other conditions by name, [B, *shape] float32; a row that is not a number has none.
    """

    labels: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: "Tensor | Conditioned") -> "Conditioned":
        """Return what was given; labels [B] alone are rows without other conditions."""
        return labels if isinstance(labels, Conditioned) else cls(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> "Conditioned":
        return Conditioned(self.labels[rows], {name: values[rows] for name, values in self.columns.items()})

    def to(self, device: torch.device | str) -> "Conditioned":
        """Return the same on a device."""
        moved = {name: values.to(device) for name, values in self.columns.items()}
        return Conditioned(self.labels.to(device), moved)

    def null(self, layout: SequenceLayout) -> "Conditioned":
        """Return as many rows without any condition."""
        nothing = {name: torch.full_like(values, torch.nan) for name, values in self.columns.items()}
        return Conditioned(torch.full_like(self.labels, layout.null_label), nothing)

    def dropped(self, layout: SequenceLayout, *, rate: float, seed: int, step: int) -> "Conditioned":
        """Return the rows of the global batch of one step, some without their conditions.

        A share `rate` of the rows loses all of them together; of several conditions, each is lost alone as often
        again. Which rows these are is a function of (seed, step), so it does not depend on the number of processes.
        """

        def drawn(name: str) -> Tensor:
            return torch.from_numpy(keyed_generator(seed, step, name).random(len(self)) < rate)

        together, labels, columns = drawn("label dropout"), self.labels, dict(self.columns)
        for name, values in columns.items():
            lost = together | drawn(f"condition dropout {name}")
            columns[name] = values.masked_fill(lost.view(-1, *[1] * (values.ndim - 1)), torch.nan)
        if layout.num_classes:
            lost = together | drawn("condition dropout label") if columns else together
            labels = labels.masked_fill(lost, layout.null_label)
        return Conditioned(labels, columns)


def condition_columns(index: CodeIndex) -> tuple[Column, ...]:
    """Return the columns of a code store that are conditions, by name; the class is not among them."""
    known = {f"codes.{n}" for n in range(len(index.spec.levels))} | {"label", "source_index", "view"}
    return tuple(sorted((c for c in index.columns if c.name not in known), key=lambda column: column.name))


def kind_of(column: Column) -> str:
    """Return the name of the kind that takes a column: one from outside before ours.

    Raises:
        UsageError: If none does, or several from outside do.
    """
    own = CONDITIONS.own_names()
    taking = [name for name in CONDITIONS.names() if CONDITIONS[name].takes(column)]
    outside = [name for name in taking if name not in own]
    if len(outside) > 1:
        raise UsageError(f"column {column.name} is taken by {' and '.join(outside)}; uninstall one of them")
    if not taking:
        raise UsageError(
            f"column {column.name} ({column.dtype} {list(column.shape)}) is taken by no kind of condition; "
            f"there are {', '.join(CONDITIONS.names())}"
        )
    return (outside or taking)[0]


def build_condition(kind: str, column: Column, width: int, *, seed: int = 0) -> Condition:
    """Return a condition of a kind, untrained, its weights a function of (seed, name of the column)."""
    condition: Condition = CONDITIONS[kind](column, width)
    condition.kind = kind
    if not 1 <= condition.num_places <= MAX_PLACES:
        raise ArtifactError(f"condition {column.name} must take 1 to {MAX_PLACES} places, got {condition.num_places}")
    with torch.no_grad():
        for name, parameter in sorted(condition.named_parameters()):
            drawn = keyed_generator(seed, 0, f"condition {column.name} {name}").standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(drawn) * 0.02)
    return condition


def attach(model: nn.Module, conditions: list[Condition]) -> None:
    """Make conditions a part of a stock model, whose parameters they share from then on; none leaves it as it is."""
    if conditions:
        model.conditions = nn.ModuleList(conditions)


def conditions_of(model: nn.Module) -> list[Condition]:
    """Return the conditions that are a part of a stock model, in the order of the prompt."""
    return list(getattr(model, "conditions", ()))


def num_vectors(model: nn.Module) -> int:
    """Return how many vectors stand in the prompt behind the class."""
    return sum(condition.num_places for condition in conditions_of(model))


def prompt_vectors(model: nn.Module, values_of: Mapping[str, Tensor], num_rows: int) -> Tensor | None:
    """Return what stands in the prompt behind the class, [B, places, D]; None for a model without conditions.

    A condition without values is missing in every row.
    """
    parts = []
    for condition in conditions_of(model):
        values = values_of.get(condition.column.name)
        if values is None:
            values = torch.full((num_rows, *condition.column.shape), torch.nan, device=condition.nothing.device)
        parts.append(condition.prompt(values))
    return torch.cat(parts, dim=1) if parts else None


def checked_values(condition: Condition, values: Tensor) -> Tensor:
    """Return values of a condition as it takes them, [B, *shape] float32; a row of NaN alone means no value.

    Raises:
        UsageError: Naming the condition and the row that is wrong.
    """
    name, shape = condition.column.name, condition.column.shape
    if tuple(values.shape[1:]) != shape:
        raise UsageError(f"condition {name} must have values of shape {list(shape)}, got {list(values.shape[1:])}")
    values = values.float()
    flat = values.reshape(len(values), -1)
    bad = ~(flat.isfinite().all(dim=1) | flat.isnan().all(dim=1))
    if bool(bad.any()):
        raise UsageError(f"condition {name} is not finite in row {int(bad.nonzero()[0])}; give numbers, or none")
    condition.check(values[~flat.isnan().all(dim=1)])
    return values
