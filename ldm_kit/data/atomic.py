"""Atomic writes of cache files: a file is complete or absent, and what a killed process has left is removed later."""

import contextlib
import time
import uuid
from pathlib import Path

from ldm_kit.locks import LOCKS, LockResult, try_lock

MIN_AGE = 600.0  # seconds after which a temporary file counts as stale: its writer may be about to lock it, or has none
MIN_AGE_UNLOCKED = 86400.0  # likewise where the file system has no locks, so that none tells whether it has a writer


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
            with contextlib.suppress(OSError):  # a file without a lock is whole or absent all the same
                try_lock(file)
            file.write(content)
            file.flush()
            if LOCKS:  # held until the file has its name; Windows, which has none, renames no open file
                temporary.replace(path)
        if not LOCKS:
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_stale_tmp(folder: Path) -> None:
    """Remove temporary files that no living process holds a lock on, nor has written to in the last MIN_AGE seconds."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > MIN_AGE and _is_abandoned(path, age):
                path.unlink(missing_ok=True)


def _is_abandoned(path: Path, age: float) -> bool:
    with path.open("r+b") as file:  # NFS locks a file only if it is open for writing
        result = try_lock(file)
    return result is LockResult.LOCKED or (result is LockResult.UNSUPPORTED and age > MIN_AGE_UNLOCKED)
