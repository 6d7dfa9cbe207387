"""Checks of the paths that results are written to, before the work whose results they are."""

import tempfile
from pathlib import Path

from ldm_kit.config import UserError


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which need not be there yet; nothing is left behind.

    Raises:
        UserError: it, or its nearest parent that is there, is a file or a folder that this process may not write to.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"cannot write to {folder}: {existing} is no folder; name another one")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; name another folder") from None


def check_writable_file(path: Path) -> None:
    """Check that a file can be written, or replaced; raises UserError as `check_writable`, or where it is a folder."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    check_writable(path.parent)
