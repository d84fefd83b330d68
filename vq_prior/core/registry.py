"""A name -> class table with a helpful refusal.

The only way a string in a config chooses code: the table is filled by our own
modules, never by an import path from data.
"""

from difflib import get_close_matches
from typing import Generic, TypeVar

from vq_prior.core.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind, in the order they were added.

    >>> shapes = Registry[int]("shape")
    >>> shapes.add("square", 4)
    4
    >>> shapes["square"]
    4
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Return `entry` after filing it under a new name."""
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """Return the entry; raises `UsageError` that lists what exists."""
        if name not in self._entries:
            close = get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"unknown {self.kind} {name!r}, available: {', '.join(self._entries)}{hint}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return every name."""
        return tuple(self._entries)
