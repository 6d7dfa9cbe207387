"""What all doors share (one sentence for a user's mistake), and the console script `ldm-kit`."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import typer

from ldm_kit.config import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Latent diffusion: what does not train.")


@contextlib.contextmanager
def door() -> Iterator[None]:
    """Turn a user's mistake into one sentence on stderr and exit status 2; let real faults through with their trace."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        yield
    except UserError as error:
        _stop(str(error))
    except ValueError as error:
        from autoencoder.base import AutoencoderError  # imported here: `--help` must not wait for torch
        from conditioning.base import ConditioningError

        if not isinstance(error, AutoencoderError | ConditioningError):
            raise
        _stop(str(error))


def serve(main: Callable[..., Any]) -> None:
    """Run a door's `main` as a command: its parameters are the flags, its docstring the help."""
    door_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    door_app.command()(main)
    door_app()


def _stop(sentence: str) -> None:
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(2)


@app.command()
def doctor() -> None:
    """Say which versions and devices there are."""
    import torch

    from ldm_kit.training.run import versions

    for name, found in versions().items():
        typer.echo(f"{name:14} {found}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    typer.echo(f"{'device':14} {device}\n{'attention':14} sdpa (cpu: math)\n{'threads':14} {torch.get_num_threads()}")
