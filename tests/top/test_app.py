"""The page of `vq-prior app`, served by the real command and used in a real browser."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage2_prior.folder import SamplingDefaults
from vq_prior.app import CELL, over
from vq_prior.cli import main
from vq_prior.judge.preference import left_of
from vq_prior.model.pipeline import VQPriorPipeline

START_SECONDS = 120
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="there is no browser on this machine")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(folder: Path, environment: dict[str, str], *words: str) -> Iterator[str]:
    """Where `vq-prior app WORDS` serves its page, in a process of its own; its log is in the folder."""
    port = free_port()
    command = [sys.executable, "-m", "vq_prior", "app", *words, "--port", str(port)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "serving" not in (folder / "log.txt").read_text():
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        assert process.wait(30) == 0, (folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def served(tiny_run, tmp_path_factory, child_environment) -> Iterator[str]:
    """Where the command serves the page of a model."""
    folder = tmp_path_factory.mktemp("app")
    environment = child_environment(GRADIO_TEMP_DIR=str(folder / "kept"))
    with serving(folder, environment, "--model", str(tiny_run / "model")) as where:
        yield where


def client_of(where: str, folder: Path):
    """Return a program that asks the page."""
    from gradio_client import Client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        return Client(where, verbose=False, download_files=str(folder))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"this is no picture")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, served) -> Iterator[object]:
    """The page, opened anew; nothing may be wrong on its console when it is left."""
    opened, wrong = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    opened.set_default_timeout(60_000)
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.goto(served)
    opened.wait_for_selector("#draw")
    yield opened
    opened.close()
    assert wrong == []


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def source_of(page, selector: str) -> str:
    return page.get_attribute(f"{selector} img", "src")


@in_browser
def test_a_draw_fills_the_gallery(page):
    page.click("#draw")
    page.wait_for_function("document.querySelectorAll('#drawn .thumbnail-item').length == 16")
    assert "16 of 16 images" in page.inner_text("#progress")
    captions = page.locator("#drawn .caption-label").all_inner_texts()
    assert captions[:3] == ["zero", "one", "two"]
    assert page.locator("#drawn button[aria-label*='ownload']").count() >= 1


@in_browser
def test_an_upload_is_reconstructed_and_a_bad_one_gives_a_message(page, pictures):
    tab(page, "Reconstruct")
    page.set_input_files("#upload input[type=file]", pictures / "good.png")
    for name in ("#seen", "#copy", "#codes"):
        page.wait_for_selector(f"{name} img")
    assert "dB, 16 codes" in page.inner_text("#reconstruction")
    page.locator("#upload button[aria-label*='lear'], #upload button[aria-label*='emove']").first.click()
    page.wait_for_selector("#upload input[type=file]", state="attached")
    page.set_input_files("#upload input[type=file]", pictures / "bad.png")
    message = page.wait_for_selector(".toast-body").inner_text()
    assert "bad.png is not a readable picture" in message
    assert str(pictures) not in message


@in_browser
def test_a_half_image_is_completed(page, pictures):
    tab(page, "Complete")
    page.click("#complete")
    assert "upload a picture first" in page.wait_for_selector(".toast-body").inner_text()
    page.set_input_files("#begun input[type=file]", pictures / "good.png")
    page.wait_for_selector("#begun :text('good')")
    page.click("#complete")
    page.wait_for_function("document.querySelectorAll('#completed .thumbnail-item').length == 16")


@in_browser
def test_a_code_is_painted(page):
    tab(page, "Paint with codes")
    page.click("#paint-draw")
    page.wait_for_selector("#painted img")
    before = source_of(page, "#painted")
    page.locator("#palette .thumbnail-item").nth(5).click()
    page.wait_for_function("document.querySelector('#code input').value == '5'")
    page.click("#replace")
    page.wait_for_function(f"document.querySelector('#painted img').getAttribute('src') != '{before}'")
    page.fill("#code input", "100000")
    page.click("#replace")
    assert "100000 is greater than maximum value 127" in page.wait_for_selector(".toast-body").inner_text()


@in_browser
def test_the_doctor_speaks(page):
    tab(page, "Doctor")
    page.click("#examine")
    page.wait_for_function("document.querySelector('#findings textarea').value.includes('verdict: ')")


def test_a_program_may_ask_and_is_held_to_the_limits(served, tmp_path):
    from gradio_client.exceptions import AppError

    client = client_of(served, tmp_path)
    gallery, told = client.predict("seven", 3, 5, 1.0, 1.0, 1.0, api_name="/draw")
    assert [item["caption"] for item in gallery] == ["seven"] * 3
    assert told == "3 of 3 images"
    for request in (("seven", 65, 5, 1.0, 1.0, 1.0), ("nobody", 3, 5, 1.0, 1.0, 1.0), ("seven", 3, 5, -1.0, 1.0, 1.0)):
        with pytest.raises((AppError, ValueError)):
            client.predict(*request, api_name="/draw")


@pytest.fixture(scope="module")
def two_models(tiny_model, tmp_path_factory) -> tuple[str, str]:
    """Two MODELs of the same weights that draw at other temperatures."""
    pipe, other = VQPriorPipeline.from_pretrained(tiny_model), tmp_path_factory.mktemp("other") / "model"
    cooler = replace(pipe.prior, sampling=SamplingDefaults(temperature=0.3))
    VQPriorPipeline(pipe.codec, cooler).save_pretrained(other)
    return str(tiny_model), str(other)


def test_votes_are_counted_kept_and_told_only_when_asked(two_models, tmp_path, child_environment):
    votes, environment = tmp_path / "votes.json", child_environment(GRADIO_TEMP_DIR=str(tmp_path / "kept"))
    words = ["--compare", *two_models, "--votes", str(votes), "--seed", "7"]
    with serving(tmp_path, environment, *words) as where:
        client = client_of(where, tmp_path)
        for pair in range(3):  # one who likes A
            heading, *pictures = client.predict(api_name=f"/{'left' if left_of(7, pair) == 'A' else 'right'}")
            assert f"Pair {pair + 2}" in heading
            assert f"{pair + 1} votes so far" in heading
            assert not any(model in str([heading, *pictures]) for model in two_models)  # blind
            sizes = [Image.open(picture).size for picture in pictures]
            assert sizes == [(384, 384)] * 2
        client.predict(api_name="/equal")
        assert len(json.loads(votes.read_text())["votes"]) == 4
        told = client.predict(api_name="/result")
    assert told.splitlines()[0] == f"A is {two_models[0]}, B is {two_models[1]}."
    assert "A was preferred in 3 of 3 pairs: 100.0%, 95% interval 43.9% to 100.0%; 1 equal." in told
    with serving(tmp_path, environment, *words) as where:
        assert f"4 votes in {votes}" in (tmp_path / "log.txt").read_text()
        heading, *_ = client_of(where, tmp_path).predict(api_name="/equal")  # of a window that is behind
        assert "4 votes so far" in heading
    assert len(json.loads(votes.read_text())["votes"]) == 4


@in_browser
def test_a_person_sees_a_pair_and_votes_by_a_click(two_models, browser, tmp_path, child_environment):
    environment = child_environment(GRADIO_TEMP_DIR=str(tmp_path / "kept"))
    with serving(tmp_path, environment, "--compare", *two_models, "--votes", str(tmp_path / "votes.json")) as where:
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        opened.goto(where)
        for number in (1, 2):
            opened.wait_for_selector(f"#pair :text('Pair {number}')", timeout=60_000)
            assert opened.locator("#left img, #right img").count() == 2
            opened.click("#vote-left")
        opened.wait_for_selector("#pair :text('2 votes so far')", timeout=60_000)
        opened.click("#look")
        opened.wait_for_function("document.querySelector('#result textarea').value.includes('interval')")
        opened.close()


def test_the_page_is_for_this_machine_alone(served):
    address = socket.gethostbyname(socket.gethostname())
    if address.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(served.replace("127.0.0.1", address), timeout=5)


def test_codes_are_written_over_their_cells():
    picture = Image.new("L", (8, 8), 90)
    codes = np.array([[1, 23, 456], [7, 89, 511]])
    shown = over(picture, codes, (1, 2))
    assert shown.size == (3 * CELL, 2 * CELL)
    pixels = np.asarray(shown).astype(int)
    for row in range(2):
        for column in range(3):
            cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            assert cell.max() > 200  # a number stands in it
    assert tuple(pixels[CELL + 1, 2 * CELL + CELL // 2]) == (255, 64, 64)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--model", "nowhere"), 3, "nowhere does not exist"),
        (("--model", "MODEL", "--port", "70000"), 2, "port must be between"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(words, code, text, tiny_model, capsys):
    assert main(["app", *[word.replace("MODEL", str(tiny_model)) for word in words]]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]
