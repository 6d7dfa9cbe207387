"""Files of a cache appear whole or not at all; what a killed process left half done is swept away by the next."""

import contextlib
import fcntl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

YOUNG = 600.0  # seconds in which a draft is left alone: its writer may be about to lock it, or write without a lock


def write(path: Path, content: bytes) -> None:
    """Write beside under a name of our own, then rename; raises OSError, and then leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as file:
            _lock(file.fileno())
            file.write(content)
            file.flush()
            draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove drafts that no living process owns: nobody holds their lock, nor has written to them lately."""
    for draft in _old(folder):
        with contextlib.suppress(OSError), draft.open("rb") as file:
            if _lock(file.fileno()):
                draft.unlink(missing_ok=True)


def _old(folder: Path) -> Iterator[Path]:
    for draft in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > YOUNG:
                yield draft


def _lock(descriptor: int) -> bool:
    """Own an open file until it is closed; False where another process owns it, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
