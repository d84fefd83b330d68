"""Values of a model's conditions, as a user gives them: a file, or what a Python call passes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stage2_prior.conditions import checked_values, conditions_of
from stage2_prior.prior import CausalPrior
from vq_prior.core.config import read_json
from vq_prior.core.errors import ArtifactError, UsageError

MAX_BYTES = 256 << 20


def read_conditions(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the values that a file holds, by name of the condition, as JSON has them.

    Args:
        path: A .json object of lists by name, or a .npy array of numbers for a model of one condition.
        names: Conditions of the model.

    Raises:
        UsageError: If the model has no such condition, or the file is neither.
        ArtifactError: If the file is missing or malformed.
    """
    known = ", ".join(names) or "none beside its class"
    if path.suffix == ".json":
        values = read_json(path, max_bytes=MAX_BYTES)
        if not isinstance(values, dict):
            raise UsageError(f"{path} must hold an object of lists by name of the condition; the model has {known}")
    elif path.suffix == ".npy":
        if len(names) != 1:
            raise UsageError(f"{path} names no condition, and the model has {known}; give a .json object of lists")
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{path} is missing, or larger than {MAX_BYTES} bytes")
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{path} is not readable as an array of numbers") from error
        values = {names[0]: array.tolist()}
    else:
        raise UsageError(f"--condition must be a .json or .npy file, got {path}")
    for name in values:
        if name not in names:
            raise UsageError(f"{path} names the condition {name}, the model has {known}")
    return values


def condition_values(
    prior: CausalPrior, given: Mapping[str, Any], num_rows: int, *, each: int = 1
) -> dict[str, Tensor]:
    """Return values of conditions as the prior takes them, [num_rows, *shape] float32 by name.

    Args:
        prior: Of the model.
        given: A value for all rows, or one for each `each` rows, by name; None in a list is a row without it.
        num_rows: Rows of the draw.
        each: Rows that stand together and have one value.

    Raises:
        UsageError: If a name is unknown, a value is none that the condition takes, or there are too few.
    """
    conditions = {condition.column.name: condition for condition in conditions_of(prior.model)}
    checked = {}
    for name, value in given.items():
        if name not in conditions:
            raise UsageError(f"this model has no condition {name}, it has {', '.join(conditions) or 'none'}")
        shape = conditions[name].column.shape
        try:
            nothing = np.full(shape, np.nan).tolist()
            listed = [nothing if row is None else row for row in value] if isinstance(value, list) else value
            values = torch.as_tensor(np.asarray(listed, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise UsageError(f"condition {name} must be numbers of shape {list(shape)} a row") from error
        values = values[None] if tuple(values.shape) == shape else values
        if len(values) == 1:
            values = values.expand(num_rows, *values.shape[1:])
        elif len(values) * each < num_rows:
            raise UsageError(f"condition {name} has {len(values)} rows for {num_rows // each} samples; give one or all")
        else:
            values = values.repeat_interleave(each, dim=0)[:num_rows]
        checked[name] = checked_values(conditions[name], values)
    return checked
