"""What the settings of every command have in common. Imports neither torch nor transformers.

A settings class is a dataclass. Marks on the type of a field say what there is to know of it, so that nobody else has
to know it by name: `Annotated[int, Within(1, 1024), Free()]`. A field may also carry `metadata={"before": value}`: what
the program did before it had that setting, where that is not the field's default.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_type_hints

import tyro

from vq_prior.core.errors import UsageError

S = TypeVar("S")
M = TypeVar("M")


@dataclass(frozen=True)
class Within:
    """Mark of a number, or of a tuple of numbers: the range of each. None is always allowed.

    >>> Within(1).allowed(), Within(1, 64).allowed(), Within(8, 4096, multiple=8).allowed()
    ('at least 1', 'between 1 and 64', 'a multiple of 8 from 8 to 4096')
    >>> Within(0, above=True).allowed(), Within(0, 10, above=True).allowed(), Within(0, 1, below=True).allowed()
    ('a number above 0', 'a number above 0, at most 10', 'at least 0 and below 1')

    Attributes:
        low: The smallest.
        high: The largest; infinity is never reached.
        above: Whether `low` itself is too small.
        below: Whether `high` itself is too large.
        multiple: Of what the number has to be a multiple, if of anything.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    multiple: int | None = None

    def holds(self, value: float) -> bool:
        """Return whether a number is finite and in the range."""
        inside = value > self.low if self.above else value >= self.low
        inside = inside and (value < self.high if self.below else value <= self.high)
        return inside and math.isfinite(value) and (self.multiple is None or value % self.multiple == 0)

    def allowed(self) -> str:
        """Return the range in words."""
        low, high = _plain(self.low), _plain(self.high)
        if self.multiple is not None:
            return f"a multiple of {self.multiple} from {low} to {high}"
        if self.above:
            return f"a number above {low}" + ("" if math.isinf(self.high) else f", at most {high}")
        if self.below:
            return f"at least {low} and below {high}"
        return f"at least {low}" if math.isinf(self.high) else f"between {low} and {high}"


def _plain(number: float) -> str:
    return str(int(number)) if math.isfinite(number) and number == int(number) else f"{number:g}"


@dataclass(frozen=True)
class Place:
    """Mark of a setting that says where something lies: it may change when a run goes on, where its content does not.

    Attributes:
        word: What a record of the training calls it; None: by its name, without the folders before it.
    """

    word: str | None = None


@dataclass(frozen=True)
class Free:
    """Mark of a setting that no result depends on: it may change when a run goes on.

    Attributes:
        told: Whether a record of the training tells it.
    """

    told: bool = False


@dataclass(frozen=True)
class Once:
    """Mark of a setting that belongs to one call and not to the run."""


@dataclass(frozen=True)
class Unsaid:
    """Mark of a setting that a run's config names only where it says something, not where it is None or False.

    Attributes:
        flag: Whether it is typed; else the command line puts it together of other flags.
    """

    flag: bool = True


@dataclass(frozen=True)
class Formerly:
    """Mark of a setting whose flag had another name, which is still read and stays in records."""

    flag: str


DATA_HELP = tyro.conf.arg(help="Images: a folder, parquet or arrow files, a Hub id owner/name, or the word digits.")
NumWorkers = Annotated[
    int | None,
    Within(1, 1024),
    Free(),
    tyro.conf.arg(help="Threads that read images; left out: as many as speed it up."),
]
Threads = Annotated[
    int | None,
    Within(1, 1024),
    Free(),
    Unsaid(),
    tyro.conf.arg(
        help="Threads that a process computes with on a CPU; left out: one a core, and fewer while other programs need "
        "cores, see RUN/...-training/threads.jsonl."
    ),
]
ImageColumn = Annotated[str | None, tyro.conf.arg(help="Column of the images in tables; left out: found by type.")]
LabelColumn = Annotated[
    str | None,
    tyro.conf.arg(help="Column of the labels in tables and metadata files; left out: `label` if there is one."),
]
Sheet = Annotated[Path | None, tyro.conf.arg(help="PNG file for the sheet; left out: OUT.png beside OUT.")]
Overwrite = Annotated[bool, Once()]
AcceptChanges = Annotated[
    bool,
    Once(),
    tyro.conf.arg(
        help="Continue with what is given though RUN has other settings; its config and record list what changed, and "
        "when."
    ),
]
DryRun = Annotated[bool, Once()]
Seed = Annotated[int, Within(0, 2**63 - 1)]


@dataclass(frozen=True)
class Setting:
    """One setting of a settings class, or of a dataclass in it.

    Attributes:
        name: Dotted name.
        flag: How it is typed, with the dashes.
        kind: Its type, without marks.
        marks: What its annotation says of it.
    """

    name: str
    flag: str
    kind: Any
    marks: tuple[Any, ...]

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other flags for the same setting."""
        return tuple(alias for mark in self.marks for alias in getattr(mark, "aliases", None) or ())

    @property
    def is_positional(self) -> bool:
        """Whether it is typed without a flag."""
        return tyro.conf.Positional in self.marks

    def mark(self, kind: type[M]) -> M | None:
        """Return the mark of this kind, None if it has none."""
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)


def settings_in(settings_class: type, prefix: str = "--", path: str = "") -> Iterator[Setting]:
    """Yield every setting of a settings class, those of nested dataclasses too, in the order of `--help`."""
    kinds, hints = (get_type_hints(settings_class, include_extras=extras) for extras in (False, True))
    for field in dataclasses.fields(settings_class):
        kind, marks = kinds[field.name], tuple(getattr(hints[field.name], "__metadata__", ()))
        # A flag whose name is a word of Python (--from) has another name than its setting: tyro.conf.arg(name=...).
        named = [mark.name for mark in marks if getattr(mark, "name", None)]
        flag = (named or [field.name])[0].replace("_", "-")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from settings_in(kind, f"{prefix}{flag}.", f"{path}{field.name}.")
        else:
            yield Setting(path + field.name, prefix + flag, kind, marks)


def names_marked(settings_class: type, *marks: type) -> frozenset[str]:
    """Return the dotted names of the settings that carry one of these marks."""
    return frozenset(each.name for each in settings_in(settings_class) if any(map(each.mark, marks)))


def value_of(settings: Any, name: str) -> Any:
    """Return the value of a setting by its dotted name."""
    return reduce(getattr, name.split("."), settings)


def check_ranges(settings: Any, prefix: str = "--") -> None:
    """Raise `UsageError` that names the first flag whose number is out of its range, what is allowed and was given."""
    for setting in settings_in(type(settings), prefix):
        within = setting.mark(Within)
        value = value_of(settings, setting.name)
        for number in value if isinstance(value, tuple) else (value,):
            if within is not None and number is not None and not within.holds(number):
                raise UsageError(f"{setting.flag} must be {within.allowed()}, got {number}; change it or leave it out")


def require_data(data: str) -> None:
    """Raise `UsageError` if DATA is empty, which would be the current folder."""
    if not data:
        raise UsageError("--data must name a folder, a parquet file, a Hub id or the word digits, got nothing")


def require_folder_to_write(out: Path) -> None:
    """Raise `UsageError` if --out is a file, or a link that leads to itself."""
    try:
        out.resolve()
    except (OSError, RuntimeError):
        raise UsageError(f"--out {out} is a link that leads to itself; choose another --out") from None
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out must be a folder to write, got the existing file {out}")


class Settings:
    """Base of the settings that a run keeps: they know which of them the person gave."""

    _given: frozenset[str]

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Note the names of what is given to the class; `dataclasses.replace` gives everything."""
        self = super().__new__(cls)
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # type: ignore[arg-type]
        by_place = [field.name for field in fields if field.init and not field.kw_only]
        self._given = frozenset([*by_place[: len(values)], *named])
        return self


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting, those of nested dataclasses too."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def given_names(settings: Any) -> frozenset[str]:
    """Return the dotted names of what the person gave; of a dataclass that does not know, every name."""
    if not isinstance(settings, Settings):
        return frozenset(name for name, _ in _leaves(settings))
    names: set[str] = set()
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = {f"{field.name}.{name}" for name, _ in _leaves(value)}
            noted = {name for name in settings._given if name.startswith(f"{field.name}.")}
            known = {f"{field.name}.{name}" for name in given_names(value)} if field.name in settings._given else set()
            names |= (known | noted) & inner
        elif field.name in settings._given:
            names.add(field.name)
    return frozenset(names)


def note_given(settings: S, names: Set[str]) -> S:
    """Return the settings, of which these dotted names are what the person gave."""
    if isinstance(settings, Settings):
        settings._given = frozenset(names)
        for field in dataclasses.fields(settings):  # type: ignore[arg-type]
            inner = getattr(settings, field.name)
            if isinstance(inner, Settings):
                start = f"{field.name}."
                note_given(inner, {name.removeprefix(start) for name in names if name.startswith(start)})
    return settings


def changed_names(settings: Any) -> frozenset[str]:
    """Return the dotted names of the settings that differ from their defaults."""
    defaults = absent_means(settings)
    return frozenset(name for name, value in _leaves(settings) if name not in defaults or value != defaults[name])


def changed(settings: S, **changes: Any) -> S:
    """Return a copy with other values; what the person gave stays what it was."""
    copy = dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    return note_given(copy, given_names(settings))


def overlaid(settings: S, other: S, *, leave: Set[str]) -> S:
    """Return the settings with the values of `other`, except for the names in `leave`; what counts as typed does not
    change.
    """
    copy: S = note_given(_overlaid(settings, other, leave, ""), given_names(settings))
    return copy


def _overlaid(settings: Any, other: Any, leave: Set[str], prefix: str) -> Any:
    changes = {}
    for field in dataclasses.fields(settings):
        mine, theirs, name = getattr(settings, field.name), getattr(other, field.name), prefix + field.name
        if dataclasses.is_dataclass(mine) and type(mine) is type(theirs):
            changes[field.name] = _overlaid(mine, theirs, leave, f"{name}.")
        elif name not in leave:
            changes[field.name] = theirs
    return dataclasses.replace(settings, **changes)


def with_defaults(settings: S, *, leave: Set[str]) -> S:
    """Return the settings with every default that a field has, but for the dotted names in `leave`."""
    copy: S = note_given(_with_defaults(settings, leave, ""), given_names(settings))
    return copy


def _with_defaults(settings: Any, leave: Set[str], prefix: str) -> Any:
    changes = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            changes[field.name] = _with_defaults(value, leave, f"{name}.")
        elif name not in leave and field.default is not dataclasses.MISSING:
            changes[field.name] = field.default
        elif name not in leave and field.default_factory is not dataclasses.MISSING:
            changes[field.name] = field.default_factory()
    return dataclasses.replace(settings, **changes)


def with_absent(settings_class: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings (JSON values) and, of those that they do not name, what the program did before it had them.

    What is not named and has no `before` stays away: it means the field's default.
    """
    whole, kinds = dict(saved), get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        inner = saved.get(field.name)
        if dataclasses.is_dataclass(kinds[field.name]) and isinstance(inner, dict):
            whole[field.name] = with_absent(kinds[field.name], inner)
        elif field.name not in saved and "before" in field.metadata:
            whole[field.name] = field.metadata["before"]
    return whole


def absent_means(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return by dotted name what each setting means to a run that does not name it: `before`, else its default."""
    from vq_prior.core.config import to_json

    means: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            means |= absent_means(value, f"{name}.")
        elif "before" in field.metadata:
            means[name] = field.metadata["before"]
        elif field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
            factory = field.default_factory
            means[name] = to_json(field.default if factory is dataclasses.MISSING else factory())
    return means
