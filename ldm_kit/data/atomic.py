"""Atomic writes of cache files: a file is complete or absent; temporary files of killed processes are removed later."""

import contextlib
import time
import uuid
from pathlib import Path

from ldm_kit.locks import RENAMES_OPEN, LockResult, try_lock

MIN_AGE = 600.0  # seconds; a younger temporary file is never stale, as its writer may not have locked it yet
MIN_AGE_UNLOCKED = 86400.0  # seconds; takes the place of MIN_AGE on file systems without locks


def write(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it to `path`; missing folders are made.

    Raises:
        OSError: the file cannot be written; no temporary file is left.
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
            if RENAMES_OPEN:  # the lock is then held until the file has its name
                temporary.replace(path)
        if not RENAMES_OPEN:
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_stale_tmp(folder: Path) -> None:
    """Remove a folder's `.*.tmp` files that are older than MIN_AGE (600) seconds and not locked by a living process."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > MIN_AGE and _is_abandoned(path, age):
                path.unlink(missing_ok=True)


def _is_abandoned(path: Path, age: float) -> bool:
    with path.open("r+b") as file:  # NFS locks a file only if it is open for writing
        result = try_lock(file)
    return result is LockResult.LOCKED or (result is LockResult.UNSUPPORTED and age > MIN_AGE_UNLOCKED)
