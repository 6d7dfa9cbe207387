"""Run the notebooks at their full length, in their order, and store their outputs in them.

python docs/run_notebooks.py [NAME ...]     with names, such as 2-guidance: these alone

Models and pictures go to build/notebooks. What is written to stderr, such as progress bars, is left out; the other
outputs are stored as they came. Needs nbclient and ipykernel.
"""

import os
import sys
import time
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
FOLDER = ROOT / "build" / "notebooks"
LONGEST = 4 * 3600  # seconds of one cell


def run(path: Path) -> float:
    """Execute a notebook in build/notebooks and store its outputs in it; return the minutes that it took."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(FOLDER)}}
    began = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=LONGEST, resources=resources).execute()
    minutes = (time.monotonic() - began) / 60
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path)
    return minutes


def main(names: list[str]) -> None:
    """Run the notebooks of the given names, or all."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            sys.stdout.write(f"{path.stem}: {run(path):.1f} minutes\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
