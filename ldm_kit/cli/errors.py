"""Error handling of all commands: a user's mistake prints one sentence on stderr and exits with status 2."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import typer
from pydantic import ValidationError

from ldm_kit.config import OldNameWarning, UserError


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Return a context that reports a user's mistake as one sentence on stderr and exits with status 2.

    Mistakes are a `UserError`, an `OSError` about a file, options that fail validation, errors of `autoencoder` and
    `conditioning`, and a model that does not fit into memory. Other errors pass, with a traceback. A warning about an
    old config key becomes one line on stderr.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with _old_names_in_one_line():
            yield
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _stop(f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}")
    except ValidationError as error:  # options that a command itself has built
        _stop("; ".join(_complaint(fault) for fault in error.errors(include_url=False)))
    except (ValueError, RuntimeError, MemoryError) as error:
        _stop(_message(error))


def run_app(app: typer.Typer, given: Sequence[str], name: str | None = None) -> NoReturn:
    """Run a Typer app as a command-line program, in which a mistake on the command line is named in one sentence.

    Args:
        app: the app.
        given: the command line without the program's name.
        name: the program's name in its help; None: the name of this process's script.

    Raises:
        SystemExit: always; with status 2 after a mistake.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes need not be printable
    try:
        sys.exit(app(given, prog_name=name, standalone_mode=False))
    except Exception as error:
        format_message = getattr(error, "format_message", None)  # click's own errors, whose class typer keeps to itself
        if format_message is None:
            raise
        text = " ".join(format_message().split()).rstrip(".")
        typer.echo(f"error: {text[:1].lower()}{text[1:]}; see --help", err=True)
        sys.exit(2)


def warn(message: str) -> None:
    """Print one warning line on stderr."""
    typer.echo(f"warning: {message}", err=True)


@contextlib.contextmanager
def _old_names_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings():
        show_others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, OldNameWarning):
                warn(str(message))
            else:
                show_others(message, category, *where, **options)

        warnings.simplefilter("always", OldNameWarning)
        warnings.showwarning = show
        yield


def _message(error: Exception) -> str:
    """Return the message to print for an `AutoencoderError`, a `ConditioningError` or an out-of-memory error.

    Any other error is raised again.
    """
    from autoencoder.base import AutoencoderError  # imported here: `--help` must not wait for torch
    from conditioning.base import ConditioningError
    from ldm_kit.memory import is_out_of_memory

    if isinstance(error, AutoencoderError | ConditioningError):
        return str(error)
    if is_out_of_memory(error):
        return (
            "out of memory on the device; take a smaller train.micro_batch, train.eval_batch or --batch_size, a lower "
            "precision (bf16), a smaller resolution, or a smaller network"
        )
    raise error


def _complaint(fault: Any) -> str:
    text = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    if not fault["loc"]:
        return text
    return f"--{fault['loc'][0]} is {fault['input']}; {text.replace('Input should be', 'expected')}"


def _stop(sentence: str) -> NoReturn:
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(2)
