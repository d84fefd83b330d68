"""What every test shares: one thread, no network, and the real command line."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings
from warm import Warm, same_imports

# Before torch or a Hub library is imported: one thread makes results repeatable, offline makes them honest.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VQ_PRIOR_CACHE": "off",  # what one test reads, another one reads, too
}
os.environ.update(ENVIRONMENT)
if sys.platform != "win32":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and commands leave it so
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
AT_START = dict(os.environ)  # commands that run in this process add to it what quiets libraries

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment for a child: one thread, offline, and outside any launcher."""
    kept = {
        name: value
        for name, value in AT_START.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith(("ACCELERATE_", "VQ_PRIOR_", "TORCHELASTIC_"))
    }
    return kept | ENVIRONMENT | changes


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit the evaluator's embedded network for a moment, not for its 800 steps; commands in this process alone."""
    monkeypatch.setattr("stage1_vqvae.modalities.pictures.classifier.STEPS", 40)
    monkeypatch.setattr("vq_prior.judge.evaluate.STEPS", 40)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that need it are skipped where it is not."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets are not on this machine")
    return folder


@pytest.fixture(scope="session")
def child_environment() -> Callable[..., dict[str, str]]:
    """`clean_environment`, for tests that start processes of their own."""
    return clean_environment


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process with everything imported that forks for each command."""
    with Warm(clean_environment(), tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture(scope="session")
def launched(warm: Warm) -> dict[str, str]:
    """What the environment of a launcher needs for the processes that it starts to fork, too.

    They are no children of the launcher then: not for tests that look for them there.
    """
    return {"PYTHON_EXEC": str(warm.python())}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fault R2`: only the tests of this row of docs/reliability.md, or of this fault."""
    parser.addoption("--fault", help="only the tests that `pytest.mark.fault` gives this name, F1 to F44 or R1 to R16")


# All workers of a run draw the same tests: what they share is the name of the run.
_RUN = int(os.environ.get("PYTEST_XDIST_TESTRUNUID", "0"), 16) or random.SystemRandom().getrandbits(64)
SEED = int(os.environ.get("VQ_PRIOR_FAULT_SEED", "0")) or 1 + _RUN % (10**6 - 1)
IN_FULL = os.environ.get("VQ_PRIOR_FAULTS") == "full"
BEGUN_FIRST = ("test_doctor.py",)  # long files whose names come late


ROWS = tuple(f"R{number}" for number in range(1, 17))  # of docs/reliability.md; a run of all tests has one of each
MOST_CASES = 1  # of one test, in a run of all tests
IN_ORDER = ("test_guides.py",)  # whose cases go on where the one before left off: all are run, or none
ONE_OF_FILES = (  # of these that take minutes, a run of all tests draws one each
    ("readme/test_guides.py", "readme/test_notebook.py", "readme/test_add_a_quantiser.py", "readme/test_space.py"),
    ("judge/test_doctor.py", "judge/test_evaluate.py"),
    ("top/test_benchmarks.py", "top/test_tracking.py", "top/test_app.py"),
    ("hub/test_share.py", "hub/test_faults.py"),
    ("toys/test_two_levels_road.py", "faults/test_level_roads.py"),
    ("end_to_end/test_tuning_road.py", "stage1/foreign/test_foreign.py", "model/test_export.py"),
    ("faults/test_state.py", "faults/test_changes.py"),
    ("distributed/test_lost.py", "faults/test_resume.py", "faults/test_system_calls.py"),
    ("distributed/test_fsdp.py", "distributed/test_launch_files.py", "distributed/test_reproducible.py"),
    ("toys/test_curves.py", "toys/test_condition.py", "toys/test_given_level.py", "toys/test_levels_road.py"),
    ("hub/test_server.py", "hub/test_data_sets.py", "hub/test_hostile.py"),
    ("faults/test_locks.py", "faults/test_names.py", "faults/test_surroundings.py", "faults/test_belonging.py"),
)


def not_drawn(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return what a run of all tests leaves out: of files, tests and cases that are alike, it draws some."""
    left_out: list[pytest.Item] = []
    for files in ONE_OF_FILES:
        there = [name for name in files if any(item.path.as_posix().endswith(f"tests/{name}") for item in items)]
        drawn = random.Random(f"{SEED} {files[0]}").choice(there) if there else ""
        others = tuple(f"tests/{name}" for name in there if name != drawn)
        left_out += [item for item in items if item.path.as_posix().endswith(others)]
    gone, cases = set(left_out), {}
    for item in items:
        if item not in gone and item.path.name not in IN_ORDER:
            mark, test = item.get_closest_marker("one_of"), item.nodeid.partition("[")[0]
            name, most = (mark.args[0] if mark.args else test, 1) if mark else (test, MOST_CASES)
            cases.setdefault((name, most), []).append(item)
    for (name, most), of_test in cases.items():
        drawn = random.Random(f"{SEED} {name}").sample(of_test, min(most, len(of_test)))
        left_out += [item for item in of_test if item not in drawn]
    return without_rows_that_are_lost(items, left_out)


def rows_of(item: pytest.Item) -> set[str]:
    """Return the rows of docs/reliability.md that a test is a sample of."""
    return {name for mark in item.iter_markers("fault") for name in mark.args if name in ROWS}


def without_rows_that_are_lost(items: list[pytest.Item], left_out: list[pytest.Item]) -> list[pytest.Item]:
    """Return what is left out, less a test of each row of docs/reliability.md that would have none."""
    gone = set(left_out)
    there = set().union(*(rows_of(item) for item in items if item not in gone))
    for row in ROWS:
        candidates = [item for item in left_out if row in rows_of(item)]
        if row not in there and candidates:
            back = random.Random(f"{SEED} {row}").choice(candidates)
            there |= rows_of(back)
            left_out = [item for item in left_out if item is not back]
    return left_out


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of `--fault` alone; without it, and where no file is named, those that are drawn."""
    items.sort(key=lambda item: item.path.name not in BEGUN_FIRST)  # what begins last ends alone
    wanted = config.getoption("--fault")
    if wanted:
        left_out = [item for item in items if all(wanted not in mark.args for mark in item.iter_markers("fault"))]
    elif IN_FULL or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        left_out = []
    else:
        left_out = not_drawn(items)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        unwanted = set(left_out)
        items[:] = [item for item in items if item not in unwanted]


class Faults:
    """How often and with what luck a test plants its faults.

    Attributes:
        full: Whether this is a run at full count, not one of CI.
        rng: Of this test; the seed is printed and kept with the result. VQ_PRIOR_FAULT_SEED gives the same again.
    """

    def __init__(self, name: str, record: Callable[[str, object], None]) -> None:
        self.full, self._record = IN_FULL, record
        self.rng = random.Random(f"{SEED} {name}")
        record("seed", SEED)
        print(f"VQ_PRIOR_FAULT_SEED={SEED}")

    def number(self, ci: int, full: int) -> int:
        """Return how many faults to plant."""
        return full if self.full else ci

    def planted(self, count: int) -> None:
        """Note how many were planted and survived."""
        self._record("count", count)
        print(f"{count} faults survived")

    def figure(self, text: str) -> None:
        """Note what was measured, for the page."""
        self._record("figure", text)
        print(text)


@pytest.fixture
def faults(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Faults:
    """Numbers and luck of a test that plants faults."""
    return Faults(request.node.name, record_property)


ACCELERATE_LAUNCH = "import runpy; runpy.run_module('accelerate.commands.launch', run_name='__main__')"


@pytest.fixture(scope="session")
def accelerate_launch(warm: Warm, launched: dict[str, str]) -> RunCli:
    """Run `accelerate launch WORDS`: `accelerate_launch("-m", "vq_prior", ...)`."""

    def run(*words: object, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        environment = clean_environment(ACCELERATE_USE_CPU="1", **launched)
        return warm.run(ACCELERATE_LAUNCH, environment, arguments=words, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def launch(accelerate_launch: RunCli) -> Callable[..., None]:
    """Run a Python text on processes of the launcher, and expect it to succeed: `launch(text, folder, ...)`.

    Its arguments are the folder and the others as text, lists as JSON.
    """

    def launch(text: str, folder: Path, *arguments: object, processes: int = 2, timeout: float = 120) -> None:
        script = folder / "several_processes.py"
        script.write_text(text)
        words = [json.dumps(argument) if isinstance(argument, list) else str(argument) for argument in arguments]
        how = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
        how += ["--multi_gpu", f"--num_processes={processes}"]
        done = accelerate_launch(*how, script, folder, *words, timeout=timeout)
        assert done.returncode == 0, done.stderr

    return launch


@pytest.fixture(scope="session")
def run_cli(warm: Warm) -> RunCli:
    """Run `vq-prior ARGS` in a process of its own: `run_cli("generate", "--model", path, cwd=..., env={...})`.

    A fork of `warm`, but a new `python -m vq_prior` where `env` changes what libraries read while they are imported.
    """

    def run(
        *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        environment = clean_environment(**(env or {}))
        if same_imports(environment, warm.environment):
            return warm.run(arguments, environment, cwd=cwd, timeout=timeout)
        return subprocess.run(
            [sys.executable, "-m", "vq_prior", *map(str, arguments)],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """A RUN with vqvae, codes, prior and model, trained for a moment on digits by the real commands.

    Made once for all workers, in one process; tests that change it work on a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    run = shared / "tiny" / "run"
    commands = [
        ("train-vqvae", "--data", "digits", "--out", run, "--steps", 30, "--batch-size", 32),
        ("extract-codes", "--codec", run, "--data", "digits", "--out", run / "codes"),
        ("train-prior", "--codes", run / "codes", "--codec", run, "--out", run, "--steps", 30, "--batch-size", 32),
    ]
    with FileLock(shared / "tiny.lock"):
        if not (run / "model").exists():
            words = [[str(word) for word in command] for command in commands]
            code = f"from vq_prior.cli import main\nfor words in {words!r}: assert main(words) == 0, words[0]"
            done = warm.run(code)
            assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return run


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> Path:
    """The MODEL folder of `tiny_run`; its images mean nothing."""
    return tiny_run / "model"


@pytest.fixture(scope="session")
def many_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of 9,000 labelled 8x8 pictures, so that its code store has several shards."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(9000):
        pixels = digits.images[number % len(digits.images)] * 15 + rng.integers(0, 16, (8, 8))
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    labels = [int(digits.target[number % len(digits.images)]) for number in range(9000)]
    file = tmp_path_factory.mktemp("data") / "many_digits.parquet"
    pq.write_table(pa.table({"image": rows, "label": labels}), file)
    return file
