"""The command `ldm-kit app`, which serves a web page to sample and edit with saved models."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.app.options import AppOptions
from ldm_kit.cli.errors import cli_errors, warn
from ldm_kit.packages import import_extra


def run_page(
    models: Annotated[list[Path], typer.Argument(help="saved models, runs or checkpoints; the page lists them")],
    options: AppOptions,
) -> None:
    """Serve a web page to sample, edit, inpaint and mix pictures with your models, until Ctrl-C.

    Example: ldm-kit app runs/faces/ldm_text runs/semantic/diffae_latents
    """
    with cli_errors():
        import_extra("gradio", "gradio", "app", "the page of ldm-kit app")
        from ldm_kit.app.server import running_page, warning_of

        if warning := warning_of(options):
            warn(warning)
        with running_page(models, options) as address:
            typer.echo(f"the page is at {address} ; Ctrl-C ends it")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                typer.echo("ended; what was uploaded is removed")
