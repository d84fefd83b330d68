"""Every flag that a message or a help text names is taken by the real parser, with the value that stands behind it.

What follows the name of a command is a flag of that command; any other is a flag of at least one.
"""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from vq_prior.cli import COMMANDS, main
from vq_prior.cli.parsing import _settings_by_flag, parse
from vq_prior.core.errors import UsageError
from vq_prior.core.settings import Setting, settings_in

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("vq_prior", "stage1_vqvae", "stage2_prior")
OF_ALL = {"--help": None, "--version": None, "--debug": None, "--config": "FILE", "--recipe": "cifar10"}
OF_ALL |= {"--num-processes": "2", "--flag": None}  # --flag stands for any
OF_OTHERS = {"--module"}  # Accelerate's
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z][\w-]*)*")
MODEL, OUT, DATA, CODEC = (["--model", "M"], ["--out", "O"], ["--data", "D"], ["--codec", "C"])
NEEDED = {
    "train": DATA,
    "check-data": ["DATA"],
    "train-vqvae": DATA + OUT,
    "extract-codes": CODEC + DATA + OUT,
    "train-prior": OUT,
    "assemble": [*CODEC, "--prior", "P", *OUT],
    "generate": MODEL + OUT,
    "complete": [*MODEL, "--image", "I", *OUT],
    "score": MODEL + DATA + OUT,
    "reconstruct": CODEC + DATA + OUT,
    "export": CODEC + OUT,
    "resize-codebook": [*CODEC, "--codebook-size", "8", *DATA],
    "evaluate": DATA + OUT,
    "app": MODEL,
    "report": ["RUN"],
    "push": [*MODEL, "--repo-id", "a/b"],
    "pull": ["a/b", *OUT],
    "push-codes": ["C", "--repo-id", "a/b"],
    "verify": ["P"],
    "fingerprint": ["P"],
}
AMBIGUOUS = ("train", "app", "score", "report", "complete", "evaluate", "doctor", "verify", "env")  # words of any text


def settings_of(command: str) -> dict[str, Setting]:
    module, _, attribute = COMMANDS[command].settings.partition(":")
    settings_class = getattr(import_module(module), attribute)
    named = {setting.name: setting for setting in settings_in(settings_class)}
    return {flag: named[name] for flag, name in _settings_by_flag(settings_class)}


SETTINGS = {command: settings_of(command) for command in COMMANDS}


def texts(node: ast.AST) -> Iterator[str]:
    """Every text of a program, help texts too, that is no docstring of a function; `{}` for what is filled in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in child.values]
            yield "".join(map(str, parts))
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif isinstance(node, ast.ClassDef) or not (
            isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        ):
            yield from texts(child)


def messages() -> Iterator[tuple[str, str]]:
    for path in sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")):
        yield from ((path.name, text) for text in texts(ast.parse(path.read_text(encoding="utf-8"))) if "--" in text)


def is_one(value: str, kind: Any) -> bool:
    """Whether a word can be the value of a setting of this kind, as a reader would see it."""
    kinds = [kind, *get_args(kind)] if get_origin(kind) is not Literal else [kind]
    choices = {str(choice) for each in kinds if get_origin(each) is Literal for choice in get_args(each)}
    is_text = not choices and {str, Path}.intersection(kinds)
    return (
        bool(is_text) or value in choices or value.isupper() or re.fullmatch(r"\d[\d.e-]*|\d+x\d+", value) is not None
    )


def example(kind: Any) -> str:
    """A value of this kind."""
    kinds = [kind, *get_args(kind)] if get_origin(kind) is not Literal else [kind]
    choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices:
        return str(choices[0])
    return "True" if bool in kinds else "8" if {int, float, tuple[int, ...]}.intersection(kinds) else "x"


def named_flags(text: str) -> Iterator[tuple[str | None, str, str | None]]:
    """(command, flag, value) of each flag in a message; the value that stands behind it, the command before it."""
    command = None
    for word in re.finditer(r"(?<![\w-])(?:[a-z]+-)?[a-z]+(?![\w-])|" + FLAG.pattern + r"(?: ([\w.{}-]+))?", text):
        if word[0] in COMMANDS and word[0] not in AMBIGUOUS:
            command = word[0]
        elif word[0].startswith("--"):
            flag, _, value = word[0].partition(" ")
            before = text[: word.start()]
            since = before.rpartition(command)[2] if command else ""
            near = command if command and not re.search(r"[.;,:]", since) else None
            several = re.match(r"-?\.?[{*A-Z]", text[word.start() + len(flag) :])  # `--model.*`
            if not several and text != f"{flag}." and "_" not in flag:  # Accelerate's have underscores
                closes = text[word.end() :].startswith(")")
                yield near, flag, (value.rstrip(".") or None) if closes or value[:1].isdigit() else None


def found() -> dict[str, list[list[str]]]:
    """The words of each flag that messages name, by a command that has it."""
    words: dict[str, list[list[str]]] = {command: [] for command in COMMANDS}
    for path, text in messages():
        for command, flag, value in named_flags(text):
            if flag in OF_ALL or flag in OF_OTHERS:
                continue
            has = [name for name in ([command] if command else COMMANDS) if flag in SETTINGS[name]]
            assert has, f"{path}: {flag} is a flag of {command or 'no command'}: {text!r}"
            fits = [name for name in has if value is None or is_one(value, SETTINGS[name][flag].kind)]
            assert fits, f"{path}: {value} is no value of {flag}: {text!r}"
            kind = SETTINGS[fits[0]][flag].kind
            given = [] if kind is bool else [value if value and not value.isupper() else example(kind)]
            if [flag, *given] not in words[fits[0]]:
                words[fits[0]].append([flag, *given])
    return words


FOUND = found()


def test_there_are_messages_with_flags():
    assert sum(map(len, FOUND.values())) > 60
    assert ["--gradient-accumulation-steps", "8"] in FOUND["train-vqvae"]


@pytest.mark.parametrize("command", [command for command, words in FOUND.items() if words])
def test_the_parser_takes_what_messages_name(command):
    left = list(FOUND[command])
    while left:  # a flag with several values, once each
        turn = {words[0]: words for words in left}
        left = [words for words in left if turn[words[0]] is not words]
        given = list(NEEDED.get(command, []))
        for flag, words in turn.items():
            while flag in given:
                del given[given.index(flag) : given.index(flag) + 2]
            given += words
        parse([command, *given])


def test_a_flag_that_no_command_has_would_be_found():
    assert (
        list(named_flags("train longer (train-vqvae --step 5) or --nothing"))
        == [
            ("train-vqvae", "--step", "5"),
            (None, "--nothing", None),
        ]
        or "--step" not in SETTINGS["train-vqvae"]
    )
    with pytest.raises(UsageError, match="unknown flag --step "):
        parse(["train-vqvae", "--step", "5"])
    assert not is_one("kmean", SETTINGS["train-vqvae"]["--quantizer.start"].kind)
    assert main(["train-vqvae", "--nothing"]) == 2
