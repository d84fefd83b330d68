"""The report: one file that shows a run, whatever of it is there, and fetches nothing."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_vqvae.modalities.pictures.values import to_pixels
from stage1_vqvae.modalities.sheets import picture_grid, pictures_of_sheet, png_bytes
from stage1_vqvae.model import VQVAE
from stage2_prior.likelihood import score_codes
from vq_prior.cli import main
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.judge.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart
from vq_prior.judge.progress import read_training
from vq_prior.model.pipeline import VQPriorPipeline

VOID = ("meta", "link", "img", "polyline", "circle")


class Page(HTMLParser):
    """What a page holds: tags with their attributes, headings, and the first words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.folded: list[str] = []
        self.classes: dict[str, list[str]] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class")))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self._open or not data.strip():
            return
        tag, kind = self._open[-1]
        self.headings += [data] if tag == "h2" else []
        self.folded += [data] if tag == "summary" else []
        if kind:
            self.classes.setdefault(kind, []).append(data)

    def pictures(self) -> list[tuple[np.ndarray, dict[str, int]]]:
        """Every picture: its pixels, and the numbers of its style."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                file = io.BytesIO(base64.b64decode((attributes["src"] or "").partition(",")[2]))
                style = re.findall(r"--([\w-]+):(\d+)", attributes["style"] or "")
                found.append((np.asarray(Image.open(file)), {name: int(number) for name, number in style}))
        return found


def written(run: Path, *words: str) -> str:
    assert main(["report", str(run), *words]) == 0
    return (run / "report.html").read_text()


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return written(run)


def test_the_page_opens_with_a_verdict_and_pictures_and_fetches_nothing(page: str, run: Path) -> None:
    seen = Page(page)
    assert seen.headings == [
        "Samples",
        "Reconstructions",
        "Figures",
        "Stage one: images to codes and back",
        "Stage two: which grids of codes are likely",
        "Codebook atlas",
        "Completions",
    ]
    outer = [words for words in seen.folded if words in ("Every other curve", "Every number", "Configuration")]
    assert outer == ["Every other curve", "Every number", "Configuration"]  # tables of keys come last, folded
    assert page.index("Completions</h2>") < page.index("levels.0.usage")
    (verdict,) = seen.classes["verdict"]
    assert page.index(verdict) < page.index("<img") < page.index("<table")
    assert "nats per token" in verdict
    assert "not measured" in verdict  # nobody ran evaluate
    assert "status" not in seen.classes
    assert 'http-equiv="refresh"' not in page
    for _, attributes in seen.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "<script" not in page
    assert "url(" not in page
    assert str(run.parent) not in page


def test_digits_of_eight_pixels_are_well_visible_and_a_click_shows_them_larger(page: str) -> None:
    seen = Page(page)
    pictures = seen.pictures()
    samples, pairs = pictures[:40], pictures[40:80]
    for pixels, shown in [*samples, *pairs]:
        assert shown["w"] == shown["h"] == 96  # whole times 8, and of the 32 in a sheet of training
        assert shown["large-w"] == shown["large-h"] >= 512  # the two of a pair stand side by side
        assert shown["large-w"] % pixels.shape[1] == 0
        assert pixels.shape[0] in (8, 32)
        assert len(np.unique(pixels)) > 2
    assert "image-rendering: pixelated" in page
    assert seen.classes["label"][:11] == [
        *["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero"]
    ]


def test_a_sample_is_the_one_that_generate_draws_and_its_likelihood_is_the_priors(page: str, run: Path) -> None:
    pipe = VQPriorPipeline.from_pretrained(run / "model")
    drawn = pipe(40, seed=0, output_type="pt")
    scores = score_codes(pipe.prior, drawn.codes, torch.tensor(drawn.labels)).nats_per_token
    pixels = to_pixels(drawn.drawn)[..., 0]
    seen = Page(page)
    for number in (0, 7, 39):
        assert np.array_equal(seen.pictures()[number][0], pixels[number])
        assert f"seed 0, sample {number}: {float(scores[number]):.3f} nats per token" in seen.classes["about"]


def test_a_pair_is_a_held_out_image_above_its_reconstruction_and_tells_its_psnr(page: str, run: Path) -> None:
    seen = Page(page)
    sheet = np.asarray(Image.open(max((run / "vqvae-training" / "images").glob("*.png"))))
    original, copy = (pixels for pixels, _ in seen.pictures()[40:42])
    assert np.array_equal(sheet[2:34, 2:34], original)
    assert np.array_equal(sheet[36:68, 2:34], copy)
    error = np.mean((original.astype(float) - copy.astype(float)) ** 2)
    assert f"{10 * math.log10(255**2 / error):.1f} dB" == seen.classes["label"][40]


def test_the_atlas_draws_the_most_used_code_first(page: str, run: Path) -> None:
    store, codec = CodeStore.open(run / "codes"), VQVAE.from_pretrained(run / "vqvae")
    codes = store.rows(np.arange(len(store)))["codes.0"]
    most = int(np.bincount(codes.reshape(-1)).argmax())
    alone = to_pixels(codec.decode((torch.full((1, 4, 4), most),)))[0, 2:6, 2:6, 0]
    grid = Page(page).pictures()[80][0]
    assert np.array_equal(grid[2:34:8, 2:34:8], alone)


def test_the_same_run_gives_the_same_page(page: str, run: Path) -> None:
    assert written(run) == page


def early(run: Path, folder: Path, lines: str) -> Path:
    """A RUN whose codec is being trained: a log and a picture, and no part that is finished."""
    training = Path(shutil.copytree(run / "vqvae-training", folder / "vqvae-training"))
    (training / "metrics.jsonl").write_text(lines)
    return folder


def test_a_run_that_is_trained_shows_its_newest_picture_and_the_time_left(tiny_run: Path, tmp_path: Path) -> None:
    lines = [{"step": n, "reconstruction": 0.5 / n, "usage": 0.1 * n, "elapsed_seconds": 7.0 * n} for n in (1, 2, 5)]
    run = early(tiny_run, tmp_path / "early", "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "rec')
    page = written(run)
    seen = Page(page)
    assert seen.headings == ["Reconstructions", "Figures", "Stage one: images to codes and back"]
    (status,) = seen.classes["status"]
    assert "step 5 of 30, about 2:55 min left" in status  # 25 steps of 7 seconds
    assert re.search(r'<meta http-equiv="refresh" content="\d+">', page)
    assert "Nothing can be told yet" in seen.classes["verdict"][0]
    ((pixels, shown),) = seen.pictures()
    assert np.array_equal(pixels, np.asarray(Image.open(max((run / "vqvae-training" / "images").glob("*.png")))))
    assert shown["w"] % pixels.shape[1] == 0
    assert shown["w"] > 1000


def test_the_time_left_is_of_the_process_that_trains_now(tiny_run: Path, tmp_path: Path) -> None:
    before = [{"step": 10, "reconstruction": 1, "elapsed_seconds": 1000.0}]
    now = [{"step": n, "reconstruction": 1, "elapsed_seconds": 2.0 * (n - 10)} for n in (15, 20)]
    run = early(tiny_run, tmp_path / "early", "".join(json.dumps(line) + "\n" for line in [*before, *now]))
    training = read_training(run, "codec")
    assert training is not None
    assert training.seconds_left() == pytest.approx(20.0)  # ten steps more
    assert training.seconds() == pytest.approx(1020.0)


def test_a_run_that_is_followed_is_written_until_it_is_whole(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = early(tiny_run, tmp_path / "run", '{"step": 5, "reconstruction": 0.5, "elapsed_seconds": 1.0}\n')
    pages, parts = [], ["vqvae-training", "vqvae", "codes", "prior-training", "prior", "model"]

    def go_on(_seconds: float) -> None:
        """Let the training come to its next part while the page waits."""
        pages.append((run / "report.html").read_text())
        part = parts.pop(0)
        shutil.copytree(tiny_run / part, run / part, dirs_exist_ok=True)

    monkeypatch.setattr("vq_prior.judge.report.time.sleep", go_on)
    last = written(run, "--follow")
    assert len(pages) == 6
    assert "step 5 of 30" in pages[0]
    assert "being measured" in pages[1]
    assert "There is no prior yet" in pages[2]
    assert "is whole" in capsys.readouterr().out
    assert last == written(run)


def test_evaluation_and_names_are_shown_as_they_are(run: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(run, tmp_path / "<b>run & co"))
    codec_id = json.loads((run / "model" / "config.json").read_text())["codec_id"]
    found = {
        "codec_id": codec_id,
        "codec": {"psnr": 21.5},
        "levels": [{"usage": 0.25}],
        "error_budget": {"fid": 10.0, "rfid": 8.0, "fid_less_rfid": 2.0},
        "held_out": {"fid": 1.0},
    }
    (odd / "evaluation.json").write_text(json.dumps(found))
    page = written(odd)
    assert "&lt;b&gt;run &amp; co" in page
    assert "<b>" not in page
    assert re.search(r"<th scope=\"row\">codec.psnr</th><td>21.5</td>", page)
    assert re.search(r"<th scope=\"row\">levels.0.usage</th><td>0.25</td><td>share of the codes", page)
    assert "What limits the samples is the codec (FID 10, " in page
    (odd / "evaluation.json").write_text(json.dumps(found | {"codec_id": "of another"}))
    page = written(odd)
    assert "What limits the samples is the codec" not in page
    assert "counts for nothing here" in page


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


def points_of(svg: str, kind: str) -> list[list[tuple[float, ...]]]:
    lines = re.findall(rf'class="{kind}" points="([^"]+)"', svg)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_a_chart_puts_points_where_they_belong_and_names_baselines_at_their_lines() -> None:
    chart = line_chart("t", {"a": [(0, 0.0), (10, 5.0)], "b": [(0, float("nan"))]}, levels={"flat": 2.5}, unit="nats")
    assert chart is not None
    (line,), (flat,) = points_of(chart.svg, "line c1"), points_of(chart.svg, "line level")
    assert line[0] == (LEFT, HEIGHT - BOTTOM)  # the corner where both axes begin
    assert line[-1] == (WIDTH - RIGHT, TOP)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    assert flat[0][1] == flat[1][1] == pytest.approx(middle)
    assert re.search(
        rf'<text class="named" x="{WIDTH - RIGHT:.1f}" y="{middle - 5:.1f}"[^>]*>flat 2.5</text>', chart.svg
    )
    assert chart.legend == (("a", "5", 1),)
    assert ">nats</text>" in chart.svg
    assert ">optimiser steps</text>" in chart.svg
    assert line_chart("nothing", {"a": [(0, float("inf"))]}) is None


def test_names_of_baselines_that_lie_close_do_not_cover_each_other() -> None:
    chart = line_chart("t", {"a": [(0, 1.0), (9000, 5.0)]}, levels={"low": 3.0, "high": 3.01, "top": 3.02})
    assert chart is not None
    heights = {name: float(y) for y, name in re.findall(r'"named" x="[\d.]+" y="([\d.]+)"[^>]*>(\w+) ', chart.svg)}
    assert heights["top"] > heights["high"] > heights["low"] or heights["top"] < heights["high"] < heights["low"]
    ordered = sorted(heights.values())
    assert all(after - before >= 14 for before, after in pairwise(ordered))
    assert ">8k</text>" in chart.svg


def test_numbers_over_powers_of_ten_are_drawn_by_powers() -> None:
    chart = line_chart("t", {"a": [(0, 1.0), (1, 0.1), (2, 0.01)]}, unit="loss")
    assert chart is not None
    ((first, second, third, *_),) = points_of(chart.svg, "line c1")
    assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.2)
    assert "by powers" in chart.svg


def test_a_sheet_is_taken_apart_as_it_was_drawn() -> None:
    pixels = np.random.default_rng(0).integers(0, 250, size=(11, 40, 33, 3), dtype=np.uint8)
    sheet = png_bytes(picture_grid(pixels, columns=4))
    found = pictures_of_sheet(sheet, columns=4, rows=3)
    assert found is not None
    assert np.array_equal(found[:11], pixels)
    assert pictures_of_sheet(sheet, columns=4, rows=2) is None
    assert pictures_of_sheet(sheet, columns=3, rows=3) is None
