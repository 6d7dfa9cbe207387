"""Checkpoint folders, written atomically: a checkpoint is either complete or absent.

A checkpoint is a directory `checkpoint-00000500` that is written under a temporary name beside it, hashed, flushed to
disk and renamed; readers accept only a directory whose manifest verifies. Tensors are stored as safetensors, everything
else as JSON.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_kit.config import UserError

MANIFEST = "manifest.json"
OVERHEAD = 2**18  # bytes for headers, JSON and the manifest, beside 2 % of the tensors' size
_FLUSHABLE = os.O_RDWR if os.name == "nt" else os.O_RDONLY  # Windows flushes only what is open for writing
_NAME = re.compile(r"checkpoint-(\d+)")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors to a safetensors file; missing parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name, on the CPU."""
    return load_file(path)


def write(folder: Path, fill: Callable[[Path], None], size: int = 0) -> Path:
    """Write a directory atomically: at every moment it is absent or complete.

    Args:
        folder: the final directory; a missing parent is created, and an existing directory is replaced.
        fill: function that writes the contents into the temporary directory that it is called with.
        size: bytes that the contents will take, checked against the free space first; 0: unknown, no check.

    Returns:
        The final directory.

    Raises:
        UserError: the disk is full or not writable; an existing directory is then unchanged.
    """
    draft = folder.parent / f".tmp-{folder.name}.{uuid.uuid4().hex}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_free_space(folder, size)
        draft.mkdir()
        fill(draft)
        _seal(draft)
        replaced = _set_aside(folder) if folder.exists() else None
        try:
            draft.rename(folder)
        except OSError:
            if replaced is not None:
                replaced.rename(folder)
            raise
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        takes = f" (it takes {_megabytes(size)})" if size else ""
        raise UserError(f"cannot write {folder}{takes}: {error}; what was saved before is untouched") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    return folder


def _check_free_space(folder: Path, size: int) -> None:
    needed, free = size + size // 50 + OVERHEAD, shutil.disk_usage(folder.parent).free
    if size and free < needed:
        raise UserError(
            f"cannot write {folder}: it takes {_megabytes(needed)}, but {folder.parent} has {_megabytes(free)} left; "
            "make room there. What was saved before is untouched"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e7 else f"{count / 1e6:.0f} MB"


def verify(folder: Path) -> None:
    """Check the size and sha256 of every file of a checkpoint against its manifest, which lists them.

    Raises:
        UserError: a file is missing, truncated, changed or outside the folder; the message names the first such file.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder} is no complete checkpoint: its {MANIFEST} is missing or unreadable") from None
    for name, (size, _) in entries.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"checkpoint {folder} is damaged: its {MANIFEST} names {name!r}, which lies outside")
        if not path.is_file():
            raise UserError(f"checkpoint {folder} is damaged: {name} is missing")
        if path.stat().st_size != size:
            raise UserError(f"checkpoint {folder} is damaged: {name} has {path.stat().st_size} bytes, expected {size}")
    digests = sha256_all([folder / name for name in entries])
    for (name, (_, expected)), digest in zip(entries.items(), digests, strict=True):
        if digest != expected:
            raise UserError(f"checkpoint {folder} is damaged: the contents of {name} have changed since it was written")


def steps(run: Path) -> dict[int, Path]:
    """Return {step: checkpoint directory} of the run's folder `run`, in order of steps, without checking contents."""
    matches = ((_NAME.fullmatch(path.name), path) for path in run.glob("checkpoint-*") if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def latest(run: Path) -> Path | None:
    """Return the folder of a run's newest intact checkpoint, None if there is none; warn of damaged ones."""
    for _, path in reversed(steps(run).items()):
        try:
            verify(path)
        except UserError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
            continue
        return path
    return None


def prune(run: Path, keep: int, spare: Iterable[Path | None] = ()) -> None:
    """Remove the checkpoints of a run except the `keep` newest and those in `spare`.

    Args:
        run: the run's folder.
        keep: how many of the newest checkpoints to keep, at least 1.
        spare: folders of further checkpoints to keep; a None among them is ignored.

    Raises:
        UserError: the newest checkpoint is damaged; then nothing is removed.
    """
    paths = list(steps(run).values())
    spared = {path.resolve() for path in spare if path is not None}
    if old := [path for path in paths[:-keep] if path.resolve() not in spared]:
        verify(paths[-1])
    for path in old:
        remove(path)


def remove(folder: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a half-deleted folder is not taken for a checkpoint."""
    shutil.rmtree(_set_aside(folder), ignore_errors=True)


def remove_stale_tmp(run: Path) -> None:
    """Remove the temporary folders of saves and deletions that were killed; the caller must hold the run's lock."""
    for path in [*run.glob(".tmp-*"), *run.glob(".del-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.rename(folder.parent / f".del-{folder.name}.{uuid.uuid4().hex}")


def _seal(draft: Path) -> None:
    """Complete a checkpoint's temporary folder: add the manifest (sizes and hashes of its files), and fsync all.

    The files' permissions are set by the umask, because safetensors writes files with mode 0600.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in _files(draft):
        path.chmod(0o666 & ~mask)
    (draft / MANIFEST).write_text(json.dumps(_manifest(draft), indent=1), encoding="utf-8")
    for path in [*draft.rglob("*"), draft]:
        _flush(path)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def _manifest(folder: Path) -> dict[str, Any]:
    files = _files(folder)
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, sha256_all(files), strict=True)
    }
    return {"files": entries}


def sha256_all(paths: Sequence[Path]) -> list[str]:
    """Return the sha256 (hex) of each file, in order; up to four files are hashed in parallel threads."""
    with ThreadPoolExecutor(max_workers=4) as threads:
        return list(threads.map(_sha256, paths))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of entries, to the disk with fsync."""
    try:
        descriptor = os.open(path, _FLUSHABLE)
    except PermissionError:
        if path.is_dir():  # which Windows does not open; it writes names through by itself
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
