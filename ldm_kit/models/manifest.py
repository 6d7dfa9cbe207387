"""Check that the files of a saved model have not changed: manifest.json lists the size and sha256 of each.

A file is hashed when it is first verified, and again only when its size or times of change differ; the cache folder
remembers what was verified. A folder without a manifest, such as one that diffusers wrote, is not checked.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoencoder import saved
from autoencoder.classes import FirstStage
from ldm_kit.config import UserError, cache_dir
from ldm_kit.data.value_range import ValueRange, read_range
from ldm_kit.training.checkpoint import MANIFEST, sha256_all
from ldm_kit.viz.png import tolerate_oserror, write_atomic

LATER = "directions/"  # folder whose files `edit.py learn` may rewrite after the model was saved


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)

    size: int = Field(ge=0)
    sha256: str


class _Manifest(BaseModel):
    files: dict[str, _Entry]


class _Stamp(NamedTuple):
    """Digest, size and times of a verified file; while all four stay the same, the file is not hashed again."""

    sha256: str  # hex, as the manifest says
    size: int  # bytes
    mtime: int  # nanoseconds
    ctime: int  # nanoseconds


def verify_folder(folder: Path, within: str = "") -> None:
    """Check a folder's files against its manifest; do nothing if it has none.

    Args:
        folder: a saved model's folder.
        within: sub-folder, such as "vae/", whose files alone are checked; "": all files but those in directions/.

    Raises:
        UserError: a file is missing or has changed, or the manifest cannot be read; the message names the file.
    """
    if not (folder / MANIFEST).is_file():
        return
    entries = {
        name: entry
        for name, entry in _read(folder / MANIFEST).items()
        if (name.startswith(within) if within else not name.startswith(LATER))
    }
    memory = cache_dir() / "verified" / f"{sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    remembered, stamps = _recall(memory), {name: _stamp(folder, name, entry) for name, entry in entries.items()}
    fresh = [name for name, stamp in stamps.items() if remembered.get(name) != [*stamp]]
    if fresh:
        _check_digests(folder, {name: entries[name].sha256 for name in fresh})
        content = {**remembered, **{name: [*stamp] for name, stamp in stamps.items()}}
        with tolerate_oserror(memory):
            write_atomic(memory, json.dumps(content).encode())


def open_first_stage(folder: Path | str, *, whole: bool = False) -> FirstStage:
    """Verify the files of an autoencoder, then load it.

    Args:
        folder: the autoencoder's folder, the folder of a model that contains one, or a run's folder.
        whole: whether tensors of which the autoencoder has no use are an error too.

    Raises:
        UserError: a file has changed since it was saved.
        AutoencoderError: there is no autoencoder, or it cannot be opened.
    """
    first_stage = saved.find(Path(folder))
    verify_folder(first_stage)
    verify_folder(first_stage.parent, f"{first_stage.name}/")
    return saved.load(first_stage, whole=whole)


def first_stage_range(folder: Path | str) -> ValueRange | None:
    """Return the values that the levels of an autoencoder's pictures stand for; None: none are stated.

    Args:
        folder: see `open_first_stage`.

    Raises:
        UserError: the file that states them is damaged.
        AutoencoderError: there is no autoencoder.
    """
    first_stage = saved.find(Path(folder))
    return read_range(first_stage) or read_range(first_stage.parent)


def update_manifest(folder: Path, names: Iterable[str]) -> None:
    """Enter the present size and sha256 of files into a folder's manifest; do nothing if it has none.

    Args:
        folder: a saved model's folder.
        names: paths of the files relative to `folder`.

    Raises:
        UserError: the manifest cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        return
    entries: dict[str, Any] = {name: entry.model_dump() for name, entry in _read(folder / MANIFEST).items()}
    paths = {name: folder / name for name in names}
    for (name, path), digest in zip(paths.items(), sha256_all([*paths.values()]), strict=True):
        entries[name] = {"size": path.stat().st_size, "sha256": digest}
    write_atomic(folder / MANIFEST, json.dumps({"files": dict(sorted(entries.items()))}, indent=1).encode())


def _read(path: Path) -> Mapping[str, _Entry]:
    """Read a manifest; return its entries by file path, relative to the manifest's folder.

    Raises:
        UserError: the file is unreadable, or an entry's path leads out of the folder.
    """
    try:
        entries = _Manifest.model_validate_json(path.read_bytes()).files
    except (OSError, ValidationError):
        raise UserError(f"{path} is not readable as a list of files with size and sha256; {_ADVICE}") from None
    for name in entries:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name:
            raise UserError(f"{path} names {name!r:.80}, which lies outside of its folder; {_ADVICE}")
    return entries


_ADVICE = f"restore it, or, if it was changed on purpose, remove {MANIFEST} from the folder"


def _stamp(folder: Path, name: str, entry: _Entry) -> _Stamp:
    try:
        stat = (folder / name).stat()
    except OSError:
        raise UserError(f"{folder / name} is missing, but {folder / MANIFEST} names it; {_ADVICE}") from None
    if stat.st_size != entry.size:
        raise UserError(f"{folder / name} has {stat.st_size} bytes, but had {entry.size} when it was saved; {_ADVICE}")
    return _Stamp(entry.sha256, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _check_digests(folder: Path, expected: Mapping[str, str]) -> None:
    try:
        digests = sha256_all([folder / name for name in expected])
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    for name, digest in zip(expected, digests, strict=True):
        if digest != expected[name]:
            raise UserError(f"the contents of {folder / name} have changed since it was saved; {_ADVICE}")


def _recall(memory: Path) -> dict[str, Any]:
    """Return what is stored about a model's verified files: {file name: [sha256, size, mtime, ctime]}, see `_Stamp`.

    `memory` is the JSON file in the cache folder that stores it; if that is missing or unreadable, the result is empty.
    """
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
