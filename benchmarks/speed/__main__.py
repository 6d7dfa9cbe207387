"""Speed of ldm_kit and of other packages' recipes, timed in turns on the same model, data and batch.

python -m benchmarks.speed                      all tables (an hour on 2 CPU cores), written to the page performance.md
python -m benchmarks.speed stage2 sampling      two of them
python -m benchmarks.speed --quick --no_page    tiny sizes, to see that all works: a minute or two, nothing written
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.speed import checkpoints, ddpm_pytorch, growth, machine, sections
from benchmarks.speed.interleave import Plan
from benchmarks.speed.sections import Bench
from benchmarks.speed.workspace import Workspace
from benchmarks.tables import chosen, page_of, write_section
from ldm_kit.cli import cli_errors, run_cli

SECTIONS: dict[str, Callable[[Bench], str]] = {
    "stage2": sections.stage2,
    "settings": sections.settings,
    "stage1": sections.stage1,
    "sampling": sections.sampling,
    "machine": sections.machine_share,
    "growth": growth.growth,
    "processes": growth.processes,
    "start": growth.start,
    "checkpoints": checkpoints.checkpoints,
    "pixels": sections.pixels,
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(SECTIONS)}; all when left out")] = None,
    blocks: Annotated[int, typer.Option(help="blocks of each variant")] = 5,
    steps: Annotated[int, typer.Option(help="training steps in a block")] = 4,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, to see that all works")] = False,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page performance.md")] = True,
) -> None:
    """Measure speed, print the tables, and write them into the page performance.md."""
    with cli_errors():
        names = chosen(names, SECTIONS)
        target = page_of("performance.md") if page and not quick else None
        warnings.simplefilter("ignore")
        plan = Plan(1, 1, 1) if quick else Plan(blocks, steps, min(2, steps))
        with tempfile.TemporaryDirectory(prefix="speed-") as folder:
            bench = Bench(Workspace.make(Path(folder), 64 if quick else 1024), plan, quick)
            for name in names:
                if name == "pixels" and not ddpm_pytorch.is_installed():
                    typer.echo("pixels: left out, denoising-diffusion-pytorch is not installed (ddpm_pytorch.py)\n")
                    continue
                command = (
                    f"`python -m benchmarks.speed {name}` on {machine.describe()}; medians of {plan.blocks} blocks."
                )
                text = f"{SECTIONS[name](bench)}\n\n{command}"
                typer.echo(f"{text}\n")
                if target is not None:
                    write_section(target, name, text)


if __name__ == "__main__":
    run_cli(main)
