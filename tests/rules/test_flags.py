"""Every flag of every command stands in flags.txt, so that a new one is a decision and none goes by accident.

`python tests/rules/test_flags.py` writes the list anew.
"""

from importlib import import_module
from pathlib import Path

from vq_prior.cli import COMMANDS
from vq_prior.cli.parsing import flags_of

LIST = Path(__file__).with_name("flags.txt")


def flags() -> list[str]:
    """A line for each flag, in the order of the commands and of their settings."""
    lines = []
    for name, command in COMMANDS.items():
        module, _, attribute = command.settings.partition(":")
        lines += [f"{name} {flag}" for flag in flags_of(getattr(import_module(module), attribute))]
    return lines


def test_flags_are_those_that_are_listed():
    assert sorted(flags()) == sorted(LIST.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    LIST.write_text("\n".join(flags()) + "\n", encoding="utf-8")
