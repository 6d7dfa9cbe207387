"""Run the GPU plan: tests, the device's peak, training and sampling beside diffusers, and a training to quality.

make gpu                                    all sections on this machine's GPU, eight minutes at most
python -m benchmarks.gpu stage2 sampling    two of them
python -m benchmarks.gpu --rehearse         tiny sizes on the CPU, to see that all works
python -m benchmarks.gpu --page             print nothing new: write gpu.json's figures into docs/results/gpu.md

Results are written to OUT/gpu.json after each section. A section that is already there is not run again, unless it is
named or has failed. Each section runs in a process of its own, which is killed when its time is over.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu import faces, sizes, tables
from benchmarks.gpu.timing import Figures
from benchmarks.tables import chosen, page_of, write_section
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError

SECTIONS = {
    "tests": 150,
    "peak": 40,
    "stage2": 120,
    "stage1": 90,
    "sampling": 90,
    "faces": 240,
    "settings": 120,
    "profile": 90,
}
TESTS = (
    "-m",
    "pytest",
    "-m",
    "gpu",
    "tests/gpu",
    "-q",
    "-rfE",
    "--tb=short",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:benchmark",
)


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(SECTIONS)}; all when left out")] = None,
    out: Annotated[Path, typer.Option(help="folder of gpu.json, logs and pictures")] = Path("runs/gpu/plan"),
    rehearse: Annotated[bool, typer.Option("--rehearse", help="tiny sizes on the CPU")] = False,
    minutes: Annotated[float, typer.Option(help="start no section after this time")] = 8.0,
    page: Annotated[
        bool, typer.Option("--page", help="write the figures of gpu.json into docs/results/gpu.md")
    ] = False,
    inside: Annotated[bool, typer.Option("--inside", hidden=True)] = False,
    work: Annotated[Path | None, typer.Option(help="folder of models and runs; default: a temporary one")] = None,
) -> None:
    """Run sections of the GPU plan, and print their tables."""
    with cli_errors():
        wanted, results = chosen(names, SECTIONS), Results(out)
        if page:
            write_section(page_of("gpu.md"), "gpu", tables.page(results.read()))
            return
        if not rehearse and not torch.cuda.is_available():
            raise UserError("no CUDA device is visible; add --rehearse to see the plan run on the CPU")
        if inside:
            run_inside(wanted[0], plan_sizes(rehearse), work or out, out, results)
            return
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            run_all(wanted, names is None or not names, work or Path(folder), rehearse, minutes, results)
        typer.echo(tables.page(results.read()))


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
        whole = {**self.read(), name: figures}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        temporary.replace(self.path)


def plan_sizes(rehearse: bool) -> sizes.Sizes:
    """Return the plan's sizes: tiny ones on the CPU, or full ones on the GPU."""
    return sizes.tiny(torch.device("cpu")) if rehearse else sizes.full(torch.device("cuda", 0))


def run_all(wanted: list[str], resume: bool, work: Path, rehearse: bool, minutes: float, results: Results) -> None:
    """Run sections in order, each in its own process with its own limit of time, and store why one failed.

    Args:
        wanted: names of the sections.
        resume: whether to leave out those that have succeeded before.
        work: folder of models, runs and caches.
        rehearse: whether sizes are tiny.
        minutes: no section starts later than this.
        results: where figures are stored.
    """
    began = time.monotonic()
    os.environ.setdefault("LDM_KIT_CACHE", str(work / "cache"))
    rendering = None
    if "faces" in wanted:
        rendering = faces.start_rendering(plan_sizes(rehearse), results.out / "render.log")
    for name in wanted:
        done = results.read().get(name)
        if resume and done is not None and "error" not in done:
            continue
        if time.monotonic() - began > 60 * minutes:
            results.write(name, {"error": f"not started: {minutes:g} minutes were over"})
            continue
        if name == "faces" and rendering is not None:
            rendering.wait()
        limit = SECTIONS[name] * (5 if rehearse else 1)
        typer.echo(f"=== {name} (at {time.monotonic() - began:.0f} s, limit {limit} s)")
        _run_section(name, work, rehearse, limit, results)
    if rendering is not None:
        rendering.kill()


def _run_section(name: str, work: Path, rehearse: bool, limit: int, results: Results) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", name, "--inside", "--out", str(results.out), "--work", str(work)]
    began = time.monotonic()
    with (results.out / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *(["--rehearse"] if rehearse else [])],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            results.write(name, {**results.read().get(name, {}), "error": f"took longer than {limit} s"})
            return
    taken = results.read().get(name, {})
    if status and "error" not in taken:
        tail = (results.out / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:]
        taken = {"error": f"exit status {status}", "log": tail}
    results.write(name, {**taken, "wall": time.monotonic() - began})


def run_inside(name: str, plan: sizes.Sizes, work: Path, out: Path, results: Results) -> None:
    """Run one section in this process, and store its figures."""
    if name == "tests":
        results.write(name, _tests(plan))
        return
    if name == "faces":
        results.write(name, faces.faces(plan, work, out))
        return
    if name == "peak":
        from benchmarks.gpu.peak import peak

        results.write(name, peak(plan))
        return
    from benchmarks.gpu import profile, sampling, training
    from benchmarks.gpu.model import Space

    space = Space(work, plan)
    space.build()
    section: Any = {
        "stage2": training.stage2,
        "stage1": training.stage1,
        "settings": training.settings,
        "sampling": sampling.sampling,
        "profile": profile.profile,
    }[name]
    results.write(name, section(space))


def _tests(plan: sizes.Sizes) -> Figures:
    """Run the tests marked gpu; return the last line of pytest's output and the names of the failed ones."""
    more = () if plan.device.type == "cpu" else ("-n", "6", "--dist", "worksteal")
    environment = {**os.environ, **({"LDM_KIT_REHEARSE": "1"} if plan.device.type == "cpu" else {})}
    done = subprocess.run([sys.executable, *TESTS, *more], capture_output=True, text=True, check=False, env=environment)
    print(done.stdout, done.stderr, flush=True)
    lines = done.stdout.strip().splitlines() or [done.stderr[-2000:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1], "failed": failed, "status": done.returncode}


if __name__ == "__main__":
    run_cli(main)
