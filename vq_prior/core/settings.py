"""What the settings of every command have in common. Imports neither torch nor transformers.

A settings class is a dataclass; a field may carry `metadata={"before": value}`: what the program did before it had
that setting, where that is not the field's default.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Set
from typing import Any, Self, TypeVar, get_type_hints

S = TypeVar("S")


class Settings:
    """Base of the settings that a run keeps: they know which of them the person gave."""

    _given: frozenset[str]

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Note the names of what is given to the class; `dataclasses.replace` gives everything."""
        self = super().__new__(cls)
        fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        self._given = frozenset([*fields[: len(values)], *named])
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
    """Return the dotted names of what is not as its default."""
    defaults = absent_means(settings)
    return frozenset(name for name, value in _leaves(settings) if name not in defaults or value != defaults[name])


def changed(settings: S, **changes: Any) -> S:
    """Return a copy with other values; what the person gave stays what it was."""
    copy = dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    return note_given(copy, given_names(settings))


def overlaid(settings: S, other: S, *, leave: Set[str]) -> S:
    """Return the settings with the values of `other`, but for the dotted names in `leave`; given is what was given."""
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
