"""Checks that results can be written to a path, made before the work that computes the results."""

import tempfile
from pathlib import Path

from ldm_kit.config import UserError


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which need not exist yet; the check leaves no file behind.

    Raises:
        UserError: the folder, or its nearest existing parent, is a file or may not be written to.
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
    """Check that a new file can be written at `path`.

    Raises:
        UserError: `path` exists already, or the folder of `path` cannot be written to (see `check_writable`).
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    if path.exists():
        raise UserError(f"{path} exists already; name a new file, or delete that one")
    check_writable(path.parent)
