"""The notebooks run from top to bottom in kernels of their own, over the studies beside them."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from analysis.api import load

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "analysis" / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
STUDIES = sorted((FOLDER / "studies").iterdir())


def shown(cell):
    """The text and the kinds of what a cell has shown."""
    parts = [output.get("data", {}) for output in cell.outputs]
    text = [output.get("text", "") for output in cell.outputs]
    text += [each.get("text/markdown", each.get("text/plain", "")) for each in parts]
    return "".join(text), {kind for each in parts for kind in each}


@pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom_and_every_cell_shows_something(book, tmp_path):
    notebook = nbformat.read(book, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 3 <= len(code) <= 8
    assert not any(cell.outputs or cell.execution_count for cell in code)  # they go stale, and swell diffs
    paths = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)}
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=os.environ | paths)  # raises what a cell raises
    for cell in code:
        text, kinds = shown(cell)
        assert kinds, cell.source
        assert "Warning" not in text
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.source
    study = load(FOLDER / re.search(r'load\("(studies/\w+)"\)', code[0].source)[1])
    value = f"{study.configs.loc[0, 'test_objective']:.3f}"
    assert any(value in shown(cell)[0] for cell in code)
    assert any("image/png" in shown(cell)[1] for cell in code) or book.stem == "first_look"


@pytest.mark.parametrize("run", STUDIES, ids=lambda path: path.name)
def test_study_beside_the_notebooks_is_whole_small_and_tells_nothing_of_the_machine(run):
    study = load(run)
    planned = json.loads((run / "study.json").read_text())
    assert (study.trials["state"] == "COMPLETE").mean() > 0.8
    assert len(study.trials) == study.findings.results.runs[0].num_planned >= 8
    assert study.trials["commit"].nunique() == 1
    assert set(study.trials["host"]) == {"host"}
    assert planned["space"] == run.name
    assert f"| `{run.name}` |" in (FOLDER / "README.md").read_text()
    text = (run / "study.json").read_text() + (run / "manifest.json").read_text()
    assert not re.search(r'"/|/(home|root|tmp|Users)/', text)


def test_studies_beside_the_notebooks_are_small():
    size = sum(path.stat().st_size for path in (FOLDER / "studies").rglob("*") if path.is_file())
    assert size < 1e6
