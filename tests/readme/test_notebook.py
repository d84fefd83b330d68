"""The notebook runs from top to bottom on a CPU, in minutes, and shows pictures."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from warm import BRIEFLY, Warm

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"
REPOSITORY = NOTEBOOK.parents[1]
NEEDS_PICTURE = {"reconstructions", "pipeline", "labels", "look"}


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs_in_format_four(notebook):
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


def test_it_runs_from_top_to_bottom_as_written(notebook, tmp_path, child_environment):
    with Warm(child_environment(), tmp_path, BRIEFLY) as warm:
        shown = run_in(tmp_path / "reader", notebook, warm, child_environment)
    for cell, text in shown.items():
        assert "error:" not in text, f"{cell}: {text}"  # a command that fails does not stop a notebook
    assert {cell for cell, text in shown.items() if "image/png" in text} == NEEDS_PICTURE
    assert "next: vq-prior generate" in shown["train-prior"]


def run_in(folder, notebook, warm, child_environment):
    """Return what each cell of code shows, by its id."""
    environment = child_environment(
        PATH=os.pathsep.join([str(warm.shim()), os.environ["PATH"]]),
        PYTHONPATH=os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        IPYTHONDIR=str(folder / "ipython"),
        PYDEVD_DISABLE_FILE_VALIDATION="1",
    )
    folder.mkdir()
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    ran = client.execute(env=environment)
    return {
        cell.id: "".join(output.get("text", "") + "".join(output.get("data", {})) for output in cell.outputs)
        for cell in ran.cells
        if cell.cell_type == "code"
    }
