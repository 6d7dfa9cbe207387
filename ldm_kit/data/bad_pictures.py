"""Handling of pictures that cannot be read: skip and log them, or stop; too many of them always stop the run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from ldm_kit.config import UserError

_log = logging.getLogger("ldm_kit.data")


class BadPictureSettings(Protocol):
    """Options of a data config that say what to do about bad pictures, which cannot be read.

    Attributes:
        path: the data set's path, for messages.
        on_bad: what to do about one bad picture: skip it, or raise an error.
        max_bad_share: largest share of bad pictures among all, in [0, 1]; above 0, one is always allowed.
    """

    @property
    def path(self) -> Path: ...
    @property
    def on_bad(self) -> Literal["skip", "raise"]: ...
    @property
    def max_bad_share(self) -> float: ...


def skip_or_raise(complaint: str, settings: BadPictureSettings) -> None:
    """Log that a bad picture is skipped, or raise if the settings say so.

    Args:
        complaint: the picture's name, and what is wrong with it.
        settings: the data config, whose `on_bad` is "skip" or "raise".

    Raises:
        UserError: `settings.on_bad` is "raise".
    """
    if settings.on_bad == "raise":
        raise UserError(f"bad picture in {settings.path}: {complaint}; repair or remove it, or set data.on_bad: skip")
    _log.warning("skipped %s", complaint)


def check_share(count: int, total: int, settings: BadPictureSettings, complaint: str) -> None:
    """Check that no more pictures are bad than `settings.max_bad_share` allows.

    Args:
        count: number of bad pictures, at least one.
        total: number of all pictures.
        settings: the data config.
        complaint: name of the first bad picture, and what is wrong with it.

    Raises:
        UserError: all pictures are bad, or more than `max_bad_share` allows.
    """
    if count == total:
        raise UserError(f"{settings.path} holds nothing usable: all {total} pictures are bad, first {complaint}")
    allowed = max(1, int(settings.max_bad_share * total)) if settings.max_bad_share > 0 else 0
    if count > allowed:
        raise UserError(
            f"{count} of {total} pictures in {settings.path} are bad (data.max_bad_share {settings.max_bad_share} "
            f"allows {allowed}), first {complaint}; the log names all"
        )


def check_bad_share(complaints: Sequence[str], total: int, settings: BadPictureSettings) -> None:
    """Check that no more pictures are bad than `settings.max_bad_share` allows; log their number if there are any.

    Many bad pictures usually mean a wrong folder or an incomplete copy.

    Args:
        complaints: for each bad picture its name, and what is wrong with it.
        total: number of all pictures.
        settings: the data config.

    Raises:
        UserError: all pictures are bad, or more than `max_bad_share` allows.
    """
    if complaints:
        check_share(len(complaints), total, settings, complaints[0])
        _log.warning("skipped %d of %d pictures in %s", len(complaints), total, settings.path)
