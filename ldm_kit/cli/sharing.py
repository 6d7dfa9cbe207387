"""Commands that share models: `ldm-kit card` and `push`, and single-file checkpoints in and out."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli.errors import cli_errors
from ldm_kit.config import UserError
from ldm_kit.convert.options import SingleFileOptions

Run = Annotated[Path, typer.Argument(help="the folder of a finished run")]
Licence = Annotated[str | None, typer.Option(help="the Hub's name of a licence; left out: that of built-in data")]


def card(
    run: Run,
    name: Annotated[str | None, typer.Option(help="title, such as owner/name; left out: the run's name")] = None,
    licence: Licence = None,
) -> None:
    """Write a finished run's model card, RUN/model/README.md: data, training, figures, use, limits.

    Example: ldm-kit card runs/my_pictures/ldm --licence cc-by-4.0
    """
    with cli_errors():
        from ldm_kit.inference.card import write_card
        from ldm_kit.inference.card_facts import read_facts

        facts = read_facts(run)
        typer.echo(f"written to {write_card(facts, name or facts.run.resolve().name, licence)}")


def push(
    run: Run,
    name: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub")],
    licence: Licence = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="replace files on the Hub without a question")] = False,
) -> None:
    """Write a finished run's model card and upload the model to the Hugging Face Hub; ask before files are replaced.

    Example: ldm-kit push runs/my_pictures/ldm me/my-pictures --licence cc-by-4.0
    """
    with cli_errors():
        from ldm_kit.inference.card_facts import read_facts
        from ldm_kit.inference.push import check_name
        from ldm_kit.inference.push import push as upload

        check_name(name)
        facts = read_facts(run)
        typer.echo(upload(facts, name, licence=licence, private=private, confirm=_ask(yes)))


def single_file(
    checkpoint: Annotated[Path, typer.Argument(help="weights of Stable Diffusion 1 or 2 in one file, .safetensors")],
    out: Annotated[Path, typer.Argument(help="a new folder for the saved model")],
    options: SingleFileOptions,
) -> None:
    """Convert a single-file checkpoint of Stable Diffusion to a saved model."""
    with cli_errors():
        from ldm_kit.convert.single_file import convert_single_file

        typer.echo(convert_single_file(checkpoint, out, options.config))


def export_single(model: Path, file: Path, **others: object) -> None:
    """Write a saved model to a single file, and print its path; `others` are options that must not be given.

    Raises:
        UserError: one of them is given, or the model cannot be written.
    """
    from ldm_kit.convert.single_file import write_single_file

    for name in (name for name, value in others.items() if value):
        raise UserError(f"--single_file takes a saved model alone, without {name}; export that first")
    typer.echo(f"weights in {write_single_file(model, file)}")


def _ask(yes: bool) -> Callable[[str], bool]:
    return (lambda question: True) if yes else typer.confirm
