"""Writes docs/api.md from docstrings: `python scripts/api.py`; a test holds that the page is whole and current."""

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import vq_prior

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
OURS = ("vq_prior", "stage1_vqvae", "stage2_prior")
# What guides show, and what a kind of data, a quantiser or a condition of one's own is written against.
MODULES = (
    "vq_prior.app",
    "vq_prior.testing",
    "vq_prior.core.errors",
    "vq_prior.core.modality",
    "vq_prior.core.registry",
    "vq_prior.core.settings",
    "stage1_vqvae.quantizer_settings",
    "stage1_vqvae.quantizers",
    "stage1_vqvae.quantizers.contract",
    "stage1_vqvae.modalities",
    "stage1_vqvae.modalities.pictures.values",
    "stage1_vqvae.modalities.sheets",
    "stage2_prior.conditions",
)
HEAD = """# Python names

What can be imported and stays: the names of `vq_prior`, and the modules that guides show or that code of one's own is
written against. Each with the first line of what it says of itself; `help(NAME)` tells the rest. Written by
`python scripts/api.py`.
"""


def page() -> str:
    """Return the text of docs/api.md."""
    lines = [HEAD, "## `vq_prior`", ""]
    for name in sorted(vq_prior.__all__, key=str.lower):
        thing = getattr(vq_prior, name)
        lines += [
            f"### `{name}`",
            "",
            *(["The version, as text."] if isinstance(thing, str) else told(name, thing)),
            "",
        ]
    for module in modules():
        lines += [f"## `{module.__name__}`", "", first_line(module), ""]
        for name, thing in public(module).items():
            lines += told(name, thing, short=True)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def modules() -> list[Any]:
    """Return the public modules that there are."""
    return [importlib.import_module(name) for name in MODULES if is_there(name)]


def is_there(module: str) -> bool:
    """Return whether there is a module of this name."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def public(module: Any) -> dict[str, Any]:
    """Return the classes and functions that a module defines for others, in the order of its text."""
    return {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    }


def told(name: str, thing: Any, *, short: bool = False) -> list[str]:
    """Return the lines on a class or function: how it is called, what it is, and each of its methods."""
    call = f"`{name}{signature(thing)}`"
    lines = [f"- {call}: {first_line(thing)}"] if short else [call, "", first_line(thing), ""]
    indent = "  " if short else ""
    for method in methods(thing) if inspect.isclass(thing) else ():
        bound = inspect.getattr_static(thing, method)
        is_value = not inspect.isfunction(bound) and not isinstance(bound, classmethod | staticmethod)
        shown = "" if method == "__call__" else f".{method}"
        call = "" if is_value else signature(getattr(thing, method))
        lines.append(f"{indent}- `{shown}{call}`: {first_line(bound if is_value else getattr(thing, method))}")
    return lines


def methods(thing: type) -> list[str]:
    """Return the public methods and properties of a class that our own classes define and describe, as they come."""
    found: dict[str, None] = {}
    for parent in thing.__mro__:
        if parent.__module__.split(".")[0] in OURS:
            found |= {name: None for name, value in vars(parent).items() if is_told(name, value)}
    return list(found)


def is_told(name: str, value: Any) -> bool:
    """Return whether a member of a class is a public method or property with a docstring of its own."""
    inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    public_name = name == "__call__" or not name.startswith("_")
    callable_or_property = inspect.isfunction(inner) or isinstance(inner, property) or hasattr(inner, "attrname")
    return public_name and callable_or_property and bool(inner.__doc__)


def signature(thing: Any) -> str:
    """Return how something is called, without types, private parameters and `self`."""
    if getattr(thing, "_is_protocol", False):
        return ""
    given = inspect.signature(thing)
    kept = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in given.parameters.values()
        if each.name not in ("self", "cls") and not each.name.startswith("_")
    ]
    return str(given.replace(parameters=kept, return_annotation=inspect.Signature.empty))


def first_line(thing: Any) -> str:
    """Return the first paragraph of a docstring, as one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
