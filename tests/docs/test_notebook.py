"""The notebook runs top to bottom, and lies in the repository without outputs."""

import ast
import os
import resource
import shutil
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

from edg.core.formats import read_clip, read_tags

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/sprites.ipynb"


def test_it_is_stored_without_outputs():
    book = nbformat.read(NOTEBOOK, 4)
    for cell in book.cells:
        assert cell.cell_type != "code" or (cell.outputs, cell.execution_count) == ([], None), cell.source


@pytest.fixture
def folder(tmp_path):
    """Where the notebook finds the prompts and weights, and may write."""
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "prompts/sprites", tmp_path / "prompts/sprites")
    shutil.copytree(ROOT / "edg/sprites/weights", tmp_path / "edg/sprites/weights")
    return tmp_path / "docs"


def seconds():
    """Of processor time that ended children took: what other programs take does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_it_runs_top_to_bottom(folder, monkeypatch):
    before = seconds()
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    book = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(book, timeout=500, resources={"metadata": {"path": str(folder)}}).execute()
    assert 1 < seconds() - before < 120, "it says: about a minute on two cores"
    shown = [
        output.get("data", {}).get("text/html", "")
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert sum(html.count("data:image/webp;base64,") for html in shown) == 8
    assert read_clip(folder / "circle.mp4").shape == (8, 32, 32, 3)
    assert read_tags(folder / "circle.mp4")["prompt"] == "a red circle moves right slowly"
    degrees = next(
        output.data["text/plain"]
        for cell in book.cells
        if "motion_degree" in cell.source
        for output in cell.outputs
    )
    values = list(ast.literal_eval(degrees).values())
    assert len(values) == 3 and np.all(np.array(values) > 0)
