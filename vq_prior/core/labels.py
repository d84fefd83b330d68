"""Classes by name: what a person types, found among the names of a model; and which names are one."""

import re
import unicodedata
from collections.abc import Sequence

from vq_prior.core.errors import UsageError

MOST_NAMED = 20
INDEX = re.compile(r"index:([0-9]{1,9})")
NUMBER = re.compile(r"[+-]?(\d[\d.,_']*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)


def one_form(name: str) -> str:
    """Return a name in the form in which names are compared: é is one letter, however it was typed (Unicode's NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_like_a_number(name: str) -> bool:
    """Return whether a name may be taken for a number.

    >>> [is_like_a_number(name) for name in ("01", "+1", "1.0", "1e3", "cat", "1st", "0-9")]
    [True, True, True, True, False, False, False]
    """
    return NUMBER.fullmatch(name.strip()) is not None


def split_labels(text: str, label_names: Sequence[str]) -> list[str]:
    """Return the labels in a text, which commas separate; a name that has commas itself is one label.

    From the left, the longest name of a class is taken first.

    >>> split_labels("tench, Tinca tinca, cat", ["cat", "tench, Tinca tinca"])
    ['tench, Tinca tinca', 'cat']
    """
    known = {one_form(name).strip() for name in label_names}
    parts, labels, first = text.split(","), [], 0
    most = 1 + max((name.count(",") for name in known), default=0)
    while first < len(parts):
        ends = range(min(len(parts), first + most), first, -1)
        candidates = ((end, ",".join(parts[first:end]).strip()) for end in ends)
        end, label = next(((end, each) for end, each in candidates if one_form(each) in known), (0, ""))
        labels.append(label if end else parts[first].strip())
        first = end or first + 1
    return labels


def label_index(label: str, label_names: Sequence[str], num_classes: int) -> int:
    """Return the class of a label: of that name, `index:1`, or a bare number where no name looks like one.

    Raises:
        UsageError: Listing what exists.
    """
    if label in label_names:
        return label_names.index(label)
    forms = [one_form(name).strip() for name in label_names]
    if one_form(label).strip() in forms:
        return forms.index(one_form(label).strip())
    match = INDEX.fullmatch(label)
    numbers = any(map(is_like_a_number, label_names))
    bare = label.isascii() and label.isdigit() and len(label) < 10 and not numbers
    if (match or bare) and int(match[1] if match else label) < num_classes:
        return int(match[1] if match else label)
    if not num_classes:
        raise UsageError(f"unknown label {label!r} for this model; it has no classes")
    known = ", ".join(label_names[:MOST_NAMED]) + (", ..." if len(label_names) > MOST_NAMED else "")
    allowed = f"its classes are {known or 'unnamed'} (0 to {num_classes - 1})"
    if numbers and is_like_a_number(label):
        allowed = f"its classes are {known}; give a whole name, or a place from index:0 to index:{num_classes - 1}"
    raise UsageError(f"unknown label {label!r} for this model; {allowed}")
