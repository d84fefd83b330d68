"""A process that has everything imported and forks for each command, so that a command costs no start.

    with Warm(environment, folder) as warm:
        done = warm.run(["generate", "--model", model, "--out", out], environment, cwd=folder)

A command so begins as a new process would: a process group, working folder, environment and streams of its own, and
no state of the commands before it. `Warm.shim` puts a `vq-prior` on PATH that runs its words here, `Warm.python` is a
program for a launcher to start its processes with. What libraries read from the environment while they are imported is
that of `Warm`; where that differs, both start Python anew.
"""

import array
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
READ_WHILE_IMPORTED = ("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_", "OMP_", "MKL_", "TORCH_LOGS")
WHAT_TAKES_SECONDS = ("accelerate.commands.launch", "datasets", "peft", "sklearn.datasets", "stage1_vqvae.train")
WHAT_TAKES_SECONDS += ("stage2_prior.train", "vq_prior.cli.commands", "vq_prior.model.pipeline", "vq_prior.model.share")
MAX_REQUEST_BYTES = 100_000

# Where how good a result is is not what is tested: the evaluator's network is fitted in 40 steps, not in its 800, and a
# training of more than 60 steps has 60.
BRIEFLY = """
from dataclasses import replace
import stage1_vqvae.train, stage2_prior.opening
from vq_prior.judge import evaluate, evaluator
evaluate.STEPS = evaluator.STEPS = 40
for stage in (stage1_vqvae.train, stage2_prior.opening):
    def resolve(settings, *facts, whole=stage.resolve, **more):
        return whole(replace(settings, steps=min(settings.steps or 60, 60)), *facts, **more)
    stage.resolve = resolve
"""


def same_imports(one: dict[str, str], other: dict[str, str]) -> bool:
    """Return whether libraries that are imported under either environment are the same."""
    first, second = (
        {name: value for name, value in names.items() if name.startswith(READ_WHILE_IMPORTED)} for names in (one, other)
    )
    return first == second


class Running:
    """A command that was started.

    Attributes:
        pid: Number of its process, which leads a group; 0 where its environment needs a new Python.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = int(json.loads(connection.recv(64)))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its process; one that has ended does not mind."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, or minus the number of the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: If it runs for longer than that; it is killed, with its group.
        """
        self._connection.settimeout(timeout)
        try:
            return int(json.loads(self._connection.recv(64)))
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired("vq-prior", timeout or 0) from None
        finally:
            self._connection.close()


def start(address: str, request: dict[str, Any], stdout: int, stderr: int) -> Running:
    """Return the command of a request, started, with these two file descriptors as its streams."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    streams = array.array("i", [stdout, stderr])
    connection.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    return Running(connection)


class Warm:
    """The process, from `with` to its end.

    Args:
        environment: Under which it imports.
        folder: Where it may put what it needs; new.
        first: Python that it runs after its imports, such as `BRIEFLY`.
    """

    def __init__(self, environment: dict[str, str], folder: Path, first: str = "") -> None:
        self.environment, self.folder, self._first = environment, folder, first
        self._short = tempfile.TemporaryDirectory(prefix="vq-prior-")  # the path of a socket has a hundred letters
        self.address = str(Path(self._short.name) / "socket")

    def __enter__(self) -> "Warm":
        path = os.pathsep.join([str(REPOSITORY), self.environment.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__)), "serve", self.address, self._first],
            env=self.environment | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the warm process did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)  # the end of its input is the end
        self._short.cleanup()

    def start(
        self,
        words: Sequence[object] | str,
        environment: dict[str, str] | None = None,
        *,
        stdout: int,
        stderr: int,
        cwd: Path | None = None,
        arguments: Sequence[object] = (),
    ) -> Running:
        """Start `vq-prior WORDS`, or Python code that is given as a text, with its arguments."""
        environment = self.environment if environment is None else environment
        assert same_imports(environment, self.environment), "this environment needs a process of its own"
        request = {
            "words": None if isinstance(words, str) else list(map(str, words)),
            "code": words if isinstance(words, str) else None,
            "arguments": list(map(str, arguments)),
            "environment": environment,
            "cwd": str(cwd or Path.cwd()),
        }
        return start(self.address, request, stdout, stderr)

    def run(
        self,
        words: Sequence[object] | str,
        environment: dict[str, str] | None = None,
        *,
        cwd: Path | None = None,
        arguments: Sequence[object] = (),
        timeout: float | None = 300,
    ) -> "subprocess.CompletedProcess[str]":
        """Run it to its end, as `subprocess.run(..., capture_output=True, text=True)` would."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            streams = {"stdout": out.fileno(), "stderr": err.fileno()}
            code = self.start(words, environment, cwd=cwd, arguments=arguments, **streams).wait(timeout)
            for stream in (out, err):
                stream.seek(0)
            return subprocess.CompletedProcess(words, code, out.read(), err.read())

    def shim(self) -> Path:
        """Return a folder for PATH with a `vq-prior` that runs its words in this process."""
        return self._program("vq-prior", "run").parent

    def python(self) -> Path:
        """Return a program that does here what `python -u -m vq_prior WORDS` and `python -u SCRIPT WORDS` ask for."""
        return self._program("launched-python", "python")

    def _program(self, name: str, what: str) -> Path:
        program = self.folder / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        line = f'exec "{sys.executable}" -I -S "{Path(__file__)}" {what} "{self.address}" "$@"'
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program


def _serve(address: str, first: str) -> None:
    from vq_prior.cli import _quiet_libraries

    before = dict(os.environ)
    _quiet_libraries(False)  # as a command does before it imports anything
    quiet = {name: value for name, value in os.environ.items() if name not in before}
    for module in WHAT_TAKES_SECONDS:
        import_module(module)
    exec(first, {})

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if sys.stdin in readable:
            os._exit(0)
        connection, _ = listener.accept()
        if not os.fork():
            _handle(connection, quiet)
        connection.close()


def _handle(connection: socket.socket, quiet: dict[str, str]) -> None:
    """Start one command, tell its pid and then its exit code, and end this process."""
    try:
        text, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 2)
        request = json.loads(text)
        if not same_imports(quiet | request["environment"], dict(os.environ)):
            connection.send(b"0")
            os._exit(0)
        child = os.fork()
        if not child:
            connection.close()
            _become(request, streams)
        for stream in streams:
            os.close(stream)
        connection.send(json.dumps(child).encode())
        _, status = os.waitpid(child, 0)
        with suppress(BrokenPipeError):
            connection.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    os.setsid()
    with open(os.devnull) as nothing:
        for number, stream in enumerate([nothing.fileno(), *streams]):
            os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    code: Any = 0
    try:
        if request["code"] is None:
            from vq_prior.cli import main

            sys.argv = ["vq-prior", *request["words"]]
            code = main()
        else:
            sys.argv = ["-c", *request["arguments"]]
            exec(request["code"], {"__name__": "__main__"})
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException as error:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _stand_in(address: str, python: list[str]) -> None:
    """Be what `python -u -m vq_prior WORDS` or `python -u SCRIPT WORDS` would be, by a process that forks there."""
    asked: dict[str, Any] = {"words": None, "code": None, "environment": dict(os.environ), "cwd": os.getcwd()}
    if python[1:3] == ["-m", "vq_prior"]:
        asked["words"] = python[3:]
    else:
        asked |= {"code": Path(python[1]).read_text(), "arguments": python[2:]}
    running = start(address, asked, 1, 2)
    if not running.pid:
        os.execv(sys.executable, [sys.executable, *python])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: running.kill(number))
    ended = running.wait()
    if ended < 0:
        with suppress(OSError):  # what cannot be caught needs no resetting
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    sys.exit(ended)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(*sys.argv[2:])
    else:
        _stand_in(sys.argv[2], ["-u", "-m", "vq_prior", *sys.argv[3:]] if sys.argv[1] == "run" else sys.argv[3:])
