"""The command line: which command, its settings, and errors in one line.

Nothing here imports torch or transformers; a command's code is imported when it runs.
"""

import contextlib
import dataclasses
import errno
import io
import os
import re
import shutil
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from vq_prior import __version__
from vq_prior.core.errors import LOST, EnvironmentFault, Stopped, UsageError, VQPriorError, tell
from vq_prior.core.processes.interruption import STOPPED, Interruption, hear_signals, ignore_signals
from vq_prior.core.settings import changed_names, note_given


@dataclass(frozen=True)
class Command:
    """One command: where its settings live (`module:name`), what it does, and whether it shares the work among
    processes. Its code is the function of its name in `commands.py`."""

    settings: str
    summary: str
    parallel: bool = False


COMMANDS = {
    "quickstart": Command(
        "vq_prior.settings:Quickstart",
        "train both stages on digits, draw samples",
    ),
    "check-data": Command(
        "stage1_vqvae.settings:CheckData",
        "find every bad image before a training does",
    ),
    "train-vqvae": Command("stage1_vqvae.settings:TrainVQVAE", "images -> codec (RUN/vqvae)", True),
    "extract-codes": Command(
        "stage1_vqvae.settings:ExtractCodes",
        "codec and images -> code store",
        True,
    ),
    "train-prior": Command("stage2_prior.settings:TrainPrior", "code store -> prior (RUN/prior)", True),
    "assemble": Command("vq_prior.settings:Assemble", "codec and prior -> MODEL"),
    "generate": Command("vq_prior.settings:Generate", "MODEL -> new images", True),
    "complete": Command("vq_prior.settings:Complete", "MODEL and a picture's top -> images", True),
    "score": Command("vq_prior.settings:Score", "MODEL and images -> likelihood of each", True),
    "reconstruct": Command("stage1_vqvae.settings:Reconstruct", "images -> codec -> images"),
    "resize-codebook": Command(
        "stage1_vqvae.resize_settings:ResizeCodebook",
        "codec -> codec with fewer or more codes",
    ),
    "evaluate": Command("vq_prior.settings:Evaluate", "measure a codec or a MODEL"),
    "doctor": Command("vq_prior.settings:Doctor", "say what is wrong and what to do"),
    "app": Command("vq_prior.settings:App", "MODEL -> a page in the browser"),
    "report": Command("vq_prior.settings:Report", "RUN -> one page of what it learnt"),
    "push": Command("vq_prior.settings:Push", "MODEL -> Hugging Face Hub"),
    "pull": Command("vq_prior.settings:Pull", "Hugging Face Hub -> MODEL"),
    "push-codes": Command("vq_prior.settings:PushCodes", "code store -> Hub data set"),
    "verify": Command("vq_prior.settings:Verify", "check every byte of an artefact"),
    "fingerprint": Command("vq_prior.settings:Fingerprint", "one hash of what an artefact is"),
    "env": Command("vq_prior.settings:Env", "print versions and devices"),
}


@dataclass
class Invocation:
    """A parsed command line.

    Attributes:
        command: Name of the command.
        settings: Its dataclass of settings.
        words: The words after the command, without `--num-processes`.
        num_processes: Processes to start; None runs in this one.
        debug: Whether errors show their traceback.
    """

    command: str
    settings: Any
    words: list[str] = field(default_factory=list)
    num_processes: int | None = None
    debug: bool = False


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


def _flags_of(settings_class: type) -> Iterator[str]:
    """Yield every flag of a settings class."""
    return (flag for flag, _ in _settings_by_flag(settings_class))


def _settings_by_flag(settings_class: type, prefix: str = "--", path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every flag of a settings class and the dotted name of its setting."""
    kinds, hints = (typing.get_type_hints(settings_class, include_extras=extras) for extras in (False, True))
    for setting in dataclasses.fields(settings_class):
        kind = kinds[setting.name]
        # A flag whose name is a word of Python (--from) has another name than its setting: tyro.conf.arg(name=...).
        marks = getattr(hints[setting.name], "__metadata__", ())
        named = [mark.name for mark in marks if getattr(mark, "name", None)]
        flag = (named or [setting.name])[0].replace("_", "-")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _settings_by_flag(kind, f"{prefix}{flag}.", f"{path}{setting.name}.")
        else:
            yield prefix + flag, path + setting.name
            if kind is bool:
                yield f"{prefix}no-{flag}", path + setting.name


def _check_flags(name: str, settings_class: type, words: Sequence[str]) -> None:
    known = ["--help", *_flags_of(settings_class)]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and flag not in known:
            close = get_close_matches(flag, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"unknown flag {flag} of {name}{hint} (`vq-prior {name} --help` lists every flag)")


def _parse_settings(name: str, settings_class: type, default: Any | None, words: list[str]) -> Any:
    import tyro

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
    return note_given(settings, typed | (set() if default is None else changed_names(default)))


def _one_line(box: str, name: str) -> str:
    """Return what the parser's error box says, as one sentence."""
    lines = [line.strip("│╭╮╰╯─- ") if "──" in line else line.strip("│ ") for line in box.splitlines()]
    text = " ".join(line for line in lines if line.strip("-"))
    text = re.sub(r" (Argument helptext|For full helptext|Perhaps you meant).*", "", re.sub(r"\s+", " ", text))
    more = f"(`vq-prior {name} --help` lists every flag)"
    if unfit := re.search(r"Error parsing (--\S+?): no type matching (\S+) could be instantiated from \[(.*?)\]", text):
        flag, kinds, given = unfit.groups()
        names = {"INT": "an integer", "FLOAT": "a number"}
        return f"{flag} must be {names.get(kinds.rpartition('|')[2], kinds)}, got {given} {more}"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `vq_prior.core.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if words in (["--version"], ["-V"]):
        print(f"vq-prior {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if words else 2
    interruption, stderr = Interruption(), sys.stderr
    try:
        try:
            hear_signals(interruption)
            code = _run(words, debug)
            interruption.is_too_late = True
        except Exception as error:
            interruption.is_too_late = True
            code = _fail(*_explain(error, interruption.told), debug)
    except KeyboardInterrupt as error:  # before anything was told
        interruption.is_too_late = True
        sys.stderr = stderr  # it can come where a block has ended that turned it elsewhere and has not turned it back
        code = _fail(str(error) or STOPPED, Stopped.exit_code, debug)
    if argv is None:
        ignore_signals()
    if "torch" in sys.modules:
        from vq_prior.core.processes.runtime import leave_runtime

        leave_runtime(code)
    return code


def _run(words: list[str], debug: bool) -> int:
    _quiet_libraries(debug)
    try:
        invocation = parse(words)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes out at the end
        return 0
    if invocation.num_processes not in (None, 1) and "WORLD_SIZE" not in os.environ:
        from vq_prior.cli.launch import launch

        return launch(invocation)
    commands = import_module("vq_prior.cli.commands")
    getattr(commands, invocation.command.replace("-", "_"))(invocation.settings)
    return 0


def _explain(error: Exception, interrupted: str | None) -> tuple[str, int]:
    """Return the one line and the exit code of what ended a command.

    Args:
        error: It.
        interrupted: What a signal said that came before; libraries make errors of their own of its exception.
    """
    if interrupted and not isinstance(error, Stopped):
        return interrupted, Stopped.exit_code
    if isinstance(error, VQPriorError):
        return str(error), error.exit_code
    if isinstance(error, BrokenPipeError):
        return STOPPED, Stopped.exit_code
    if isinstance(error, OSError):
        return _describe_os_error(error), EnvironmentFault.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; lower --batch-size", EnvironmentFault.exit_code
    text = re.sub(r"\s+", " ", str(error)).strip()[:300]
    if ("torch" in type(error).__module__ and "Dist" in type(error).__name__) or "gloo" in text:
        return f"{LOST}; run the same command to continue", EnvironmentFault.exit_code
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)", 1


def _describe_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = ""
        with contextlib.suppress(OSError, TypeError, ValueError):
            free = f" ({shutil.disk_usage(Path(error.filename).parent).free} bytes are free)"
        return f"{where}the disk is full{free}; free some space and run the same command to continue"
    return f"{where}{error.strerror or error}"


def _quiet_libraries(debug: bool) -> None:
    """Keep what libraries warn of off the terminal unless --debug asks for it; a training run logs it to a file."""
    import logging

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    if not debug:
        # What is an error to a command is raised; gloo would tell of each peer that ends before it could join.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        logging.captureWarnings(True)
        logging.getLogger().addHandler(logging.NullHandler())


def _fail(message: str, exit_code: int, debug: bool) -> int:
    """Print the one line, or hand it to the launcher, and return the exit code."""
    line = "error: " + re.sub(r"\s*\n\s*", " ", message).strip()
    if debug:
        import traceback

        traceback.print_exc()
    tell(line, exit_code, aloud=os.environ.get("RANK", "0") == "0")
    if "WORLD_SIZE" in os.environ and "torch" in sys.modules:
        # The others may still wait for this process; taking the group apart here could wait for them.
        sys.stdout.flush()
        os._exit(exit_code)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
