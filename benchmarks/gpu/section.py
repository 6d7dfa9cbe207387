"""Run one section of the GPU plan in this process: python -m benchmarks.gpu.section NAME --out DIR --work DIR."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu import faces, profile, sampling, training
from benchmarks.gpu.model import Space
from benchmarks.gpu.peak import peak
from benchmarks.gpu.plan import Plan, Results
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Figures
from ldm_kit.cli import run_cli

PYTEST = ("-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider")
PYTEST += ("-p", "no:benchmark")  # a plug-in that takes several processes for an error
ON_MODEL: dict[str, Callable[[Space], Figures]] = {
    "stage2": training.stage2,
    "stage1": training.stage1,
    "settings": training.settings,
    "sampling": sampling.sampling,
    "profile": profile.profile,
}


def main(
    name: Annotated[str, typer.Argument(help="name of the section")],
    out: Annotated[Path, typer.Option(help="folder of gpu.json")],
    work: Annotated[Path, typer.Option(help="folder of models, runs and caches")],
    rehearse: Annotated[bool, typer.Option("--rehearse", help="tiny sizes on the CPU")] = False,
    only: Annotated[list[str] | None, typer.Option(help="measure this variant alone; may be given again")] = None,
) -> None:
    """Run one section, and store its figures in gpu.json."""
    results = Results(out)
    results.write(name, figures_of(name, Plan(results, work, rehearse, only=tuple(only or ()))))


def figures_of(name: str, plan: Plan) -> Figures:
    """Return the figures of a section."""
    match name:
        case "tests":
            return run_tests(plan.sizes)
        case "peak":
            return peak(plan.sizes)
        case "faces":
            return faces.faces(plan.sizes, plan.work, plan.results.out)
    space = Space(plan.work, plan.sizes)
    space.build()
    return ON_MODEL[name](space)


def run_tests(sizes: Sizes) -> Figures:
    """Run the tests marked gpu; return the last line of pytest's output and the lines of the failed ones."""
    on_gpu = sizes.device.type == "cuda"
    more = ("-n", "6", "--dist", "worksteal") if on_gpu else ()
    environment = os.environ if on_gpu else {**os.environ, "LDM_KIT_REHEARSE": "1"}
    done = subprocess.run(
        [sys.executable, *PYTEST, *more], capture_output=True, text=True, check=False, env=environment
    )
    print(done.stdout, done.stderr, flush=True)
    lines = done.stdout.strip().splitlines() or [done.stderr[-2000:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1], "failed": failed, "status": done.returncode}


if __name__ == "__main__":
    run_cli(main)
