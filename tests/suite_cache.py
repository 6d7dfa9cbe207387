"""The folder in which a session of tests caches, such as rasterised OpenMoji, and which the next one may read."""

import hashlib
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PRODUCERS = ("ldm_kit", "autoencoder", "conditioning")  # code that makes what is cached
DAY = 86400  # seconds


def cache_name(root: Path) -> str:
    """Return the name of the cache, with a digest of the producers' code: other code never reads what this one made."""
    digest = hashlib.sha256()
    for path in sorted(path for name in PRODUCERS for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return f"ldm_kit-{digest.hexdigest()[:16]}"


def drop_unused(paths: Iterable[Path]) -> None:
    """Remove those files and folders that were last changed more than a day ago."""
    for path in paths:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
