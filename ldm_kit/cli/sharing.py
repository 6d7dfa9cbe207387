"""The commands `ldm-kit card`, which writes a model's card, and `ldm-kit push`, which uploads a model with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ldm_kit.cli.errors import cli_errors

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


def _ask(yes: bool) -> Callable[[str], bool]:
    return (lambda question: True) if yes else typer.confirm
