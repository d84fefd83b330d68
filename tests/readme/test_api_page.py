"""docs/api.md names everything that is public, as its docstrings say it."""

import importlib.util
import re
from pathlib import Path

import pytest

import vq_prior

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
OURS = r"(?:vq_prior|stage1_vqvae|stage2_prior)"
SHOWN = sorted(
    {
        module
        for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "docs/notebook.ipynb"]
        for module in re.findall(rf"(?:from|import) ({OURS}(?:\.\w+)*)", page.read_text(encoding="utf-8"))
    }
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("api_page", REPOSITORY / "scripts" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_docstrings_say(script):
    assert script.page() == PAGE, "run `python scripts/api.py`"


@pytest.mark.parametrize("name", vq_prior.__all__)
def test_every_public_name_is_told(name):
    assert f"### `{name}`" in PAGE


@pytest.mark.parametrize("module", SHOWN)
def test_every_module_that_a_guide_shows_is_told(module):
    assert f"## `{module}`" in PAGE


def test_every_public_method_is_told(script):
    for name in set(vq_prior.__all__) - {"__version__"}:
        section = PAGE.partition(f"### `{name}`")[2].partition("\n### ")[0]
        for method in script.methods(getattr(vq_prior, name)):
            shown = "(" if method == "__call__" else f".{method}"
            assert f"- `{shown}" in section, f"{name}.{method}"
