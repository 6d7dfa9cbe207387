"""Edit your own picture with a trained model.

python edit.py --model runs/diffae --image my.png --attribute "skin tone: dark" --strength 0.3
"""

import functools
from collections.abc import Callable

import typer

from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.editing.commands import COMMANDS


def printed(command: Callable[..., str]) -> Callable[..., None]:
    """Return a command that prints its result, or a user's mistake in one sentence."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        with cli_errors():
            typer.echo(command(*arguments, **options))

    return run


main = tuple(printed(command) for command in COMMANDS)

if __name__ == "__main__":
    run_cli(main)
