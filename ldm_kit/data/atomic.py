"""Atomic writes of cache files: a file is complete or absent, and what a killed process has left is removed later."""

import contextlib
import fcntl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MIN_AGE = 600.0  # seconds after which a temporary file counts as stale: its writer may be about to lock it, or has none


def write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it; missing folders are made.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_tmp(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            _lock(file.fileno())
            file.write(content)
            file.flush()
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_stale_tmp(folder: Path) -> None:
    """Remove temporary files that no living process holds a lock on, nor has written to in the last MIN_AGE seconds."""
    for path in _old_tmp(folder):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if _lock(file.fileno()):
                path.unlink(missing_ok=True)


def _old_tmp(folder: Path) -> Iterator[Path]:
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > MIN_AGE:
                yield path


def _lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; return False if another process has, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
