"""A process that has everything imported and runs one command after the other, so that a case costs no start.

    with Resident(hub, tmp_path) as resident:
        done = resident.run("pull", "owner/name", "--out", tmp_path / "model")
        loaded = resident.load("owner/name")

It waits in a time of its own: sleeping is free, and is counted. With `watch()` an audit
hook notes what no repository may make the process do.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.startfile", "ctypes.dlopen")
OURS = ("vq_prior", "stage1_vqvae", "stage2_prior")


class Done(NamedTuple):
    """How a command or a load ended.

    Attributes:
        code: Exit code; of a load, that of its error, and 1 for an error that is not ours.
        stdout: What it printed.
        stderr: What it printed there; of a load, its error.
        waited: Seconds that it slept.
        seconds: Seconds that passed but for those.
        events: What the audit hook noted.
        peak_mb: Largest resident memory of the process so far.
    """

    code: int
    stdout: str
    stderr: str
    waited: float
    seconds: float
    events: list[str]
    peak_mb: float


class Resident:
    """The process, from `with` to its end."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __enter__(self) -> "Resident":
        path = os.pathsep.join([str(REPOSITORY), self.environment.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__))],
            env=self.environment | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},  # which would be noted
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(30)

    def _ask(self, **request: Any) -> Any:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the resident process died"
        return json.loads(answer)

    def run(self, *words: object, cache: Path | None = None) -> Done:
        """Run `vq-prior WORDS`, with a cache of its own if one is given."""
        return Done(*self._ask(do="run", words=[str(word) for word in words], cache=cache and str(cache)))

    def kill(self, *words: object, after: float, cache: Path | None = None) -> bool:
        """Run it in a fork that is killed after so many seconds; return whether it still ran then."""
        words = [str(word) for word in words]
        return self._ask(do="kill", words=words, after=after, cache=cache and str(cache))

    def load(self, model: object, **options: Any) -> Done:
        """Load a MODEL with `VQPriorPipeline.from_pretrained`."""
        return Done(*self._ask(do="load", model=str(model), options=options))

    def watch(self, *writable: Path) -> None:
        """Note from now on what no repository may cause; only below `writable` may files be written."""
        self._ask(do="watch", writable=[str(path) for path in writable])

    def xet(self, switch: bool) -> None:
        """Set what HF_HUB_DISABLE_XET would: whether large files go by hf_xet."""
        self._ask(do="xet", switch=switch)

    def log_in(self, token: str | None) -> None:
        """Set HF_TOKEN, or unset it."""
        self._ask(do="log in", token=token)

    def misbehave(self, outside: Path) -> Done:
        """Do what the audit hook is there to note: unpickle, run foreign code, start a program, write `outside`."""
        return Done(*self._ask(do="misbehave", outside=str(outside)))

    def offline(self, switch: bool) -> None:
        """Set what HF_HUB_OFFLINE would."""
        self._ask(do="offline", switch=switch)


class _Clock:
    """Time in which sleeping takes none."""

    def __init__(self) -> None:
        self.slept = 0.0
        self.monotonic = time.monotonic
        time.sleep = self.sleep
        time.monotonic = lambda: self.monotonic() + self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


class _Audit:
    """Notes of what happened that must not: foreign code, other programs, writes where none belong."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.writable: list[str] | None = None
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.writable is None:
            return
        if (event.split(".")[0] in ("pickle", "marshal") and event != "marshal.loads") or event in PROGRAMS:
            self.events.append(f"{event} {arguments}")
        elif event == "exec" and not self._known(getattr(arguments[0], "co_filename", "?")):
            self.events.append(f"exec {arguments[0]}")
        elif event == "compile" and not self._known(os.fsdecode(arguments[1] or "?")):
            self.events.append(f"compile {arguments[1]}")
        elif event == "import" and arguments[1] and not self._known(str(arguments[1])):
            self.events.append(f"import {arguments[:2]}")
        elif event == "open" and self._writes(arguments) and not self._may_write(arguments[0]):
            self.events.append(f"open {arguments}")

    @staticmethod
    def _known(file: str) -> bool:
        packages = tuple(str(REPOSITORY / name) for name in OURS)
        return file.startswith(("<", sys.prefix, sys.base_prefix, *packages))

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        mode, flags = arguments[1], arguments[2]
        if isinstance(mode, str):
            return bool(set(mode) & set("wax+"))
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def _may_write(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        return os.path.abspath(os.fsdecode(path)).startswith((*self.writable, os.devnull))


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    import torch
    from huggingface_hub import constants

    from vq_prior.cli import main
    from vq_prior.core.errors import VQPriorError
    from vq_prior.core.hub import repository
    from vq_prior.model.pipeline import VQPriorPipeline

    torch.set_num_threads(1)
    clock, audit = _Clock(), _Audit()
    default_cache = constants.HF_HUB_CACHE

    def command(words: list[str]) -> tuple[int, str]:
        return main(words), ""

    def load(model: str, options: dict[str, Any]) -> tuple[int, str]:
        try:
            VQPriorPipeline.from_pretrained(model, **options)
        except VQPriorError as error:
            return error.exit_code, str(error)
        except Exception as error:
            return 1, f"{type(error).__name__}: {error}"
        return 0, ""

    def timed(function: Any, *arguments: Any) -> Done:
        repository._fetched.clear()
        audit.events.clear()
        clock.slept, started = 0.0, clock.monotonic()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code, message = function(*arguments)
        seconds = clock.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        text = err.getvalue() + message
        return Done(code, out.getvalue(), text, clock.slept, seconds, list(audit.events), peak)

    for line in sys.stdin:
        request = json.loads(line)
        constants.HF_HUB_CACHE = request.get("cache") or default_cache
        answer: Any = None
        if request["do"] == "run":
            answer = timed(command, request["words"])
        elif request["do"] == "load":
            answer = timed(load, request["model"], request["options"])
        elif request["do"] == "watch":
            audit.writable = request["writable"]
        elif request["do"] == "offline":
            constants.HF_HUB_OFFLINE = request["switch"]
        elif request["do"] == "xet":
            constants.HF_HUB_DISABLE_XET = not request["switch"]
        elif request["do"] == "log in":
            os.environ["HF_TOKEN"] = request["token"] or ""
        elif request["do"] == "misbehave":
            answer = timed(_misbehave, request["outside"])
        elif request["do"] == "kill":
            answer = _killed(lambda words=request["words"]: timed(command, words), request["after"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _misbehave(outside: str) -> tuple[int, str]:
    pickle.loads(pickle.dumps(print))
    exec(compile("pass", outside, "exec"))
    os.system("true")
    Path(outside).write_bytes(b"")
    return 0, ""


def _killed(function: Any, after: float) -> bool:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            function()
        os._exit(0)
    ready = signal.sigtimedwait([signal.SIGCHLD], after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    signal.sigtimedwait([signal.SIGCHLD], 0)  # its own end
    return ready is None


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    _serve()
