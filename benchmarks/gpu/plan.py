"""Run sections of the GPU plan, each in a process of its own with a limit of time, and store their figures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import typer

from benchmarks.gpu import faces, sizes
from benchmarks.gpu.timing import Figures

SECTIONS: Mapping[str, int] = {  # name -> seconds after which it is killed
    **{"tests": 150, "peak": 40, "stage2": 150, "stage1": 90, "sampling": 90, "faces": 240},
    **{"settings": 120, "profile": 90},
}
REHEARSAL = 5  # a CPU may take as many times as long


class Results:
    """The file gpu.json of a folder, with the figures of each section by name."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.path = out, out / "gpu.json"

    def read(self) -> dict[str, Figures]:
        """Return the figures of each section that has run."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def write(self, name: str, figures: Figures) -> None:
        """Store a section's figures."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self.read(), name: figures}, indent=1), encoding="utf-8")
        temporary.replace(self.path)


@dataclass(frozen=True)
class Plan:
    """How sections are run: where, at which sizes, and for how long."""

    results: Results  # where figures are stored
    work: Path  # folder of models, runs and caches
    rehearse: bool = False  # whether sizes are tiny, on the CPU
    minutes: float = 8.0  # no section starts later than this
    only: tuple[str, ...] = ()  # names of the variants that are measured; empty: all

    @property
    def sizes(self) -> sizes.Sizes:
        """Tiny sizes on the CPU, or full ones on the GPU."""
        chosen = sizes.tiny(torch.device("cpu")) if self.rehearse else sizes.full(torch.device("cuda", 0))
        return replace(chosen, only=self.only)

    def run(self, wanted: Sequence[str], resume: bool) -> None:
        """Run sections in order, and store why one failed; the faces are rendered beside those that come first.

        Args:
            wanted: names of the sections.
            resume: whether to leave out those that have succeeded before.
        """
        began, done = time.monotonic(), self.results.read() if resume else {}
        missing = [name for name in wanted if "error" in done.get(name, {"error": "not run"})]
        os.environ.setdefault("LDM_KIT_CACHE", str(self.work / "cache"))
        rendering = faces.start_rendering(self.sizes, self.results.out / "render.log") if "faces" in missing else None
        for name in missing:
            if time.monotonic() - began > 60 * self.minutes:
                self.results.write(name, {"error": f"not started: {self.minutes:g} minutes were over"})
                continue
            if name == "faces" and rendering is not None:
                rendering.wait()
            typer.echo(f"=== {name} (at {time.monotonic() - began:.0f} s)")
            self.run_section(name, SECTIONS[name] * (REHEARSAL if self.rehearse else 1))
        if rendering is not None:
            rendering.kill()

    def run_section(self, name: str, limit: float) -> None:
        """Run a section in its own process, and store its figures, or why it has none; `limit` is in seconds."""
        out, began = self.results.out, time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu.section", name, "--out", str(out), "--work", str(self.work)]
        with (out / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *(f"--only={name}" for name in self.only), *(["--rehearse"] if self.rehearse else [])],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it can be killed with all that it has started
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self.results.write(name, {"error": f"took longer than {limit:g} s"})
                return
        if status:
            tail = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:]
            self.results.write(name, {"error": f"exit status {status}", "log": tail})
        else:
            self.results.write(name, {**self.results.read()[name], "wall": time.monotonic() - began})
