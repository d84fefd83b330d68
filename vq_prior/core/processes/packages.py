"""Packages that are installed and cannot be imported: left alone where nothing needs them, named where something does.

Other libraries look at whatever is there: transformers imports torchvision before it gives its simplest model, so one
that was made for another torch stops everything.
"""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from vq_prior.core.errors import EnvironmentFault, in_one_line

LOOKED_AT = "torchvision"  # by transformers, for image processors that we do not use
OURS = ("vq_prior", "stage1_vqvae", "stage2_prior")


def leave_out() -> None:
    """Hide torchvision from this process, unless it was imported already; `bring_in` undoes it."""
    sys.modules.setdefault(LOOKED_AT, None)  # type: ignore[arg-type]


def bring_in() -> None:
    """Undo `leave_out`, for code that needs torchvision."""
    if LOOKED_AT in sys.modules and sys.modules[LOOKED_AT] is None:
        del sys.modules[LOOKED_AT]


def leave_out_if_broken() -> None:
    """Leave torchvision out if it is installed and cannot be imported: then transformers can be.

    For processes that are not ours, where others may want a torchvision that works.
    """
    if LOOKED_AT in sys.modules or find_spec(LOOKED_AT) is None:
        return
    try:
        import_module(LOOKED_AT)
    except Exception:  # whatever a library of another build raises
        for name in [name for name in sys.modules if name.partition(".")[0] == LOOKED_AT]:
            del sys.modules[name]
        leave_out()
        known = sys.modules.get("transformers.utils.import_utils")
        for name in ("is_torchvision_available", "is_torchvision_v2_available"):
            forget = getattr(getattr(known, name, None), "cache_clear", None)
            if forget is not None:
                forget()


def broken(error: BaseException) -> EnvironmentFault | None:
    """Return an error that names the installed package that cannot be imported, if one is the cause of `error`; else
    None.
    """
    for cause in _causes(error):
        packages = [_package_of(path) for path in _modules_being_imported(cause.__traceback__)]
        if not packages or packages[-1] is None:
            continue  # it was no import, or one of ours
        name, said = _distribution(packages[-1]), in_one_line(cause)
        cure = f"install a {name} that was made for it"
        if _plain(name) not in _needs("vq-prior"):
            cure += f", or `pip uninstall {name}`"
        return EnvironmentFault(
            f"{_with_version(name)} is installed and cannot be imported beside {_partner(name, packages, said)} "
            f"({type(cause).__name__}: {said[:120]}); {cure}"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what an error was raised from, the first cause first, and the error itself last."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    yield from reversed(chain)


def _modules_being_imported(trace: TracebackType | None) -> Iterator[Path]:
    """Yield the files of the modules that were being imported when an error came, the innermost last."""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == "<module>":
            yield Path(code.co_filename)
        trace = trace.tb_next


def _package_of(path: Path) -> str | None:
    """Return the package that a module's file belongs to; None for ours and Python's."""
    for folder in map(Path, sys.path):
        if path.is_absolute() and path.is_relative_to(folder):
            name = path.relative_to(folder).parts[0].partition(".")[0]
            if name not in ("site-packages", "dist-packages"):  # below a folder of Python's own modules
                return None if name in OURS or name in sys.stdlib_module_names else name
    return None


def _partner(name: str, packages: list[str | None], said: str) -> str:
    """Return the package, with its version, that a broken one does not fit: torch, numpy, or the importing one."""
    candidates = ["torch"] if "torch" in _needs(name) or _plain(name).startswith("torch") else []
    candidates += ["numpy"] if "numpy" in said else []
    candidates += [_distribution(other) for other in reversed(packages) if other is not None]
    others = [other for other in candidates if other != name]
    return _with_version(others[0]) if others else f"Python {sys.version.split()[0]}"


def _distribution(package: str) -> str:
    """Return what a package is called where it is installed from, such as scikit-learn for sklearn."""
    return (packages_distributions().get(package) or [package])[0]


def _with_version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        stated = getattr(sys.modules.get(name), "__version__", None)
        return f"{name} {stated}" if stated else f"{name} (which tells no version)"


def _needs(name: str) -> set[str]:
    """Return the names of the packages that an installed one cannot do without."""
    try:
        lines = [line for line in requires(name) or () if "extra ==" not in line]
    except PackageNotFoundError:
        return set()
    return {_plain(match[0]) for match in (re.match(r"[\w.-]+", line) for line in lines) if match}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
