"""An optional package that is there and cannot be imported: left alone, or named with what it does not fit."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module, invalidate_caches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from vq_prior.cli import _explain
from vq_prior.core.processes.packages import broken, leave_out_if_broken

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package of one module beside the installed ones, for this test."""
    folder = tmp_path / "site-packages"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)

    def add(name: str, code: str, *, called: str = "", needs: str = "", bare: bool = False) -> None:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code)
        if not bare:
            facts = folder / f"{(called or name).replace('-', '_')}-9.8.7.dist-info"
            facts.mkdir()
            requires = f"Requires-Dist: {needs}\n" if needs else ""
            (facts / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {called or name}\nVersion: 9.8.7\n{requires}"
            )
            (facts / "top_level.txt").write_text(name + "\n")
        invalidate_caches()

    yield add
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {path.name for path in folder.glob("*")} or sys.modules[name] is None:
            del sys.modules[name]


TORCH, NUMPY = f"torch {version('torch')}", f"numpy {version('numpy')}"
NMS = 'raise RuntimeError("operator visual::nms does not exist")'

# what is installed, the name that is imported, and what the line says
BROKEN = {
    "made for another torch": (
        [{"name": "visual", "code": NMS, "needs": "torch==2.12.0"}],
        "visual",
        ["visual 9.8.7", f"beside {TORCH}", "operator visual::nms", "pip uninstall visual"],
    ),
    "a library of the system is missing": (
        [{"name": "torchear", "code": 'raise OSError("libcudart.so.13: cannot open shared object file")'}],
        "torchear",
        ["torchear 9.8.7", f"beside {TORCH}", "libcudart.so.13", "pip uninstall torchear"],
    ),
    "made for another numpy, under another name": (
        [{"name": "skl", "called": "sci-kit", "code": 'raise ValueError("numpy.dtype size changed, may indicate")'}],
        "skl",
        ["sci-kit 9.8.7", f"beside {NUMPY}", "pip uninstall sci-kit"],
    ),
    "an undefined symbol": (
        [{"name": "kernels1", "code": 'raise ImportError("undefined symbol: _ZN3c10")'}],
        "kernels1",
        ["kernels1 9.8.7", f"beside Python {sys.version.split()[0]}", "undefined symbol"],
    ),
    "one that another imports": (
        [{"name": "asks", "code": "import inner"}, {"name": "inner", "code": "1 / 0"}],
        "asks",
        ["inner 9.8.7", "beside asks 9.8.7", "ZeroDivisionError"],
    ),
    "one that lacks what it needs": (
        [{"name": "lacks", "code": "import nowhere_to_be_found"}],
        "lacks",
        ["lacks 9.8.7", "No module named 'nowhere_to_be_found'"],
    ),
    "one that names no version": (
        [{"name": "copied", "code": "import copied.nothing", "bare": True}],
        "copied",
        ["copied (which tells no version)", "pip uninstall copied"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_line_names_both_packages_and_the_way_out(install: Install, name: str) -> None:
    packages, asked, words = BROKEN[name]
    for package in packages:
        install(**package)
    caught: Exception
    try:
        try:
            import_module(asked)
        except Exception as error:  # as the lazy modules of transformers word it
            raise ModuleNotFoundError(f"Could not import module 'Class' of {asked}") from error
    except ModuleNotFoundError as error:
        caught = error
    line, code = _explain(caught, None, "generate")
    assert code == 5
    assert [word for word in words if word not in line] == []
    assert len(line.splitlines()) == 1


def raised(code: str) -> Exception:
    try:
        exec(compile(code, "<typed>", "exec"), {"json": json, "import_module": import_module})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    import nowhere_to_be_found\nf()",
        "def f():\n    json.loads('{')\nf()",
        "def f():\n    import_module('nowhere_to_be_found')\nf()",
        "def f():\n    raise OSError(28, 'No space left on device', '/x')\nf()",
    ],
)
def test_what_is_absent_or_fails_at_work_is_no_broken_package(code: str) -> None:
    assert broken(raised(code)) is None


def test_torchvision_is_left_out_where_it_is_broken_and_only_there(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    install("torchvision", "from torchvision import inner", called="torchvision", needs="torch")
    leave_out_if_broken()
    assert sys.modules["torchvision"] is None
    assert find_spec("torchvision") is None
    monkeypatch.delitem(sys.modules, "torchvision")
    Path(sys.path[0], "torchvision", "inner.py").write_text("")
    invalidate_caches()
    leave_out_if_broken()
    assert sys.modules["torchvision"].inner is not None


COMMAND = """
import sys
from vq_prior.cli import main
code = main()
looked = "torchvision" in sys.modules and sys.modules["torchvision"] is not None
from stage1_vqvae.modalities.pictures.quality import perceptual_distance
try:
    perceptual_distance("alex")
except Exception as error:
    print(f"{code} {looked} {type(error).__name__} {error.exit_code}: {error}")
"""


def test_a_command_does_not_look_at_a_torchvision_that_it_does_not_need(
    install: Install, tiny_model: Path, child_environment: Callable[..., dict[str, str]]
) -> None:
    install("torchvision", 'raise RuntimeError("operator torchvision::nms does not exist")', needs="torch==2.12.0")
    path = f"{sys.path[0]}:{Path(__file__).parents[3]}"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "verify", str(tiny_model)],
        env=child_environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        "0 False EnvironmentFault 5: torchvision 9.8.7 is installed and cannot be imported beside torch "
    )
    assert "pip uninstall torchvision" in last
