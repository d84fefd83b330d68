"""Commands that are struck at random moments until they end, and must leave what an undisturbed one leaves."""

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from vq_prior.judge.fingerprint import fingerprint


def _digests(folder: Path) -> list[str]:
    """Every byte below a folder; of a RUN its fingerprint, for its log tells the time."""
    if any(folder.glob("*-training")):
        return fingerprint(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]


@pytest.fixture
def digests():
    """A function of a folder that returns the digest of all that is in it."""
    return _digests


@pytest.fixture
def survives(warm, tmp_path, faults):
    """`survives(words, wanted, strike, check, processes=1)`: run a command whole, then struck so many times.

    `strike(running, seconds)` strikes once, with `seconds` that a whole one takes; `check(code, lines)` looks at the
    exit code and the lines on stderr of one that was struck, and returns whether it had ended before.
    """

    def survive(words, wanted, strike, check, processes=1):
        words = [*words, *(["--num-processes", processes] if processes > 1 else []), "--out"]
        started = time.monotonic()
        done = warm.run([*words, tmp_path / "whole"])
        assert done.returncode == 0, done.stderr
        seconds, whole = time.monotonic() - started, _digests(tmp_path / "whole")
        assert whole
        strikes, ends, since = 0, 0, 0
        while strikes < wanted or since:
            with open(os.devnull, "w") as nothing, tempfile.TemporaryFile("w+") as errors:
                running = warm.start([*words, tmp_path / "struck"], stdout=nothing.fileno(), stderr=errors.fileno())
                if strikes < wanted:
                    strike(running, seconds)
                code = running.wait(300)
                errors.seek(0)
                lines = [line for line in errors.read().splitlines() if line.strip()]
            if not check(code, lines):
                strikes, since = strikes + 1, since + 1
                continue
            assert _digests(tmp_path / "struck") == whole, f"after {since} strikes"
            shutil.rmtree(tmp_path / "struck")
            ends, since = ends + 1, 0
        print(f"{strikes} strikes on the way to {ends} ends")
        faults.planted(strikes)

    return survive
