"""What must not matter: clock, time zone, language, hash seed, working folder, the order in which a folder lists."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vq_prior.cli import main
from vq_prior.judge.fingerprint import fingerprint

AROUND = {
    "time zone": {"TZ": "Pacific/Kiritimati"},
    "language": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    "plain C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "hash seed 0": {"PYTHONHASHSEED": "0"},
    "hash seed 99": {"PYTHONHASHSEED": "99"},
    "folder": {},
    "order": {},
    "clock": {},
}
CLOCK = """
import sys, time
real, jump = time.time, iter((0, 86_400 * 365, -86_400 * 365 * 30, 3_600, -5))
last = [0]
def jumping():
    last[0] = next(jump, last[0])
    return real() + last[0]
time.time = jumping
from vq_prior.cli import main
for words in WORDS:
    assert main(words) == 0
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Sixty pictures whose names and classes sort otherwise in other languages."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(0)
    for number, name in enumerate(("\u0131l\u0131k", "İzmir", "zebra", "Äpfel", "_x", "10", "9")):
        (folder / name).mkdir(parents=True)
        for picture in range(9):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{'aZzÖI'[picture % 5]}{picture}{number}.png")
    return folder


def road(out: Path) -> list[list[str]]:
    """The words that make every artefact."""
    steps = ["--steps", "3", "--batch-size", "8"]
    words = [
        ["train-vqvae", "--data", "pictures", "--out", out, *steps, "--quantizer.num-codes", "16"],
        ["extract-codes", "--codec", out, "--data", "pictures", "--out", out / "codes"],
        ["train-prior", "--codes", out / "codes", "--codec", out, "--out", out, *steps],
        ["generate", "--model", out / "model", "--num-images", "3", "--out", out / "images"],
    ]
    return [list(map(str, command)) for command in words]


def digest(out: Path) -> list[str]:
    return [*fingerprint(out), *(path.read_bytes().hex() for path in sorted((out / "images").glob("0*.png")))]


@pytest.fixture(scope="module")
def expected(pictures, tmp_path_factory) -> list[str]:
    out = tmp_path_factory.mktemp("expected") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pictures.parent)
        for words in road(out):
            assert main(words) == 0
    return digest(out)


@pytest.mark.one_of("surroundings")
@pytest.mark.fault("F42")
@pytest.mark.parametrize("name", AROUND)
def test_what_surrounds_a_command_does_not_matter(name, expected, pictures, run_cli, warm, tmp_path, child_environment):
    out, cwd = tmp_path / "run", pictures.parent
    if name == "folder":
        cwd = tmp_path / "elsewhere"
        shutil.copytree(pictures, cwd / "pictures")
    elif name == "order":  # written the other way round, a folder lists otherwise
        cwd = tmp_path / "reversed"
        for path in sorted(pictures.rglob("*.png"), reverse=True):
            copy = cwd / path.relative_to(pictures.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if name == "clock":
        done = warm.run(CLOCK.replace("WORDS", repr(road(out))), child_environment(), cwd=cwd)
        assert done.returncode == 0, done.stderr
    for words in road(out) if name != "clock" else ():
        done = run_cli(*words, env=AROUND[name], cwd=cwd)
        assert done.returncode == 0, done.stderr
    assert digest(cwd / out) == expected


@pytest.mark.one_of("surroundings")
@pytest.mark.fault("F42")
def test_hash_seed_and_language_of_the_start_do_not_matter(expected, pictures, tmp_path, child_environment):
    """The tests above fork a process that has begun; this one begins under the settings."""
    import subprocess
    import sys

    out = tmp_path / "run"
    environment = child_environment(PYTHONHASHSEED="7", LC_ALL="tr_TR.UTF-8", TZ="Asia/Kathmandu")
    code = f"from vq_prior.cli import main\nfor words in {road(out)!r}: assert main(words) == 0, words"
    subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, cwd=pictures.parent, stdout=subprocess.DEVNULL
    )
    assert digest(out) == expected
    assert os.environ.get("PYTHONHASHSEED") != "7"
