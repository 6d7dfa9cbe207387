"""Ours and the peers' recipes in turns, in one process tree, on the same model, data and batch.

python -m benchmarks.speed                      all tables (an hour on 2 CPU cores), written to docs/performance.md
python -m benchmarks.speed stage2 sampling      two of them anew
python -m benchmarks.speed --quick --no_page    whether everything works: tiny sizes, a minute or two, nothing written
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.speed import growth, machine, sections, strangers
from benchmarks.speed.page import put
from benchmarks.speed.sections import Bench
from benchmarks.speed.turns import Plan
from benchmarks.speed.world import World
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError

SECTIONS: dict[str, Callable[[Bench], str]] = {
    "stage2": sections.stage2,
    "settings": sections.settings,
    "stage1": sections.stage1,
    "sampling": sections.sampling,
    "machine": sections.machine_share,
    "growth": growth.growth,
    "processes": growth.processes,
    "start": growth.start,
    "pixels": sections.pixels,
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(SECTIONS)}; all when left out")] = None,
    blocks: Annotated[int, typer.Option(help="turns of each variant")] = 5,
    steps: Annotated[int, typer.Option(help="training steps in a turn")] = 4,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, to see that all works")] = False,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write docs/performance.md")] = True,
) -> None:
    """Measure, print, and write the tables."""
    with cli_errors():
        chosen = names or list(SECTIONS)
        if unknown := [name for name in chosen if name not in SECTIONS]:
            raise UserError(f"unknown section {unknown[0]!r}; expected {', '.join(SECTIONS)}")
        warnings.simplefilter("ignore")
        plan = Plan(1, 1, 1) if quick else Plan(blocks, steps, min(2, steps))
        with tempfile.TemporaryDirectory(prefix="speed-") as folder:
            bench = Bench(World.make(Path(folder), 64 if quick else 1024), plan, quick)
            for name in chosen:
                if name == "pixels" and not strangers.installed():
                    typer.echo("pixels: left out, denoising-diffusion-pytorch is not installed (strangers.py)\n")
                    continue
                text = f"{SECTIONS[name](bench)}\n\n{_about(name, plan)}"
                typer.echo(f"{text}\n")
                if page and not quick:
                    put(name, text)


def _about(name: str, plan: Plan) -> str:
    return f"`python -m benchmarks.speed {name}` on {machine.described()}; medians of {plan.blocks} turns."


if __name__ == "__main__":
    run_cli(main)
