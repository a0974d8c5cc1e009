"""The tutorial notebook runs, and shows what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "notebooks" / "tutorial.py"
RUN = """
import sys, jupytext, nbformat
from nbclient import NotebookClient
book = jupytext.read(sys.argv[1])
NotebookClient(book, timeout=240, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(book, sys.argv[3])
"""


def executed(path, to):
    """The notebook, run in a kernel of its own, or the last lines of what went wrong."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTEST_INDUCTION_PROGRESS": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(path), str(ROOT), str(to)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        return None, done.stderr
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(to, as_version=4), ""


@pytest.mark.exhaustive  # it starts a kernel, and measures all that it shows
def test_the_tutorial_runs_and_shows_records(tmp_path):
    for name in ("jupytext", "nbclient", "ipykernel", "pandas"):
        pytest.importorskip(name)
    book, problem = executed(TUTORIAL, tmp_path / "tutorial.ipynb")
    assert book is not None, problem[-2000:]
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = [output.data for cell in cells for output in cell.outputs if output.output_type == "execute_result"]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("pytest-induction" in page for page in pages) >= 6, "records and pictures"
    assert sum('class="dataframe"' in page for page in pages) >= 4
    text = "\n".join(data["text/plain"] for data in shown)
    assert "has_induction_head: SHOWN, passed" in text and "<Verdict.REFUTED" in text
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.exhaustive  # as above
def test_a_notebook_that_fails_is_told(tmp_path):
    """The guard can fail."""
    pytest.importorskip("nbclient")
    path = tmp_path / "broken.py"
    path.write_text("# %%\nimport pytest_induction\n\n# %%\npytest_induction.no_such_name\n")
    book, problem = executed(path, tmp_path / "broken.ipynb")
    assert book is None and "no_such_name" in problem
