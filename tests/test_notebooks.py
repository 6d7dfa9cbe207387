"""The notebooks of docs/notebooks run from top to bottom, one after the other, with the steps of seconds."""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SHORT = {
    "AE_STEPS": 4, "STEPS": 4, "COUNT": 300, "SAMPLES": 8, "EPOCHS": 1, "INVERT_STEPS": 4,
}  # fmt: skip


def short(notebook):
    """The notebook with short trainings: each parameter of its cell `parameters` replaced."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = re.findall(r"[A-Z_]+(?=[,\s=])", cell.source.split("#")[0].replace("\n", " "))
    assert names
    cell.source += "\n" + "\n".join(
        f"{name} = {SHORT[name]}" for name in SHORT if re.search(rf"\b{name}\b", cell.source)
    )
    return notebook


def test_the_four_notebooks_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    assert [path.stem for path in NOTEBOOKS] == ["1-train", "2-guidance", "3-editing", "4-few-steps"]
    for path in NOTEBOOKS:
        notebook = short(nbformat.read(path, as_version=4))
        client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()  # raises CellExecutionError, with the traceback, if a cell fails
        shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in shown), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_name_no_machine_and_hold_no_error(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"/(?:home|root|tmp|work|Users)/", text)
    assert len(text) < 600_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_notebooks_lead_somewhere(path):
    notebook = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    targets = [target for text in texts for target in re.findall(r"\]\(([^)\s#]+)", text)]
    assert targets
    assert not [target for target in targets if not (path.parent / target).exists()]
