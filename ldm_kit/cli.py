"""What all doors share (one sentence for a user's mistake), and the console script `ldm-kit`."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

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
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _stop(f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}")
    except (ValueError, RuntimeError) as error:
        _stop(_told(error))


def _told(error: Exception) -> str:
    """The sentence of a room's own error; raises what is none."""
    import torch  # imported here: `--help` must not wait for it

    from autoencoder.base import AutoencoderError
    from conditioning.base import ConditioningError

    if isinstance(error, AutoencoderError | ConditioningError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of memory on the device; take a smaller train.micro_batch (the result stays the same) or "
            "--batch_size, a lower precision (bf16), a smaller resolution, or a smaller network"
        )
    raise error


def serve(main: Callable[..., Any], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a door's `main` as a command: its parameters are the flags, its docstring the help."""
    door_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    door_app.command()(main)
    try:
        sys.exit(door_app(None if arguments is None else list(arguments), standalone_mode=False))
    except Exception as error:
        told = getattr(error, "format_message", None)  # click's own errors, whose class typer keeps to itself
        if told is None:
            raise
        text = " ".join(told().split()).rstrip(".")
        typer.echo(f"error: {text[:1].lower()}{text[1:]}; see --help", err=True)
        sys.exit(2)


def _stop(sentence: str) -> NoReturn:
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
