"""Check of arguments that must be lists: a string passed by mistake is refused."""

from collections.abc import Sized
from pathlib import Path
from typing import Any

from ldm_kit.config import UserError


def check_lists(**lists: Any) -> None:
    """Check that all arguments are lists of one length; a string would be taken as a list of its letters.

    Args:
        lists: the values to check, passed as keyword arguments NAME=VALUE; messages use the names.

    Raises:
        UserError: a value is a string or has no length, or the lengths differ.
    """
    for name, value in lists.items():
        if isinstance(value, str | bytes | Path):
            raise UserError(f"{name} is the single {value!r:.80}; expected a list, such as [{value!r:.80}]")
        if not isinstance(value, Sized):
            raise UserError(f"{name} is {value!r:.80}; expected a list")
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"got {', '.join(f'{n} {name}' for name, n in lengths.items())}; expected as many of each")
