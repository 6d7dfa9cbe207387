"""Index of a folder of pictures: metadata.jsonl, one sub-folder per class, or plain images; no image is opened."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ldm_kit.config import UserError
from ldm_kit.data.image_files import BadPicture
from ldm_kit.data.image_kinds import is_picture
from ldm_kit.data.left_out import log_unlisted, log_unread

METADATA = "metadata.jsonl"
_COLUMNS = {"file_name", "text", "label"}


@dataclass(frozen=True)
class Entry:
    """A picture in a folder: relative posix path, caption, class name, further fields."""

    name: str
    text: str = ""
    label: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


def folder_entries(root: Path) -> list[Entry]:
    """Return all pictures of a folder, sorted by name; hidden files are skipped, others that are not read are logged.

    Raises:
        UserError: no such folder, invalid metadata.jsonl (with its line), mixed layouts, or no picture at all.
    """
    if not root.is_dir():
        raise UserError(f"{root} is {'not a folder' if root.exists() else 'no such folder'}; expected one with images")
    table = root / METADATA
    names = sorted(_walk(root))
    log_unread(root, (name for name in names if not _is_used(root, name)))
    names = [name for name in names if _is_used(root, name)]
    if table.is_file():
        entries = _from_metadata(table)
        log_unlisted(root, METADATA, filter(is_picture, names), (entry.name for entry in entries))
    else:
        entries = _from_layout(root, names)
    if not entries:
        raise UserError(f"{root} offers no pictures; expected {METADATA}, class folders or images (.png, .jpg, ...)")
    return sorted(entries, key=lambda entry: entry.name)


def resolve_inside(root: Path, name: str) -> Path:
    """Return the path of a file named relative to a folder, with symlinks resolved.

    Raises:
        BadPicture: the name is absolute or contains "..", or a symlink leads outside the folder.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise BadPicture(name, "leads outside the folder; expected a relative path without ..")
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise BadPicture(name, f"cannot be resolved ({type(error).__name__})") from None
    if not path.is_relative_to(root.resolve()):
        raise BadPicture(name, "is a link that leads outside the folder")
    return path


def _walk(root: Path) -> Iterator[str]:
    """Yield relative posix paths of files, hidden ones aside, and of linked folders (reported later, never entered)."""
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (folder / name).is_symlink()]
        for name in [*links, *files]:
            if not name.startswith("."):
                yield (folder / name).relative_to(root).as_posix()


def _is_used(root: Path, name: str) -> bool:
    """Return whether a file decides on the set: a picture, a metadata file or a linked folder."""
    return is_picture(name) or PurePosixPath(name).name.startswith("metadata.") or (root / name).is_dir()


def _from_layout(root: Path, names: list[str]) -> list[Entry]:
    if tables := [name for name in names if PurePosixPath(name).name.startswith("metadata.")]:
        raise UserError(f"{root} holds {tables[0]} but captions are read from {METADATA} at its top; point path there")
    nested = [name for name in names if "/" in name or (root / name).is_dir()]
    if not nested:
        return [Entry(name) for name in names]
    if plain := sorted(set(names) - set(nested)):
        raise UserError(
            f"{root} mixes images at its top ({plain[0]}, ...) with class folders ({nested[0]}, ...); use one layout"
        )
    return [_class_entry(name) for name in nested]


def _class_entry(name: str) -> Entry:
    label = name.split("/")[0]
    return Entry(name, label.replace("_", " ").replace("-", " "), label)


def _from_metadata(path: Path) -> list[Entry]:
    """Read one entry a line; blank lines are skipped."""
    entries: dict[str, Entry] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        entry = _entry(line, f"{path}, line {number}")
        if entry.name in entries:
            raise UserError(f"{path}, line {number}: names {entry.name!r} a second time; expected each file once")
        entries[entry.name] = entry
    return list(entries.values())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); expected one JSON object a line") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _entry(line: str, where: str) -> Entry:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds a {type(row).__name__}; expected an object with file_name and text")
    name, text, label = row.get("file_name"), row.get("text"), row.get("label")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: file_name is {name!r}; expected a relative path such as images/cat.png")
    if not isinstance(text, str | None):
        raise UserError(f"{where}: text is {text!r:.60}; expected a string")
    if not isinstance(label, str | int | None):
        raise UserError(f"{where}: label is {label!r:.60}; expected a class name or number")
    fields = {str(key): as_text(value) for key, value in row.items() if key not in _COLUMNS}
    return Entry(str(PurePosixPath(name)), text or "", None if label is None else str(label), fields)


def as_text(value: Any) -> str:
    """Return a further value of a record as text: itself if it is a string, else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
