"""The template of a Space starts with a model of the Hub and draws for whoever asks."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.server import LoopbackHub, hub_environment
from PIL import Image

SPACE = Path(__file__).resolve().parents[2] / "docs" / "space"
REPOSITORY = SPACE.parents[1]
START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory, tiny_model, child_environment) -> Iterator[dict[str, str]]:
    """A Hub that has the model you/mine, and a port for the page."""
    files = {
        path.relative_to(tiny_model).as_posix(): path.read_bytes() for path in tiny_model.rglob("*") if path.is_file()
    }
    with LoopbackHub(upload_mode="lfs") as hub:
        hub.add_repo("you/mine", files)
        yield child_environment(
            **hub_environment(hub, tmp_path_factory.mktemp("cache")),
            MODEL_ID="you/mine",
            GRADIO_SERVER_PORT=str(free_port()),
            GRADIO_ANALYTICS_ENABLED="False",
            GRADIO_TEMP_DIR=str(tmp_path_factory.mktemp("gradio")),
            PYTHONPATH=os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory, environment) -> Iterator[str]:
    """Where the app listens, in a process of its own."""
    url = f"http://127.0.0.1:{environment['GRADIO_SERVER_PORT']}/"
    log = tmp_path_factory.mktemp("log") / "app.txt"
    with log.open("w", encoding="utf-8") as file:
        app = subprocess.Popen(
            [sys.executable, str(SPACE / "app.py")], cwd=log.parent, env=environment, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert app.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            try:
                with socket.create_connection(("127.0.0.1", int(environment["GRADIO_SERVER_PORT"])), timeout=1):
                    break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        app.terminate()
        app.wait(30)


def test_the_page_answers(page):
    with urllib.request.urlopen(page, timeout=30) as answer:
        html = answer.read().decode()
    assert answer.status == 200
    assert '"title":"you/mine"' in html
    for label in ("Class", "Seed", "Temperature", "Guidance"):
        assert f'"label":"{label}"' in html


@pytest.fixture(scope="module")
def client(page, tmp_path_factory):
    from gradio_client import Client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        return Client(page, verbose=False, download_files=str(tmp_path_factory.mktemp("drawn")))


def drawn(client, *request):
    """(pixels, caption) of each image that a request gives."""
    gallery, _ = client.predict(*request, api_name="/draw")
    return [(Image.open(item["image"]).convert("L").tobytes(), item["caption"]) for item in gallery]


def test_a_request_draws_the_images_of_a_class(client, tiny_model):
    first = drawn(client, "seven", 3, 5, 1.0, 1.0, 1.5)
    assert [caption for _, caption in first] == ["seven"] * 3
    assert drawn(client, "seven", 3, 5, 1.0, 1.0, 1.5) == first
    from vq_prior import VQPriorPipeline

    pipe = VQPriorPipeline.from_pretrained(tiny_model)
    same = pipe(3, labels="seven", seed=5, temperature=1.0, guidance_scale=1.5).images
    enlarged = [picture.resize((128, 128), resample=0).convert("L").tobytes() for picture in same]
    assert [pixels for pixels, _ in first] == enlarged


def test_every_class_in_turn_and_a_value_out_of_range(client):
    from gradio_client.exceptions import AppError

    assert [caption for _, caption in drawn(client, "every class in turn", 2, 0, 1.0, 1.0, 1.0)] == ["zero", "one"]
    with pytest.raises(AppError):
        client.predict("seven", 3, 5, -1.0, 1.0, 1.5, api_name="/draw")


def test_without_a_model_it_says_what_to_do(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, str(SPACE / "app.py")],
        cwd=tmp_path,
        env=environment | {"MODEL_ID": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "MODEL_ID is not set" in done.stderr


def test_its_head_names_the_program_and_its_requirements_name_us():
    import yaml

    head = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio"
    assert (SPACE / head["app_file"]).is_file()
    assert "vq-prior[app]" in (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
