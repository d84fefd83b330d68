"""A table of named objects, ours and those of installed packages, with a helpful refusal.

A string in a config chooses code in two ways only: among what our own modules file
here, and among what installed packages offer as entry points of the table's group:

    [project.entry-points."vq_prior.quantizers"]
    mine = "my_package.quantizer:MyQuantizer"

So what can be chosen was installed by whoever runs the program; data names it and
never brings it, nor says where it lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from vq_prior.core.errors import EnvironmentFault, UsageError, in_one_line

T = TypeVar("T")

GROUPS = ("vq_prior.modalities", "vq_prior.quantizers", "vq_prior.conditions")


class Registry(Generic[T]):
    """Named entries of one kind, in the order they were added, then those of installed packages by name.

    >>> shapes = Registry[int]("shape")
    >>> shapes.add("square", 4)
    4
    >>> shapes["square"]
    4
    >>> shapes.add_home("circle", "math:tau")
    >>> "circle" in shapes, shapes.names()
    (True, ('square', 'circle'))

    Args:
        kind: What an entry is, for messages.
        group: Entry points of this group are entries too, looked up when a name is not among ours; None has none.
    """

    def __init__(self, kind: str, *, group: str | None = None) -> None:
        assert group is None or group in GROUPS, f"{group} is not among {GROUPS}"
        self.kind, self.group = kind, group
        self._entries: dict[str, T] = {}
        self._homes: dict[str, EntryPoint] = {}
        self._order: list[str] = []
        self._installed: dict[str, list[EntryPoint]] | None = None

    def add(self, name: str, entry: T) -> T:
        """Return `entry` after filing it under a new name."""
        self._take(name)
        self._entries[name] = entry
        return entry

    def add_home(self, name: str, home: str) -> None:
        """File under a new name what lies at `module:attribute`, a module of ours; it is imported at first use."""
        self._take(name)
        self._homes[name] = EntryPoint(name, home, "")

    def _take(self, name: str) -> None:
        assert name not in self._order, f"{self.kind} {name!r} is registered twice"
        self._order.append(name)

    def __getitem__(self, name: str) -> T:
        """Return the entry.

        Raises:
            UsageError: If there is none of this name; it lists what exists.
            EnvironmentFault: If it belongs to an installed package and cannot be loaded.
        """
        if name in self._homes:
            self._entries[name] = self._homes.pop(name).load()
        if name not in self._entries:
            offers = self._offers().get(name)
            if offers is None:
                close = get_close_matches(name, self.names(), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(f"unknown {self.kind} {name!r}, available: {', '.join(self.names())}{hint}")
            self._entries[name] = _load(offers, self.kind)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._homes or name in self._offers()

    def names(self) -> tuple[str, ...]:
        """Return every name; nothing is imported for it."""
        return (*self._order, *(name for name in self._offers() if name not in self._order))

    def own_names(self) -> tuple[str, ...]:
        """Return the names that our own modules filed."""
        return tuple(self._order)

    def _offers(self) -> dict[str, list[EntryPoint]]:
        """Return what installed packages offer, by name; their code is not touched."""
        if self._installed is None:
            self._installed = {}
            points = entry_points(group=self.group) if self.group else ()
            for point in sorted(points, key=lambda point: (point.name, _package(point))):
                self._installed.setdefault(point.name, []).append(point)
        return self._installed


@dataclass(frozen=True)
class Plugin:
    """What an installed package offers: a name in a group.

    Attributes:
        group: Group of entry points.
        name: Name of the entry.
        package: The distribution that offers it, and its version.
        trouble: Why it cannot be used; None if it can.
    """

    group: str
    name: str
    package: str
    trouble: str | None


def plugins(*registries: Registry) -> Iterator[Plugin]:
    """Yield what installed packages offer to vq-prior, by group and name; each is imported, to see that it can be.

    Args:
        registries: Tables that have names of their own, which no package can take.
    """
    own = {(registry.group, name) for registry in registries for name in registry.own_names()}
    groups = [group for group in entry_points().groups if group.startswith("vq_prior.")]
    points = [point for group in groups for point in entry_points(group=group)]
    for point in sorted(points, key=lambda point: (point.group, point.name, _package(point))):
        rivals = [other for other in points if (other.group, other.name) == (point.group, point.name)]
        trouble = None
        if point.group not in GROUPS:
            trouble = f"no such group; there are {', '.join(GROUPS)}"
        elif (point.group, point.name) in own:
            trouble = "not used: vq-prior has its own of this name"
        else:
            try:
                _load(rivals, "entry")
            except EnvironmentFault as error:
                trouble = str(error)
        yield Plugin(point.group, point.name, _package(point), trouble)


def _load(offers: list[EntryPoint], kind: str) -> Any:
    """Return what the one entry point of a name leads to; raises `EnvironmentFault` that names the package."""
    packages = [_package(point) for point in offers]
    name = offers[0].name
    if len(offers) > 1:
        raise EnvironmentFault(f"the {kind} {name!r} is offered by {' and by '.join(packages)}; uninstall one of them")
    try:
        return offers[0].load()
    except Exception as error:
        raise EnvironmentFault(
            f"the {kind} {name!r} of the installed package {packages[0]} cannot be loaded "
            f"({type(error).__name__}: {in_one_line(error)}); repair or uninstall the package"
        ) from error


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown"
