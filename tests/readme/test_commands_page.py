"""docs/commands.md says what the parser takes, and a message names no flag that does not exist."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from vq_prior.cli import COMMANDS
from vq_prior.cli.parsing import flags_of
from vq_prior.core import errors

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("vq_prior", "stage1_vqvae", "stage2_prior")
PAGE = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
OF_EVERY_COMMAND = {"--help", "--version", "--debug", "--config", "--recipe", "--num-processes"}
FLAG = re.compile(
    r"(?<![\w-])--[a-z][\w-]*+(?:\.[a-z][\w-]*+)*+(?!\.?[*A-Z])"
)  # not `--model.*`, which stands for several


def flags_of_command(name: str) -> set[str]:
    module, _, attribute = COMMANDS[name].settings.partition(":")
    return {*flags_of(getattr(import_module(module), attribute))} | OF_EVERY_COMMAND


ALL_FLAGS = set().union(*map(flags_of_command, COMMANDS))


def rows() -> list[tuple[str, str]]:
    """(command, row) of the table of commands."""
    return re.findall(r"^\| `([a-z-]+)(.*)\|$", PAGE.partition("## Exit codes")[0], re.MULTILINE)


def test_the_table_has_every_command_and_no_other():
    assert {command for command, _ in rows()} == COMMANDS.keys()


@pytest.mark.parametrize(("command", "row"), rows(), ids=[f"{n}-{command}" for n, (command, _) in enumerate(rows())])
def test_a_row_names_flags_of_its_command(command, row):
    assert {flag for flag in FLAG.findall(row) if flag not in flags_of_command(command)} == set()


def test_the_rest_of_the_page_and_the_guides_name_flags_that_exist():
    ours = ["commands", "custom-data", "drawing", "fine-tuning", "judging", "long-runs", "one-half", "share"]
    pages = {"README.md": REPOSITORY / "README.md"} | {name: REPOSITORY / "docs" / f"{name}.md" for name in ours}
    of_others = {"--digits", "--outtype"}  # scripts/benchmarks/fine_tuning.py, the converter of llama.cpp
    wrong = {
        (name, flag)
        for name, path in pages.items()
        for flag in FLAG.findall(path.read_text(encoding="utf-8"))
        if flag not in ALL_FLAGS | of_others
    }
    assert wrong == set()


def messages(tree: ast.AST) -> Iterator[str]:
    """Every string that is no docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_no_message_names_a_flag_that_no_command_has():
    wrong = []
    for path in (path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")):
        for text in messages(ast.parse(path.read_text(encoding="utf-8"))):
            # Those with an underscore, and --module, are Accelerate's; "--quantizer.{name}" and the like end in what is
            # filled in; --flag stands for any.
            flags = [flag for flag in FLAG.findall(text) if "_" not in flag and not text.endswith(f"{flag}.")]
            wrong += [(path.name, flag) for flag in flags if flag not in ALL_FLAGS | {"--flag", "--module"}]
    assert wrong == []


def test_exit_codes_are_those_of_the_errors():
    table = PAGE.partition("## Exit codes")[2].partition("## ")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert told == raised - {errors.VQPriorError.exit_code} | {0}
