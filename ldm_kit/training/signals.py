"""Signals that ask a run to stop: the handler only sets a flag; then the run completes its step, saves and exits."""

import signal
import threading
from types import FrameType
from typing import Any

from ldm_kit.training import distributed

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")  # Windows has no SIGUSR1
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(s for s in signal.Signals if s.name in _NAMES)


class Stopped(SystemExit):
    """The exit of a run that was asked to stop and has saved; the exit status is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class Signals:
    """Handlers of SIGTERM, SIGINT and SIGUSR1 that only note the signal; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.caught = 0  # number of the last signal received; 0: none
        self._previous: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Install the handlers; do nothing in a thread that is not the main one, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._previous = {number: signal.signal(number, self._set_caught) for number in STOP_SIGNALS}

    def release(self) -> None:
        """Restore the handlers that `watch` replaced."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def caught_by_any(self) -> int:
        """Return the largest signal number that any rank has caught, 0 if none has; every rank must call this."""
        return distributed.all_reduce_max(self.caught)

    def _set_caught(self, number: int, frame: FrameType | None) -> None:
        if number == self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number


def ignore_signals(_: int = 0) -> None:
    """Ignore SIGTERM, SIGINT and SIGUSR1 in a data-loader worker, because the step in progress needs its batches.

    The argument, the worker's number, is not used.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
