"""A user's mistake as one sentence for the page: no flags of a command line, no paths of the server."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoencoder.base import AutoencoderError
from conditioning.condition import ConditioningError
from ldm_kit.config import UserError
from ldm_kit.memory import is_out_of_memory

_FLAG = re.compile(r"--([a-z]\w*)")
_log = logging.getLogger("ldm_kit.app")


class Stopped(Exception):
    """Raised by the observer of steps when the user has pressed Stop."""


class PageError(Exception):
    """An error whose message is one sentence for the page."""


@contextmanager
def page_errors(private: Path) -> Iterator[None]:
    """Return a context that turns every error into a `PageError`; `Stopped` passes.

    An error that is no mistake of the user is logged with its traceback, and the sentence says so.

    Args:
        private: the folder of uploads and results, whose paths are shortened to file names.
    """
    try:
        yield
    except (Stopped, PageError):
        raise
    except (UserError, AutoencoderError, ConditioningError) as error:
        raise PageError(sentence(str(error), private)) from None
    except Exception as error:
        if is_out_of_memory(error):
            raise PageError("The device is out of memory: expected fewer pictures or a smaller model.") from None
        _log.exception("a request of the page failed")
        raise PageError("The request failed for a reason that is not yours: see the terminal of the server.") from None


def sentence(message: str, private: Path) -> str:
    """Return a message for the page: names of fields in place of flags, and no path into the folder `private`."""
    text = re.sub(rf"{re.escape(str(private))}/(?:[^\s/]+/)*", "", message)
    text = _FLAG.sub(lambda match: match[1].replace("_", " "), " ".join(text.split()))
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
