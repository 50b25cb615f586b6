"""The tour: the committed notebook is its script, was run to the end, and still runs.

To make it (what a progress bar prints is joined to one line), in the repository's folder:

    python -c "import jupytext as j; from nbclient import NotebookClient as N; \
        n = j.read('docs/tour.py'); N(n, coalesce_streams=True).execute(); \
        j.write(n, 'docs/tour.ipynb')"
"""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, NOTEBOOK = ROOT / "docs" / "tour.py", ROOT / "docs" / "tour.ipynb"


def test_the_notebook_is_its_script_run_to_the_end():
    notebook, script = nbformat.read(NOTEBOOK, 4), jupytext.read(SCRIPT)
    ours, theirs = ([(cell.cell_type, cell.source) for cell in x.cells] for x in (notebook, script))
    assert ours == theirs
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output.get("data", {}).get("image/png", "") for output in outputs]
    assert sum(map(bool, pictures)) >= 6
    assert sum(picture.startswith("R0lGOD") for picture in pictures) == 1  # a GIF: the dream
    printed = [output.text for output in outputs if output.output_type == "stream"]
    assert sum("step/s" in text for text in printed) == 1  # the bar, joined to one line
    assert NOTEBOOK.stat().st_size < 1_500_000


@pytest.mark.scripts
def test_the_tour_runs_with_a_tiny_budget(monkeypatch):
    monkeypatch.setenv("TOUR_STEPS", "300")
    notebook = jupytext.read(SCRIPT)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT / "docs"}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "by hand:       [3.52, 2.0, 11.2]" in printed
    assert "lambda_return: [3.52, 2.0, 11.2]" in printed
    assert "on 2 fresh episodes" in printed
