"""Train a text-to-image model of 128 px faces with the scripts, and judge it as the demo's is judged.

python -m torch.distributed.run --nproc_per_node 12 -m benchmarks.gpu.faces      renders the faces, on many cores
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.sizes import FACES_1, FACES_2, Sizes
from benchmarks.gpu.timing import Figures
from ldm_kit.data import sources
from ldm_kit.data.peers import shared_by
from ldm_kit.methods import read_run
from ldm_kit.metrics.factor_reader import ReaderConfig
from ldm_kit.models.factor_readers import training_pictures

OUTPUTS = ("sheet.png", "demo.json")


class Gloo:
    """All processes of torch.distributed as a group that shares work."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """Number of processes."""
        return dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def render(overrides: list[str]) -> None:
    """Render, with the other processes, the faces of the config with `overrides` and those of their reader."""
    dist.init_process_group("gloo")
    data = read_run(FACES_2, overrides).data
    with shared_by(Gloo(), Gloo()):
        training_pictures(data, sources.load(data), ReaderConfig()).load()
    dist.destroy_process_group()


def start_rendering(sizes: Sizes, log: Path) -> subprocess.Popen[bytes]:
    """Start to render the faces in many processes beside other sections; return the launcher's process."""
    count = str(max(1, (os.cpu_count() or 2) - 4)) if sizes.device.type == "cuda" else "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", count, "-m", "benchmarks.gpu.faces"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen([*command, *sizes.faces], env=hidden, stdout=file, stderr=subprocess.STDOUT)


def faces(sizes: Sizes, folder: Path, out: Path) -> Figures:
    """Train both stages and judge them; return seconds, rates and the demo's figures, and copy its sheet to `out`.

    Raises:
        RuntimeError: a script has failed; the message holds the end of its output.
    """
    ae, ldm = folder / "faces_ae", folder / "faces_ldm"
    commands = {
        "stage 1": ("train_ae.py", str(FACES_1), f"run={ae}", *sizes.faces, *sizes.faces_1),
        "stage 2": ("train_ldm.py", str(FACES_2), f"run={ldm}", f"autoencoder={ae}", *sizes.faces, *sizes.faces_2),
        "judging": ("-m", "ldm_kit.demo", "--measure", str(ldm), "--prompts", str(sizes.prompts)),
    }
    times, printed = {}, ""
    for name, command in commands.items():
        times[name], printed = _run(*command)
    for name in OUTPUTS:
        (out / name).write_bytes((ldm / "pictures" / name).read_bytes())
    logs = {"stage 1": _metrics(ae), "stage 2": _metrics(ldm)}
    return {"seconds": times, "text": printed, "metrics": logs}


def _run(*command: str) -> tuple[float, str]:
    """Run a Python script, and return its seconds and what it printed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    print(done.stdout[-3000:], done.stderr[-1500:], flush=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-1500:]}")
    return time.perf_counter() - began, done.stdout


def _metrics(run: Path) -> list[Figures]:
    """Return the last lines of a run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[-3:]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    render(sys.argv[1:])
