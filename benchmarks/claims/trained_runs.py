"""The runs of configs/benchmarks, which several tables measure; each is trained when a table first needs it."""

import subprocess
import sys
from collections.abc import Sequence

import typer

from benchmarks import kit


def train_missing(names: Sequence[str]) -> None:
    """Train those of the configs `names` in configs/benchmarks, in order, that have no model in runs/benchmarks yet.

    Raises:
        typer.Exit: a training has failed; the exit status is that of the training script.
    """
    for name in names:
        if not (kit.RUNS / name / "model").exists():
            script = "train_ae.py" if name == "ae" else "train_ldm.py"
            done = subprocess.run([sys.executable, script, f"configs/benchmarks/{name}.yaml"], check=False)
            if done.returncode:
                raise typer.Exit(done.returncode)
