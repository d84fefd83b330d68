"""Labels as tables and lists hold them, brought to names and integers; what is changed or cannot be used is said."""

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from stage1_vqvae.data.splits import MOST_NAMED
from vq_prior.core.errors import UsageError
from vq_prior.core.labels import is_like_a_number

Label = str | int | None


def read_labels(
    values: Iterable[Any], column: str, where: str, *, is_named: bool, has_names: bool = False
) -> tuple[list[Label] | None, list[str]]:
    """Return the label of each row, None where it has none, and what to say of them; None if they are no labels.

    Args:
        values: Of the column, as Python values.
        column: Its name.
        where: What the table is called.
        is_named: Whether the person named the column: then what cannot be used is an error.
        has_names: Whether the table names its classes 0, 1, ...: then -1 stands for none.

    Raises:
        UsageError: If a column that the person named holds no labels, naming the first row.
    """
    values = list(values)
    kinds = set(map(type, values))
    if kinds <= {int, str} and not has_names:  # a million rows need no look at each
        return ([value if value != "" else None for value in values] if str in kinds else values), []
    for row, value in enumerate(values):
        if (wrong := _wrong(value)) is not None:
            what = f"column {column} of {where} holds {wrong} (row {row}: {str(value)[:40]})"
            if is_named:
                raise UsageError(f"--label-column: {what}; name a column of one name or integer a row")
            return None, [f"no labels: {what}; --label-column names another column"]
    labels = [_label(value) for value in values]
    if has_names:
        labels = [None if label == -1 else label for label in labels]
    floats = next((value for value in values if isinstance(value, float) and not math.isnan(value)), None)
    notes = (
        [] if floats is None else [f"labels: column {column} holds whole numbers such as {floats}, read as integers"]
    )
    return labels, notes


def _wrong(value: Any) -> str | None:
    """Return what is wrong with a value as a label."""
    if isinstance(value, (list, tuple, set)):
        return "lists, several labels a row"
    if isinstance(value, dict):
        return "objects"
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value != int(value):
        return "numbers between integers"
    if isinstance(value, (float, Decimal)) and math.isinf(value):
        return "infinite numbers"
    if isinstance(value, bytes) and _text(value) is None:
        return "bytes"
    return None


def _label(value: Any) -> Label:
    if value is None or (isinstance(value, (float, Decimal)) and math.isnan(value)):
        return None
    if isinstance(value, (float, Decimal)):
        return int(value)
    if isinstance(value, int):
        return value
    text = _text(value) if isinstance(value, bytes) else str(value)
    return text or None


def _text(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def without_nan(texts: Sequence[str]) -> list[str]:
    """Return the texts of a column, empty in place of nan where all others are numbers."""
    numbers = {text for text in texts if is_like_a_number(text)}
    others = {text.strip().lower() for text in texts if text not in numbers}
    return [text if text in numbers else "" for text in texts] if numbers and others <= {"", "nan"} else list(texts)


def no_label_column(others: Sequence[str]) -> list[str]:
    """Return what to say where no column is called label: which others there are."""
    if not others:
        return []
    return [f"no labels: no column is called label; --label-column takes another ({', '.join(others[:MOST_NAMED])})"]
