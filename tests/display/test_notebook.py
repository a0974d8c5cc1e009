"""The tutorial notebook runs, and shows what it says."""

import json
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


WATCH = """
import json, sys, nbformat
from nbclient import NotebookClient

class Watching(NotebookClient):
    seen = []
    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data", "stream", "error", "comm_open"):
            self.seen.append([msg["msg_type"], msg["content"].get("data") or msg["content"]])
        return super().process_message(msg, cell, cell_index)

cells = [nbformat.v4.new_code_cell(source) for source in json.loads(sys.argv[1])]
book = nbformat.v4.new_notebook(cells=cells)
client = Watching(book, timeout=60, kernel_name="python3")
client.execute()
print(json.dumps({"seen": client.seen, "left": [output for cell in book.cells for output in cell.outputs]}))
"""
WIDGETS = {"with widgets": "import ipywidgets", "without widgets": "import sys; sys.modules['ipywidgets'] = None"}
MEASURE = """
import warnings
import pytest_induction as pi, pytest_induction.progress as progress
warnings.simplefilter("error")
model = pi.load_model("fixtures/models/llama-2l")
progress.DELAY = 0.0  # as if all of it had lasted
scores = pi.measure_heads(model, seed=0)
"""


def watched(*cells):
    """Every message of a kernel that runs these cells, and what is left below them; or the last lines of what went wrong."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_INDUCTION_PROGRESS"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCH, json.dumps(cells)],
        env={**environment, "PYTHONPATH": str(ROOT / "src")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.exhaustive  # it starts a kernel
@pytest.mark.parametrize("widgets", WIDGETS)
def test_a_measurement_shows_a_bar_below_its_cell(widgets):
    """With widgets and without, the same one; it is gone in the end, and nothing is warned of."""
    for name in ("nbclient", "ipykernel", *(["ipywidgets"] if widgets == "with widgets" else [])):
        pytest.importorskip(name)
    found = watched(WIDGETS[widgets], MEASURE)
    bars = [content for kind, content in found["seen"] if kind in ("display_data", "update_display_data")]
    assert '<progress value="' in bars[0]["text/html"] and " rows" in bars[0]["text/plain"]
    assert bars[-1]["text/html"] == ""
    assert [kind for kind, _ in found["seen"]] == ["display_data", *["update_display_data"] * (len(bars) - 1)]
    assert [output["data"]["text/html"] for output in found["left"]] == [""]


@pytest.mark.exhaustive  # as above
def test_what_a_cell_writes_to_standard_error_is_seen():
    """The guard can fail: a warning would be among the messages."""
    pytest.importorskip("nbclient")
    found = watched("import warnings; warnings.warn('a widget is missing')")
    assert [kind for kind, _ in found["seen"]] == ["stream"] and "a widget is missing" in found["seen"][0][1]["text"]


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
