"""The commands `ldm-kit new`, which plans both trainings for a folder of pictures, and `ldm-kit train`."""

from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli.errors import cli_errors
from ldm_kit.planning.target import Quality, check_target

Pictures = Annotated[
    Path, typer.Argument(help="a folder of pictures, with captions, with one sub-folder per class, or plain")
]


def new(
    folder: Pictures,
    minutes: Annotated[float | None, typer.Option(min=0.5, help="minutes that both trainings may take")] = None,
    quality: Annotated[Quality | None, typer.Option(help="in place of minutes, how good: as long as it takes")] = None,
    resolution: Annotated[int | None, typer.Option(help="pixels along each side; left out: chosen")] = None,
    out: Annotated[Path | None, typer.Option(help="a new folder for configs and runs; left out: runs/NAME")] = None,
) -> None:
    """Look at pictures and machine, write configs for both stages, and say what to expect of them.

    Example: ldm-kit new my_pictures --minutes 30, and then ldm-kit train my_pictures
    """
    with cli_errors():
        check_target(minutes, quality)  # before the slow imports
        from ldm_kit.planning.files import check_new, plan_folder, write_plan
        from ldm_kit.planning.pictures import summarise_folder
        from ldm_kit.planning.plan import describe, make_plan

        target = plan_folder(folder) if out is None else out
        check_new(target)
        summary = summarise_folder(folder)
        typer.echo(f"{folder}: {summary}\ntiming short trainings on this machine ...")
        plan = make_plan(summary, minutes, quality, resolution, typer.echo)
        files = write_plan(plan, target)
        for line in describe(plan):
            typer.echo(line)
        typer.echo(f"configs: {', '.join(map(str, files.stages))}\nnow run: ldm-kit train {target}")


def train(
    folder: Annotated[Path, typer.Argument(help="the folder that `ldm-kit new` wrote, or that of the pictures")],
) -> None:
    """Train both stages as `ldm-kit new` planned, or go on where they stopped; end with a sheet of pictures.

    Example: ldm-kit train runs/my_pictures
    """
    with cli_errors():
        from ldm_kit.planning.files import find_plan
        from ldm_kit.planning.run import run_plan

        plan = find_plan(folder)
        for line in run_plan(plan, typer.echo).sentences(plan.psnr):
            typer.echo(line)
