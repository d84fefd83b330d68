"""The report: one file that shows a run, whatever of it is there, and fetches nothing."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_vqvae.modalities.pictures.values import to_pixels
from stage1_vqvae.model import VQVAE
from vq_prior.cli import main
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.judge.chart import line_chart


class Page(HTMLParser):
    """What a page holds: tags with their attributes, and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "polyline", "circle"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("polyline", "circle"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def written(run: Path) -> str:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text()


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return written(run)


def test_the_page_shows_both_stages_and_fetches_nothing(page: str, run: Path) -> None:
    seen = Page(page)
    assert seen.headings == [
        "What was measured",
        "Stage one: images to codes and back",
        "Codebook atlas",
        "Stage two: which grids of codes are likely",
        "Samples",
        "Completions",
        "Configuration",
    ]
    for _, attributes in seen.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "<script" not in page
    assert "url(" not in page
    assert str(run.parent) not in page
    pictures = [attributes for tag, attributes in seen.tags if tag == "img"]
    assert len(pictures) == 4
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode((picture["src"] or "").partition(",")[2])))
        assert (str(image.width), str(image.height)) == (picture["width"], picture["height"])
        assert len(np.unique(np.asarray(image))) > 2


def test_the_atlas_draws_the_most_used_code_first(page: str, run: Path) -> None:
    store, codec = CodeStore.open(run / "codes"), VQVAE.from_pretrained(run / "vqvae")
    codes = store.rows(np.arange(len(store)))["codes.0"]
    most = int(np.bincount(codes.reshape(-1)).argmax())
    alone = to_pixels(codec.decode((torch.full((1, 4, 4), most),)))[0, 2:6, 2:6, 0]
    pictures = [attributes["src"] or "" for tag, attributes in Page(page).tags if tag == "img"]
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[1].partition(",")[2]))))
    assert np.array_equal(grid[2:34:8, 2:34:8], alone)


def test_the_same_run_gives_the_same_page(page: str, run: Path) -> None:
    assert written(run) == page


def test_what_is_not_there_yet_is_left_out_and_said(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "vqvae-training", tmp_path / "early" / "vqvae-training")
    (tmp_path / "early" / "vqvae-training" / "metrics.jsonl").write_text(
        '{"step": 1, "reconstruction": 0.5, "elapsed_seconds": 1.0}\n{"step": 2, "recon'
    )
    page = written(tmp_path / "early")
    assert Page(page).headings == ["What was measured", "Stage one: images to codes and back", "Configuration"]
    assert "Not finished yet: vqvae, prior." in page


def test_evaluation_and_names_are_shown_as_they_are(run: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(run, tmp_path / "<b>run & co"))
    (odd / "evaluation.json").write_text(json.dumps({"codec": {"psnr": 21.5}, "levels": [{"usage": 0.25}]}))
    page = written(odd)
    assert "&lt;b&gt;run &amp; co" in page
    assert "<b>" not in page
    assert re.search(r"<th scope=\"row\">codec.psnr</th><td>21.5</td>", page)
    assert re.search(r"<th scope=\"row\">levels.0.usage</th><td>0.25</td>", page)


def console(page: Path, picture: Path) -> list[str]:
    """Return what a page says on the console of a browser that opens it from disk, and keep a picture of it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,3000"]
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={picture.parent / 'profile'}", f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_opens_it_from_disk_without_a_word_on_its_console(page: str, run: Path, tmp_path: Path) -> None:
    assert page
    assert console(run / "report.html", tmp_path / "shot.png") == []
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    assert shot.shape == (3000, 1200, 3)
    assert len(np.unique(shot.reshape(-1, 3)[::7], axis=0)) > 50
    (tmp_path / "wrong.html").write_text("<img src='nowhere.png'><script>console.error('seen')</script>")
    assert any("seen" in line for line in console(tmp_path / "wrong.html", tmp_path / "wrong.png"))


def test_no_run_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 3
    assert "is not a RUN" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 3
    assert not (tmp_path / "report.html").exists()


def test_a_chart_puts_points_where_they_belong() -> None:
    chart = line_chart("t", {"a": [(0, 0.0), (10, 5.0)], "b": [(0, float("nan"))]}, levels={"flat": 2.5})
    assert chart is not None
    lines = re.findall(r'class="line[^"]*" points="([^"]+)"', chart.svg)
    first, flat = ([tuple(map(float, point.split(","))) for point in line.split()] for line in lines)
    assert first[0] == (56.0, 220.0)  # the corner where both axes begin
    assert first[-1] == (548.0, 12.0)
    assert flat[0][1] == flat[1][1] == pytest.approx(116.0)  # half way up
    assert chart.legend == (("a", "5", 1), ("flat", "2.5", 2))
    assert line_chart("nothing", {"a": [(0, float("inf"))]}) is None
