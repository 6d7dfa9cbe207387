"""A worker whose launcher is gone has nobody left to stop it: it asks itself to, so that the run's folder gets free."""

import os
import signal
import threading
import time
from collections.abc import Mapping

GRACE = 600.0  # seconds for the step and its checkpoint; longer waits are for processes that are gone as well


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or `accelerate launch` started this process; a mere shell may well go home before its run."""
    return "TORCHELASTIC_RUN_ID" in environment or "ACCELERATE_MIXED_PRECISION" in environment


def watch(every: float = 1.0, grace: float = GRACE) -> None:
    """From now on, a thread looks whether the parent process still lives.

    When it is gone the process gets SIGTERM, as if its launcher had asked: while it trains, it saves and leaves. What
    still runs `grace` seconds later (it may wait for another process that was killed) is ended at once.
    """
    threading.Thread(target=_outlive, args=(os.getppid(), every, grace), daemon=True, name="launcher watch").start()


def _outlive(parent: int, every: float, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(every)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)
