"""Locks on open files, between processes; closing the file, or the end of the process, releases the lock."""

import errno
from enum import Enum
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCKS = fcntl is not None  # whether the platform has file locks

# Lustre without -o flock, FUSE and SMB mounts, NFS without its lock service, and file systems that reject the call.
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # EACCES: where the file system emulates the call


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
    if fcntl is None:
        return LockResult.UNSUPPORTED
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return LockResult.BUSY
        if error.errno in _UNSUPPORTED:
            return LockResult.UNSUPPORTED
        raise
    return LockResult.LOCKED
