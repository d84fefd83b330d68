"""What the README and the guides tell a reader to type is accepted, and what they show in Python runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from vq_prior.cli import parse
from vq_prior.core.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<marks>(?:^<!--[^\n]*-->\n+)?)^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL
)


def blocks(language: str) -> list[tuple[str, str, str]]:
    """(page, mark, body) of every fenced block in a language."""
    return [
        (page.name, match["marks"].strip(), match["body"])
        for page in PAGES
        for match in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if match["language"] == language
    ]


def command_lines() -> list[str]:
    """Every line that starts with `vq-prior`, joined over backslashes."""
    lines = []
    for _, _, body in blocks("bash"):
        joined = re.sub(r"\\\n\s*", " ", body)
        lines += [line.strip() for line in joined.splitlines() if line.strip().startswith("vq-prior ")]
    return sorted(set(lines))


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("line", command_lines())
def test_a_command_that_the_pages_show_is_accepted_by_the_parser(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = words_of(line)
    if "--config" in words:  # a page may show a file that only the reader has
        position = words.index("--config")
        del words[position : position + 2]
    try:
        parse(words)
    except SystemExit as stop:
        assert stop.code == 0  # noqa: PT017 -- `--help` prints and leaves
        assert capsys.readouterr().out


def test_the_pages_show_the_commands_of_the_whole_road():
    shown = {words_of(line)[0] for line in command_lines()}
    assert {"train-vqvae", "extract-codes", "train-prior", "generate"} <= shown


@pytest.mark.parametrize(
    "line", ["vq-prior genrate --model x", "vq-prior generate --modle x --out y", "vq-prior env 3"]
)
def test_a_command_with_a_slip_would_be_found(line):
    with pytest.raises(UsageError):
        parse(words_of(line))


RUNNABLE = [(page, body) for page, mark, body in blocks("python") if mark == "<!-- run -->"]


@pytest.mark.parametrize(("page", "body"), RUNNABLE, ids=[f"{page}-{n}" for n, (page, _) in enumerate(RUNNABLE)])
def test_python_that_the_pages_show_runs_as_written(page, body, tmp_path, tiny_run, warm):
    shutil.copytree(tiny_run, tmp_path / "runs" / "quickstart")
    done = warm.run(body, cwd=tmp_path)
    assert done.returncode == 0, f"{page}:\n{body}\n{done.stderr}"


def test_the_pages_show_python_that_is_run():
    assert RUNNABLE


LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page may end in, as a forge makes it of the heading."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_and_pictures_lead_somewhere(page):
    wrong = []
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        path, _, fragment = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (fragment and there.suffix == ".md" and fragment not in anchors(there)):
            wrong.append(target)
    assert wrong == []


def test_readme_and_design_stay_short():
    design = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8").splitlines()
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert len(design) <= 150
    assert max(map(len, design)) <= 120
