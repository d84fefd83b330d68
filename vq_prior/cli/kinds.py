"""The flags of kinds of data that installed packages bring, beside those of our own settings classes.

A settings class has one field for all of them, `options`; the command line is parsed by a class made for it, which has
their flags as fields.
"""

import dataclasses
from collections.abc import Set
from typing import Annotated, Any

import tyro

from stage1_vqvae.modalities import installed
from vq_prior.core.config import from_json, to_json
from vq_prior.core.modality import Modality


def _brought() -> list[Modality]:
    return [kind for kind in installed() if not kind.signs.flat]


def with_flags_of_kinds(settings_class: type) -> type:
    """Return the class by which a command is parsed: with `--NAME.FIELD` and `--COLUMN-column` of each kind."""
    takes_data = any(field.name == "options" for field in dataclasses.fields(settings_class))
    kinds = _brought() if takes_data else []
    if not kinds:
        return settings_class
    fields: list[Any] = []
    for kind in kinds:
        help_text = f"Column of {kind.name} in tables; left out: found by type."
        column = Annotated[str | None, tyro.conf.arg(help=help_text)]
        fields.append((f"{kind.signs.column}_column", column, dataclasses.field(default=None)))
        if kind.signs.settings is not None:
            own = kind.signs.settings
            fields.append((kind.name, own, dataclasses.field(default_factory=own)))
    namespace = {"__doc__": settings_class.__doc__}
    return dataclasses.make_dataclass(
        settings_class.__name__, fields, bases=(settings_class,), namespace=namespace, kw_only=True
    )


def spread(settings: Any, parsed_class: type) -> Any:
    """Return the settings that parsing starts from as an instance of `parsed_class`, their options as fields of it."""
    if type(settings) is parsed_class:
        return settings
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    options = settings.options or {}
    for kind in _brought():
        column, own = f"{kind.signs.column}_column", kind.signs.settings
        values[column] = options.get(column)
        if own is not None:
            values[kind.name] = from_json(own, options.get(kind.name, {}), kind.name)
    return parsed_class(**values)


def gathered(parsed: Any, settings_class: type, given: Set[str]) -> tuple[Any, Set[str]]:
    """Return what was parsed as an instance of the command's own class, and the names of what was given of it.

    Args:
        parsed: Of the class that `with_flags_of_kinds` made.
        settings_class: The command's own.
        given: Dotted names of what was given; of a kind's flags nothing else is kept.
    """
    if type(parsed) is settings_class:
        return parsed, given
    options: dict[str, Any] = {}
    for kind in _brought():
        column = f"{kind.signs.column}_column"
        if column in given:
            options[column] = getattr(parsed, column)
        inner = {name.partition(".")[2] for name in given if name.startswith(f"{kind.name}.")}
        if inner:
            own = to_json(getattr(parsed, kind.name))
            options[kind.name] = {name: value for name, value in own.items() if name in inner}
    names = [field.name for field in dataclasses.fields(settings_class)]
    values = {name: getattr(parsed, name) for name in names} | {"options": options or None}
    names_given = {name for name in given if name.partition(".")[0] in names} | ({"options"} if options else set())
    return settings_class(**values), names_given
