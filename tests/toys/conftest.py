"""The toys as an installed package, and the real command line that finds them.

Installing is copying: the package and a `*.dist-info` with the entry points of its `pyproject.toml` are all that
`importlib.metadata` looks at, and need no network.
"""

import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from warm import BRIEFLY, Warm

HERE = Path(__file__).resolve().parent

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def install(target: Path) -> None:
    """Put the package of toys into a folder as an installer would."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    shutil.copytree(HERE / "vq_prior_toys", target / "vq_prior_toys", ignore=shutil.ignore_patterns("__pycache__"))
    described = target / f"vq_prior_toys-{project['version']}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{name} = {home}" for name, home in entries.items())]
    (described / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def toys_installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the toys are installed in."""
    target = tmp_path_factory.mktemp("site-packages")
    install(target)
    return target


@pytest.fixture(scope="session")
def toy_warm(
    toys_installed: Path,
    child_environment: Callable[..., dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Warm]:
    """A process that forks for each command, as `warm`, where the toys are installed."""
    environment = child_environment(PYTHONPATH=str(toys_installed))
    with Warm(environment, tmp_path_factory.mktemp("warm-toys"), BRIEFLY) as process:
        yield process


@pytest.fixture(scope="session")
def toy_cli(toy_warm: Warm) -> RunCli:
    """Run `vq-prior ARGS` where the toys are installed, its processes too, and expect it to succeed.

    `toy_cli("generate", "--model", path, ..., code=0)`; `code` is the exit code expected.
    """

    def run(
        *words: object, code: int = 0, cwd: Path | None = None, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        environment = toy_warm.environment | {"PYTHON_EXEC": str(toy_warm.python())}
        done = toy_warm.run(words, environment, cwd=cwd, timeout=timeout)
        assert done.returncode == code, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def toy_cli_killed(toy_warm: Warm) -> Callable[..., None]:
    """Start a training and kill it as soon as RUN has a checkpoint: `toy_cli_killed(RUN, "train-prior", ...)`."""

    def run(run: Path, *words: object) -> None:
        with (run.parent / f"{run.name}.txt").open("w") as told:
            running = toy_warm.start(words, stdout=told.fileno(), stderr=told.fileno(), cwd=run.parent)
            ends = time.monotonic() + 60
            while not list(run.glob("*-training/checkpoints/step-*")) and time.monotonic() < ends:
                time.sleep(0.005)
            running.kill()
            assert running.wait(30) in (0, -signal.SIGKILL)

    return run


@pytest.fixture
def toys_in_process(toys_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line finds in an environment with the toys, in this process."""
    from stage1_vqvae.quantizers import QUANTIZERS
    from stage2_prior.conditions import CONDITIONS

    monkeypatch.syspath_prepend(toys_installed)
    for registry in (QUANTIZERS, CONDITIONS):
        monkeypatch.setattr(registry, "_installed", None)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
