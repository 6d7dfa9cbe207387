"""Signals that ask a run to stop. The handler only raises a flag; the run finishes its step, saves, and leaves."""

import signal
import threading
from types import FrameType
from typing import Any

from ldm_kit.training import distributed

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(SystemExit):
    """The run was asked to stop and has saved; left alone, the process exits with 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class Signals:
    """While watched, SIGTERM, SIGUSR1 and a first SIGINT are noted; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.caught = 0
        self._before: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Note signals from now on; other threads than the main one cannot."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._note) for number in ASKING}

    def release(self) -> None:
        """Give the signals back to whom they belonged before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self) -> int:
        """The signal that any process has caught, the same on all of them; 0 for none. All processes must ask."""
        return distributed.all_reduce_max(self.caught)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number


def ignore(_: int = 0) -> None:
    """Data-loader workers leave signals to their parent, which needs them until its step is saved."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
