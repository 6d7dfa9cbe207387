"""Run the GPU plan: tests, the device's peak, training and sampling beside diffusers, and a training to quality.

make gpu                                    all sections on this machine's GPU, eight minutes at most
python -m benchmarks.gpu stage2 sampling    two of them
python -m benchmarks.gpu stage1 --only ours one variant of a section
python -m benchmarks.gpu --rehearse         tiny sizes on the CPU, to see that all works
python -m benchmarks.gpu --page             runs nothing: writes gpu.json's figures into docs/results/gpu.md

Results are written to OUT/gpu.json after each section. A section that is already there is not run again, unless it is
named or has failed. Each section runs in a process of its own, which is killed when its time is over.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.gpu import tables
from benchmarks.gpu.plan import SECTIONS, Plan, Results
from benchmarks.tables import chosen, page_of, write_section
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(SECTIONS)}; all when left out")] = None,
    out: Annotated[Path, typer.Option(help="folder of gpu.json, logs and pictures")] = Path("runs/gpu/plan"),
    rehearse: Annotated[bool, typer.Option("--rehearse", help="tiny sizes on the CPU")] = False,
    minutes: Annotated[float, typer.Option(help="start no section after this time")] = 8.0,
    *,
    only: Annotated[list[str] | None, typer.Option(help="measure this variant alone; may be given again")] = None,
    page: Annotated[
        bool, typer.Option("--page", help="write the figures of gpu.json into docs/results/gpu.md")
    ] = False,
) -> None:
    """Run sections of the GPU plan, and print their tables."""
    with cli_errors():
        wanted, results = chosen(names, SECTIONS), Results(out)
        if page:
            write_section(page_of("gpu.md"), "gpu", tables.page(results.read()))
            return
        if not rehearse and not torch.cuda.is_available():
            raise UserError("no CUDA device is visible; add --rehearse to see the plan run on the CPU")
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            Plan(results, Path(folder), rehearse, minutes, tuple(only or ())).run(wanted, resume=not names)
        typer.echo(tables.page(results.read()))


if __name__ == "__main__":
    run_cli(main)
