"""What people call stays callable as it was: the public methods and their parameters stand in signatures.txt.

A line may gain parameters that can be left out; `python tests/rules/test_signatures.py` writes the list anew.
"""

import inspect
from pathlib import Path

import pytest

import vq_prior

LIST = Path(__file__).with_name("signatures.txt")
OURS = ("vq_prior", "stage1_vqvae", "stage2_prior")
MARKS = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def parameters(function: object) -> list[str]:
    """`name` or `name=default` of each parameter; `*` before one that goes by name alone."""
    shown = []
    for each in inspect.signature(function).parameters.values():
        if each.name == "self" or each.name.startswith("_"):
            continue
        default = "" if each.default is inspect.Parameter.empty else f"={each.default}"
        shown.append(f"{MARKS.get(each.kind, '')}{each.name}{default}")
    return shown


def signatures() -> dict[str, list[str]]:
    """The parameters of each public class of ours and of each of its public methods."""
    found = {}
    for name in sorted(set(vq_prior.__all__) - {"__version__", "Codec"}):
        public = getattr(vq_prior, name)
        ours = [parent for parent in public.__mro__ if parent.__module__.split(".")[0] in OURS]
        methods = {each for parent in ours for each in vars(parent) if not each.startswith("_") or each == "__call__"}
        found[name] = parameters(public)
        for method in sorted(methods):
            function = getattr(public, method)
            if callable(function) and not inspect.isclass(function):
                found[f"{name}.{method}"] = parameters(function)
    return found


LISTED = dict(line.split(": ") for line in LIST.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", LISTED)
def test_a_public_call_goes_on_working(name):
    was, now = [each for each in LISTED[name].split(", ") if each], signatures()[name]
    by_place = [each for each in was if not each.startswith("*")]
    assert now[: len(by_place)] == by_place
    assert set(was) <= set(now)
    assert all("=" in each or each.startswith("**") for each in set(now) - set(was)), "a new parameter has a default"


if __name__ == "__main__":
    LIST.write_text("".join(f"{name}: {', '.join(shown)}\n" for name, shown in signatures().items()), encoding="utf-8")
