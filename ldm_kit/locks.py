"""Exclusive locks on open files, against other processes; closing the file or ending the process releases the lock.

Where there is `fcntl`, a whole file is locked, and only against other locks. On Windows, which has `msvcrt`, a byte is
locked that lies beyond the contents of any file, as nobody else can read or write a byte that is locked.
"""

import errno
import os
from enum import Enum
from importlib import import_module
from typing import IO, Any


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")
RENAMES_OPEN = fcntl is not None  # whether the platform can rename a file that is open; Windows cannot
_BYTE = 2**31 - 2  # offset of the byte that is locked on Windows

# Lustre without -o flock, FUSE and SMB mounts, NFS without its lock service, and file systems that reject the call.
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
_BUSY = {
    errno.EWOULDBLOCK,
    errno.EAGAIN,
    errno.EACCES,
    errno.EDEADLK,
}  # EACCES: on Windows, and where the file system emulates the call


class LockResult(Enum):
    """Outcome of an attempt to lock a file."""

    LOCKED = "locked"
    BUSY = "busy"  # another process holds the lock
    UNSUPPORTED = "unsupported"  # the file system, or the platform, has no file locks


def try_lock(file: IO[Any]) -> LockResult:
    """Try to lock a file that is open for writing, without waiting; the lock lasts until the file is closed.

    Raises:
        OSError: locking failed although the file system has locks and no other process holds the lock.
    """
    if fcntl is None and msvcrt is None:
        return LockResult.UNSUPPORTED
    try:
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _lock_byte(file.fileno())
    except OSError as error:
        if error.errno in _BUSY:
            return LockResult.BUSY
        if error.errno in _UNSUPPORTED:
            return LockResult.UNSUPPORTED
        raise
    return LockResult.LOCKED


def _lock_byte(file: int) -> None:
    """Lock one byte of an open file, on Windows, given its descriptor `file`; the position in the file stays.

    Raises OSError if another process has the lock.
    """
    position = os.lseek(file, 0, os.SEEK_CUR)
    os.lseek(file, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(file, position, os.SEEK_SET)
