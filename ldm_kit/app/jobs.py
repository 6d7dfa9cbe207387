"""Requests of the page: each runs under an observer that shows its steps and ends it when the user presses Stop."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from ldm_kit.app.errors import Stopped, page_errors
from ldm_kit.progress import Observer, observe_steps


class Jobs:
    """Stop flags of the browsers that are connected, by session; each browser runs one request at a time."""

    def __init__(self, private: Path) -> None:
        self._private = private
        self._flags: dict[str, Event] = {}

    def begin(self, session: str) -> None:
        """Take note that a browser has sent a request, which may still wait in the queue."""
        self._flags[session] = Event()

    def stop(self, session: str) -> None:
        """Ask the request of a browser to end after its present step, or before its first one."""
        self._flags.setdefault(session, Event()).set()

    def forget(self, session: str) -> None:
        """Forget a browser that has left; a request of it that still runs ends."""
        flag = self._flags.pop(session, None)
        if flag is not None:
            flag.set()

    def run(self, session: str, work: Callable[[], Any], observer: Observer) -> Any:
        """Return the result of `work`, after each step of which `observer` is called.

        Raises:
            Stopped: the user has pressed Stop.
            PageError: the request failed; the message is a sentence.
        """
        flag = self._flags.setdefault(session, Event())

        def step(description: str, finished: int, total: int) -> None:
            if flag.is_set():
                raise Stopped
            observer(description, finished, total)

        with page_errors(self._private), observe_steps(step):
            if flag.is_set():
                raise Stopped
            return work()
