"""A reader who types a guide from top to bottom, in one folder, gets through: commands by bash, Python as a script."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub.server import LoopbackHub, hub_environment
from PIL import Image
from sklearn.datasets import load_digits
from warm import BRIEFLY, Warm

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(?P<language>bash|python)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
TOKEN = "hf_the_token_of_these_tests"

# Pages in the order in which a reader would meet them. A page begins with the files that the one before it left.
GUIDES = ["custom-data.md", "share.md", "fine-tuning.md"]

Type = Callable[[str, str], None]


def steps(page: str) -> list[tuple[str, str]]:
    """(language, text) of what a page has its reader do: each command of ours, each block of Python."""
    found = []
    for match in BLOCK.finditer((REPOSITORY / "docs" / page).read_text(encoding="utf-8")):
        if match["language"] == "python":
            found.append(("python", match["body"]))
            continue
        lines = re.sub(r"\\\n\s*", " ", match["body"]).splitlines()
        found += [("bash", line) for line in lines if re.match(r"(\w+=\S+ )*vq-prior |cp ", line)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A reader's folder: sixty pictures of two classes, of 4x4, so small that the default steps take seconds.

    For the guide to fine-tuning, a quickstart and forty of its own pictures: it has seen each of their codes.
    """
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_run, folder / "runs" / "quickstart")
    rng = np.random.default_rng(0)
    (folder / "my-pictures").mkdir()
    for number, image in enumerate(np.floor(load_digits().images[:40] * 255 / 16 + 0.5)):
        Image.fromarray(image.astype(np.uint8)).save(folder / "my-pictures" / f"{number:03d}.png")
    for number in range(60):
        kind = ("cat", "dog")[number % 2]
        (folder / "pictures" / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4)) // (1 + number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / kind / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def type_in(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, child_environment: Callable[..., dict[str, str]]
) -> Type:
    """Type one step, with a Hub at hand that knows the reader, and expect it to succeed."""
    outside = tmp_path_factory.mktemp("outside")
    with LoopbackHub(upload_mode="lfs", require_token=TOKEN) as hub:
        environment = child_environment(**hub_environment(hub, outside / "cache", token=TOKEN))
        with Warm(environment, outside, BRIEFLY) as warm:
            path = os.pathsep.join([str(warm.shim()), os.environ["PATH"]])
            search = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
            environment |= {"PATH": path, "PYTHONPATH": search}

            def run(language: str, text: str) -> None:
                if language == "bash":
                    done = subprocess.run(
                        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
                    )
                else:
                    done = warm.run(text, environment, cwd=folder)
                assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

            run.hub = hub
            yield run
    assert hub.errors == []


@pytest.mark.parametrize("page", GUIDES)
def test_a_page_runs_from_top_to_bottom_as_written(page, type_in):
    assert steps(page)
    for language, text in steps(page):
        type_in(language, text)


def test_what_the_pages_promise_is_there(folder, type_in):
    """Runs after the pages: what they say a reader will find."""
    assert (folder / "samples.png").is_file()
    assert (folder / "bent-samples.png").is_file()
    assert (folder / "tuned-samples.png").is_file()
    assert list((folder / "runs/mine/vqvae-training/images").glob("*.png"))
    assert list((folder / "runs/mine/prior-training/images").glob("*.png"))
    hub = type_in.hub
    card = hub.files("you/mine")["README.md"].decode()
    assert "license: cc-by-4.0" in card
    for words in ("PSNR of reconstructions", "nats per token, held out", "previous token", "vq-prior train-prior"):
        assert words in card
    assert "evaluation.json" in hub.files("you/mine")
    assert "refs/pr/1" in hub.repository("you/mine").pull_requests
    assert (folder / "larger" / "config.json").read_bytes() == hub.files("you/mine", "larger")["config.json"]
    assert hub.repository("you/copy").private
    assert {"you/codec", "you/prior", "you/codec-again"} <= {name for _, name in hub.store.repositories}
    sent = hub.uploaded_bytes()
    assert TOKEN.encode() not in sent
    assert str(folder).encode() not in sent
