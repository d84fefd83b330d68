"""From the words after `vq-prior` to a command and its settings, and what is wrong with them in one line."""

import contextlib
import io
import os
import re
import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from vq_prior.cli.invocation import COMMANDS, Invocation
from vq_prior.core.errors import UsageError
from vq_prior.core.settings import Formerly, Unsaid, changed_names, note_given, settings_in


def usage() -> str:
    """Return the text of `vq-prior --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vq-prior COMMAND [--flag VALUE ...]",
            "",
            "Two-stage image generation: a VQ-VAE, its codes on disk, and an autoregressive prior over them.",
            "",
            *lines,
            "",
            "With every command: --help, --debug (tracebacks). With the trainings: --config FILE (settings of a former",
            "run), --recipe NAME. With the trainings, extract-codes, generate and complete:",
            "--num-processes N.",
            "`vq-prior --version` prints the version. Start with: vq-prior quickstart",
        ]
    )


def parse(argv: Sequence[str]) -> Invocation:
    """Return the command and settings of the words after `vq-prior`.

    Raises:
        UsageError: On an unknown command, flag or value.
        SystemExit: With code 0 after `--help` printed a command's help.
    """
    words = list(argv)
    debug = _take_flag(words, "--debug")
    if not words:
        raise UsageError(f"no command given; choose one of {', '.join(COMMANDS)}")
    name = words.pop(0)
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown command {name!r}; choose one of {', '.join(COMMANDS)}{hint}")
    num_processes = _take_value(words, "--num-processes")
    processes = None if num_processes is None else _count(num_processes)
    if processes not in (None, 1) and not COMMANDS[name].parallel:
        able = ", ".join(other for other, command in COMMANDS.items() if command.parallel)
        raise UsageError(f"{name} runs in one process; --num-processes goes with {able}")
    shared = list(words)
    config, recipe = _take_value(words, "--config"), _take_value(words, "--recipe")
    module, _, attribute = COMMANDS[name].settings.partition(":")
    settings_class = getattr(import_module(module), attribute)
    default = _starting_point(name, settings_class, config, recipe, words)
    return Invocation(name, _parse_settings(name, settings_class, default, words), shared, processes, debug)


def _take_flag(words: list[str], flag: str) -> bool:
    present = flag in words
    while flag in words:
        words.remove(flag)
    return present


def _take_value(words: list[str], flag: str) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from the words and return the value."""
    for position, word in enumerate(words):
        if word == flag:
            if position + 1 == len(words):
                raise UsageError(f"{flag} needs a value")
            value = words[position + 1]
            del words[position : position + 2]
            return value
        if word.startswith(flag + "="):
            del words[position]
            return word.removeprefix(flag + "=")
    return None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise UsageError(f"--num-processes must be between 1 and 1024, got {text}")
    return int(text)


def _starting_point(
    name: str, settings_class: type, config: str | None, recipe: str | None, words: Sequence[str]
) -> Any | None:
    """Return the settings that flags then override: of a recipe, of an earlier run's config, or None."""
    if config is not None and recipe is not None:
        raise UsageError("--config and --recipe exclude each other; give one of them")
    if recipe is not None:
        from vq_prior.cli.recipes import find_recipe

        return find_recipe(name, recipe)
    if config is None or "--help" in words or "-h" in words:
        return None
    from vq_prior.core.config import from_json
    from vq_prior.core.training.runs import read_run_config

    saved = read_run_config(Path(config))
    if saved.command != name:
        raise UsageError(f"{config} holds the settings of {saved.command}, not of {name}")
    return from_json(settings_class, saved.settings, f"{config}: settings")


def flags_of(settings_class: type) -> Iterator[str]:
    """Yield every flag of a settings class."""
    return (flag for flag, _ in _settings_by_flag(settings_class))


def _settings_by_flag(settings_class: type) -> Iterator[tuple[str, str]]:
    """Yield every flag of a settings class and the dotted name of its setting."""
    for setting in settings_in(settings_class):
        if setting.is_positional or ((unsaid := setting.mark(Unsaid)) and not unsaid.flag):
            continue
        for flag in (setting.flag, *setting.aliases):
            yield flag, setting.name
        if setting.kind is bool:
            start, dot, last = setting.flag.removeprefix("--").rpartition(".")
            yield f"--{start}{dot}no-{last}", setting.name


def _renamed(settings_class: type, words: Sequence[str]) -> list[str]:
    """Return the words of a command line, flags that were renamed under their present names."""
    today = {
        f"--{former.flag}": setting.flag
        for setting in settings_in(settings_class)
        if (former := setting.mark(Formerly))
    }
    renamed = []
    for word in words:
        flag, equals, value = word.partition("=")
        renamed.append(today.get(flag.replace("_", "-"), flag) + equals + value)
    return renamed


def _check_flags(name: str, settings_class: type, words: Sequence[str]) -> None:
    known = ["--help", *flags_of(settings_class)]
    typed = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for setting in settings_in(settings_class):
        # The parser would keep the last list alone.
        if typing.get_origin(setting.kind) is tuple and typed.count(setting.flag) > 1:
            raise UsageError(
                f"{setting.flag} is given {typed.count(setting.flag)} times; give all its values after one"
            )
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and flag not in known:
            close = get_close_matches(flag, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"unknown flag {flag} of {name}{hint} (`vq-prior {name} --help` lists every flag)")


def _parse_settings(name: str, settings_class: type, default: Any | None, words: list[str]) -> Any:
    import tyro

    from vq_prior.cli.kinds import gathered, spread, with_flags_of_kinds

    own_class, settings_class = settings_class, with_flags_of_kinds(settings_class)
    default = None if default is None else spread(default, settings_class)
    words = _renamed(settings_class, words)
    _check_flags(name, settings_class, words)
    errors = io.StringIO()
    os.environ["COLUMNS"] = os.environ.get("COLUMNS", "100")
    try:
        with contextlib.redirect_stderr(errors):
            starting_point = tyro.MISSING_NONPROP if default is None else default
            settings = tyro.cli(settings_class, prog=f"vq-prior {name}", args=words, default=starting_point)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(errors.getvalue(), name)) from None
    settings_of = dict(_settings_by_flag(settings_class))
    flags = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    typed = {settings_of[flag] for flag in flags if flag in settings_of}
    given = typed | (set() if default is None else changed_names(default))
    return note_given(*gathered(settings, own_class, given))


def _one_line(box: str, name: str) -> str:
    """Return what the parser's error box says, as one sentence."""
    lines = [line.strip("│╭╮╰╯─- ") if "──" in line else line.strip("│ ") for line in box.splitlines()]
    text = " ".join(line for line in lines if line.strip("-"))
    text = re.sub(r" (Argument helptext|For full helptext|Perhaps you meant).*", "", re.sub(r"\s+", " ", text))
    more = f"(`vq-prior {name} --help` lists every flag)"
    if unfit := re.search(r"Error parsing (--\S+?): no type matching (\S+) could be instantiated from \[(.*?)\]", text):
        flag, kinds, value = unfit.groups()
        names = {"INT": "an integer", "FLOAT": "a number"}
        return f"{flag} must be {names.get(kinds.rpartition('|')[2], kinds)}, got {value} {more}"
    if unfit := re.search(r"Error parsing (--\S+?): invalid literal for int\(\) with base 10: (.*)", text):
        return f"{unfit[1]} must be an integer, got {unfit[2]} {more}"
    if unfit := re.search(r"Error parsing (--\S+?): could not convert string to float: (.*)", text):
        return f"{unfit[1]} must be a number, got {unfit[2]} {more}"
    if unfit := re.search(r"nvalid choice (.*?) for argument '(--\S+)'. Expected one of \((.*?)\)", text):
        return f"{unfit[2]} must be one of {unfit[3].rstrip(',')}, got {unfit[1]} {more}"
    if text.startswith("Required options"):
        missing = re.findall(r"(--[\w.-]+) [A-Z{\[]", text) or re.findall(rf"{name}: ([A-Z]+)", text)
        return f"missing {', '.join(missing)} {more}"
    text = re.sub(r"^(Unrecognized options|Missing argument|Value error|Invalid choice) (?=[A-Za-z])", "", text)
    return f"{text[:1].lower()}{text[1:].rstrip('.')} {more}"
