"""SIGTERM and Ctrl-C: exit code 75, one line, the state saved; the same command continues."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import ranks_of
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from vq_prior.cli.launch import _explain
from vq_prior.core.errors import LOST
from vq_prior.core.processes.control import signal_control
from vq_prior.core.processes.interruption import Interrupted, Interruption, hear_signals

MAX_SECONDS = 60


@pytest.fixture
def start(tmp_path, warm, child_environment):
    """Start a command and return its process and the files of its streams; with `anew`, as a new `python -m`."""

    def begin(name, words, anew):
        out, err = tmp_path / f"{name}.out", tmp_path / f"{name}.err"
        words = list(map(str, words))
        with out.open("w") as stdout, err.open("w") as stderr:
            if not anew:
                return warm.start(words, stdout=stdout.fileno(), stderr=stderr.fileno()), out, err
            command = [sys.executable, "-m", "vq_prior", *words]
            environment = child_environment()
            process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr, start_new_session=True)
            return process, out, err

    return begin


def _wait_until(condition):
    deadline = time.monotonic() + MAX_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _catches(pid, number):
    """Whether a process has a handler of its own for a signal, or has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    mask = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(mask >> (number - 1) & 1)


@pytest.mark.fault("F9", "F44", "R11")
@pytest.mark.parametrize(
    ("number", "processes", "rank"),
    [
        (signal.SIGTERM, 1, None),
        (signal.SIGINT, 1, None),
        (signal.SIGHUP, 1, None),
        pytest.param(signal.SIGHUP, 2, None, marks=pytest.mark.one_of("two told")),
        pytest.param(signal.SIGINT, 2, None, marks=pytest.mark.one_of("two told")),
        pytest.param(signal.SIGTERM, 2, None, marks=pytest.mark.one_of("two told")),
        pytest.param(
            signal.SIGTERM, 2, "1", marks=pytest.mark.one_of("two told")
        ),  # one alone, and not the one that saves
    ],
)
def test_training_stops_at_a_step_and_continues(tmp_path, start, number, processes, rank):
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000, "--log-every", 5]
    several = ["--num-processes", processes] if processes > 1 else []
    process, _, errors = start("first", [*words, *several], anew=processes > 1)
    metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"
    _wait_until(lambda: metrics.exists() and metrics.stat().st_size)
    # A terminal sends Ctrl-C to every process of the group, a scheduler its signal to the one it started.
    (os.killpg if number == signal.SIGINT else os.kill)(ranks_of(process.pid)[rank] if rank else process.pid, number)
    assert process.wait(MAX_SECONDS) == 75, errors.read_text()
    assert errors.read_text().startswith("error: stopped after step ")
    assert errors.read_text().count("\n") == 1
    (checkpoint,) = (tmp_path / "run" / "vqvae-training" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    again, told, _ = start("again", words, anew=False)
    _wait_until(lambda: "continuing" in told.read_text())
    again.kill()
    assert again.wait(MAX_SECONDS) == -signal.SIGKILL
    assert f"continuing from step {step}" in told.read_text()


@pytest.mark.fault("F9", "R11")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.one_of("two told"))])
def test_a_save_at_once_leaves_the_run_as_it_was(processes, tmp_path, start):
    """Asked for where nothing is to save yet, too; told to the launcher, it reaches the processes."""
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000, "--log-every", 5]
    process, told, errors = start("run", [*words, "--num-processes", processes], anew=processes > 1)
    if processes == 1:
        _wait_until(lambda: told.read_text())
        os.kill(process.pid, signal.SIGUSR2)
    metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"
    _wait_until(lambda: metrics.exists() and metrics.stat().st_size)
    length = metrics.stat().st_size
    os.kill(process.pid, signal.SIGUSR2)
    _wait_until(lambda: "as SIGUSR2 asks" in told.read_text())
    (checkpoint,) = (tmp_path / "run" / "vqvae-training" / "checkpoints").iterdir()
    assert f"state saved after step {int(checkpoint.name.removeprefix('step-'))}, as SIGUSR2 asks" in told.read_text()
    _wait_until(lambda: metrics.stat().st_size > 2 * length)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(MAX_SECONDS) == 75, errors.read_text()
    assert errors.read_text().startswith("error: stopped after step ")


@pytest.mark.fault("F44", "R11")
def test_a_stop_before_the_first_step_is_one_line_too(tmp_path, start, faults):
    """While libraries are imported, too: some run texts by `exec`, through which CPython ends by SIGINT after all."""
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000]
    for turn in range(faults.number(3, 50)):
        process, _, errors = start(f"early{turn}", words, anew=True)
        _wait_until(lambda pid=process.pid: _catches(pid, signal.SIGTERM))  # before that it is Python's, not yet ours
        if turn % 2:
            time.sleep(faults.rng.uniform(0, 3))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(MAX_SECONDS) == 75, errors.read_text()
        assert errors.read_text().startswith("error: stopped")
        assert errors.read_text().count("\n") == 1
    faults.planted(faults.number(3, 50))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no such terminals")
def test_a_terminal_that_goes_does_not_take_the_training_with_it(tmp_path, warm):
    """To write to it is an error from then on. Without a signal the run goes on; SIGHUP saves and ends it."""
    words = ["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), "--steps", "100000", "--log-every", "5"]
    terminal, its_end = os.openpty()
    running = warm.start(words, stdout=its_end, stderr=its_end)
    os.close(its_end)
    metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"

    def has_begun():
        if select.select([terminal], [], [], 0)[0]:  # what nobody reads would hold it up
            os.read(terminal, 1 << 16)
        return metrics.exists() and metrics.stat().st_size

    _wait_until(has_begun)
    os.close(terminal)
    length = metrics.stat().st_size
    _wait_until(lambda: metrics.stat().st_size > 2 * length)
    running.kill(signal.SIGHUP)
    assert running.wait(MAX_SECONDS) == 75
    (checkpoint,) = (tmp_path / "run" / "vqvae-training" / "checkpoints").iterdir()
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert last <= int(checkpoint.name.removeprefix("step-")) < last + 5


UNDER_NOHUP = """
import signal, sys
from vq_prior.cli import main
signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.one_of("two told")
def test_under_nohup_two_processes_go_on(tmp_path, warm, launched):
    """The launcher's own handler would end them."""
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--steps", 100_000, "--log-every", 5]
    with (tmp_path / "out").open("w") as told:
        streams = {"stdout": told.fileno(), "stderr": told.fileno()}
        environment = warm.environment | launched
        running = warm.start(UNDER_NOHUP, environment, arguments=[*words, "--num-processes", 2], **streams)
        metrics = tmp_path / "run" / "vqvae-training" / "metrics.jsonl"
        _wait_until(lambda: metrics.exists() and metrics.stat().st_size)
        running.kill(signal.SIGHUP)
        length = metrics.stat().st_size
        _wait_until(lambda: metrics.stat().st_size > 2 * length)
        assert metrics.stat().st_size > 2 * length
        running.kill(signal.SIGTERM)
        assert running.wait(MAX_SECONDS) == 75
    assert "error: stopped" in (tmp_path / "out").read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has none")
def test_a_hangup_that_is_ignored_stays_ignored():
    former = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGUSR2)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
        hear_signals(Interruption())
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert isinstance(signal.getsignal(signal.SIGTERM), Interruption)
        with signal_control() as control:
            signal.raise_signal(signal.SIGHUP)
            assert control.stop_signal is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        hear_signals(Interruption())
        with pytest.raises(Interrupted, match="stopped by SIGHUP"):
            signal.raise_signal(signal.SIGHUP)
        with signal_control() as control:
            signal.raise_signal(signal.SIGHUP)
            assert control.stop_signal == "SIGHUP"
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
WHO = {"alone": 1, "launcher": 2, "rank 0": 2, "rank 1": 2, "all": 2}
AT_ONCE = 10.0  # seconds for a step, a save and the end of two processes


@pytest.fixture
def survives_signals(survives, faults):
    """Send a command signals at random moments: it saves, says so in one line, ends with 75 and can go on."""
    struck, longest = [0.0], [0.0]

    def send(pid, number):
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def strike(running, seconds, who, number):
        if number is None:
            number = faults.rng.choice(SIGNALS)
        until = time.monotonic() + faults.rng.uniform(0.02, 0.7) * seconds
        _wait_until(lambda: _catches(running.pid, signal.SIGTERM))  # before that it is Python's, not yet ours
        while time.monotonic() < until or (who.startswith("rank") and not ranks_of(running.pid).get(who[5:])):
            if not Path(f"/proc/{running.pid}").exists():
                return
            time.sleep(0.01)
        ranks = ranks_of(running.pid)
        struck[0] = time.monotonic()
        if who in ("alone", "launcher"):
            send(running.pid, number)
        elif who == "all":  # as a terminal does
            for pid in (running.pid, *ranks.values()):
                send(pid, number)
        elif who[5:] in ranks:
            send(ranks[who[5:]], number)
        if faults.rng.random() < 0.3 and number != signal.SIGINT:  # schedulers repeat themselves
            time.sleep(0.1)
            send(running.pid, number)

    def has_ended(code, lines):
        longest[0] = max(longest[0], time.monotonic() - struck[0] if code else 0)
        assert longest[0] < AT_ONCE
        assert code in (0, 75), lines
        assert len(lines) == (code == 75), lines
        assert all(line.startswith("error: ") and "run the same command" in line for line in lines), lines
        return code == 0

    def survive(words, wanted, who, number=None):
        survives(words, wanted, lambda *what: strike(*what, who, number), has_ended, WHO[who])
        print(f"at most {longest[0]:.1f} s from the signal to the end")

    return survive


def work(name, run, data):
    """The words of each long command, with so much to do that a signal meets it at work."""
    return {
        "train-vqvae": ["train-vqvae", "--data", "digits", "--steps", 150, "--batch-size", 32],
        "train-prior": ["train-prior", "--codes", run / "codes", "--steps", 80, "--batch-size", 32],
        "extract-codes": ["extract-codes", "--codec", run / "vqvae", "--data", data],
        "generate": ["generate", "--model", run / "model", "--num-images", 300, "--batch-size", 8],
    }[name]


FULL = os.environ.get("VQ_PRIOR_FAULTS") == "full"
CASES = [("train-vqvae", "alone"), ("train-prior", "alone"), ("extract-codes", "alone"), ("generate", "alone")]
CASES += [("train-vqvae", "rank 1")]
if FULL:
    CASES = [(name, who) for name, _ in CASES[:4] for who in WHO]


@pytest.mark.one_of
@pytest.mark.fault("F9", "F44", "R11")
@pytest.mark.parametrize(("name", "who"), CASES)
def test_signals_at_random_moments(name, who, survives_signals, tiny_run, many_digits, faults):
    wanted = faults.number(1, 50 if name == "train-vqvae" else 10)
    survives_signals(work(name, tiny_run, many_digits), wanted, who)


MISSED = {"line": f"error: {LOST}; run the same command to continue", "exit_code": 5}
POISONED = {"line": "error: the loss (nan) is not finite at step 3", "exit_code": 4}


@pytest.mark.fault("F9", "F10", "R11", "R12")
@pytest.mark.parametrize(
    ("told", "ended", "code", "words"),
    [
        (MISSED, {0: -signal.SIGTERM, 1: 5}, 75, "stopped"),
        (MISSED, {0: 5, 1: -signal.SIGINT}, 75, "stopped"),
        (MISSED, None, 75, "stopped"),
        (None, {1: -signal.SIGUSR1}, 75, "stopped"),
        (MISSED, {0: 5, 1: -signal.SIGHUP}, 75, "stopped"),
        (None, None, 75, "stopped"),
        ("{", None, 75, "stopped"),  # a process was ended while it wrote
        (MISSED, {0: 5, 1: -signal.SIGKILL}, 5, "process 1 ended by SIGKILL"),
        (MISSED, {0: -signal.SIGTERM, 1: -signal.SIGKILL}, 5, "process 1 ended by SIGKILL"),
        (MISSED, {0: 5}, 5, LOST),
        (POISONED, {0: 4, 1: -signal.SIGTERM}, 4, "not finite"),
        (None, {0: 1}, 5, "process 0 ended by exit code 1"),
    ],
)
def test_what_ended_first_is_what_is_told(tmp_path, capsys, told, ended, code, words):
    """The first error of any process, but the cause before what others saw of it."""
    report = tmp_path / "error.json"
    if told is not None:
        report.write_text(told if isinstance(told, str) else json.dumps(told))
    failure = None
    if ended is not None:
        failures = {rank: ProcessFailure(rank, 1, number, "none") for rank, number in ended.items()}
        failure = ChildFailedError("vq-prior", failures)
    assert _explain(report, failure) == code
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.one_of
@pytest.mark.fault("F44", "R11")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_interruption_ends_it_at_once(processes, start, tmp_path, faults):
    for turn in range(faults.number(1, 20)):
        words = ["train-vqvae", "--data", "digits", "--out", tmp_path / f"run{turn}", "--steps", 100_000]
        words += ["--log-every", 5, *(["--num-processes", processes] if processes > 1 else [])]
        process, _, errors = start(f"turn{turn}", words, anew=True)
        metrics = tmp_path / f"run{turn}" / "vqvae-training" / "metrics.jsonl"
        _wait_until(lambda metrics=metrics: metrics.exists() and metrics.stat().st_size)
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(faults.rng.uniform(0, 0.2))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(MAX_SECONDS) == 75, errors.read_text()
        assert time.monotonic() - started < AT_ONCE
        lines = [line for line in errors.read_text().splitlines() if line.strip()]
        assert len(lines) <= 1, lines
        assert all(line.startswith("error: ") for line in lines), lines
    faults.planted(faults.number(1, 20))


TURNED_INTO_ANOTHER_ERROR = """
import signal, sys
import vq_prior.cli.commands
from vq_prior.cli import main

def verify(_settings):
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None

vq_prior.cli.commands.verify = verify
sys.exit(main(["verify", "x"]))
"""


@pytest.mark.fault("F44", "R11")
def test_an_interruption_that_a_library_turned_into_another_error_is_still_one(warm, tmp_path):
    done = warm.run(TURNED_INTO_ANOTHER_ERROR, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (75, "error: stopped by SIGTERM; run the same command to continue\n")


TWO_SIGNALS = """
import signal, sys
from vq_prior import cli
from vq_prior.core import errors
from vq_prior.core.processes import interruption

words, first, lines = sys.argv[1:-1], int(sys.argv[-1]), 0
FILES = cli.__file__, interruption.__file__, errors.__file__

def strike(frame, event, _argument):
    global lines
    if frame.f_code.co_filename in FILES and event == "line":
        lines += 1
        if lines in (first, first + 1):
            signal.raise_signal(signal.SIGTERM)
    return strike

sys.argv = ["vq-prior", *words]
sys.settrace(strike)
code = cli.main()
sys.settrace(None)
print(lines)
sys.exit(code)
"""


@pytest.mark.fault("F44", "R11")
def test_two_signals_at_any_line_of_the_command_line_are_one_line(warm, tmp_path, faults):
    """At the first and the one after it, while a command begins, fails by itself (3) and tells it."""

    def run(first):
        done = warm.run(TWO_SIGNALS, arguments=["verify", tmp_path / "nothing", first], cwd=tmp_path)
        assert done.returncode in (3, 75, -signal.SIGTERM), done.stderr
        heard = done.returncode != -signal.SIGTERM
        assert done.stderr.count("\n") == heard, (first, done.stderr)
        assert done.stderr.startswith("error: " if heard else "")
        return done

    whole = run(-9)
    assert whole.returncode == 3
    lines = range(1, int(whole.stdout) + 1)
    struck = sorted(faults.rng.sample(lines, faults.number(20, len(lines))))
    codes = [run(first).returncode for first in struck]
    heard = [
        code for first, code in zip(struck, codes, strict=True) if first > 40
    ]  # before that Python's handlers stand
    assert heard == sorted(heard, reverse=True)
    assert set(heard) <= {3, 75}
    faults.planted(len(struck))


STEP_OF_A_MINUTE = """
import time
from vq_prior.core.processes.control import signal_control

with signal_control() as control:
    print("begun", flush=True)
    while control.stop_signal is None:
        time.sleep(0.01)
    print("heard", flush=True)  # two signals before the first is heard are one
    time.sleep(60)
"""


@pytest.mark.fault("F44", "R11")
def test_a_second_interruption_does_not_wait_for_the_step(child_environment):
    command = [sys.executable, "-c", STEP_OF_A_MINUTE]
    with subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "heard\n"
        time.sleep(0.5)
        assert process.poll() is None  # the first waits for the end of the step
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(AT_ONCE) == 75
        finally:
            process.kill()
