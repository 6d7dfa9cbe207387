"""List a folder's pictures, with captions and classes from a metadata table, sub-folders or caption files."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ldm_kit.config import UserError
from ldm_kit.data.captions import KINDS, TEXT_KINDS, Sidecar, read_sidecar
from ldm_kit.data.folder_layout import CLASSES, FolderMeaning, Layout, folder_meanings
from ldm_kit.data.image_files import BadPicture
from ldm_kit.data.image_kinds import is_array, is_picture
from ldm_kit.data.left_out import log_unlisted, log_unread
from ldm_kit.data.metadata import TABLES, Entry, find_table, read_table
from ldm_kit.data.splits import check_training_role, folder_role, picture_roles, unused_role

_log = logging.getLogger("ldm_kit.data")


@dataclass
class _Files:
    """The files of a folder by kind, as posix paths relative to the folder."""

    pictures: list[str] = field(default_factory=list)  # also linked folders, ending in a slash
    tables: list[str] = field(default_factory=list)  # files named metadata.*
    sidecars: dict[str, list[str]] = field(default_factory=dict)  # caption files: path without suffix -> suffixes


def folder_entries(
    root: Path, layout: Layout = "auto", captions: bool = True, lines: bool = False, *, values: bool = False
) -> list[Entry]:
    """Return all pictures of a folder, sorted by name; files that are not read are logged, except hidden ones.

    Args:
        root: the folder.
        layout: what sub-folders mean: classes; repeats (kohya's `10_dog`); plain: nothing; auto: their names decide.
        captions: whether caption files beside pictures (`0.txt` beside `0.png`) are read.
        lines: whether each line of a caption file is a caption.
        values: whether arrays (.npy) are pictures too.

    Raises:
        UserError: the folder is missing or has no picture, metadata.jsonl (or .csv) is invalid, or pictures lie beside
            class folders.
    """
    if not root.is_dir():
        raise UserError(f"{root} is {'not a folder' if root.exists() else 'no such folder'}; expected one with images")
    table = find_table(root)
    names = sorted(_walk(root))
    arrays = frozenset(name for name in names if is_array(name))
    used = [name for name in names if _is_used(name) or (values and name in arrays)]
    files = _sorted_out(used)
    log_unread(root, sorted({*names} - {*used}))
    if table is not None:
        entries = read_table(table)
        pictures = (name for name in files.pictures if is_picture(name) or name in arrays)
        log_unlisted(root, table.name, pictures, (entry.name for entry in entries))
        roles = picture_roles([entry.name for entry in entries], root, "say data.layout: plain")
        if roles is not None and layout == "auto":
            entries = [replace(entry, role=role) for entry, role in zip(entries, roles.roles, strict=True)]
    else:
        entries = _from_layout(root, files, layout, (captions, lines))
    if not entries:
        advice = "; arrays (.npy) are read with data.range, the values that become -1 and 1" if arrays else ""
        raise UserError(
            f"{root} offers no pictures; expected {TABLES[0]}, class folders or images (.png, .jpg, ...){advice}"
        )
    return sorted(entries, key=lambda entry: entry.name)


def training_entries(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """Return the pictures of a folder that a training run loads: all, but not split `test` if there is also `val`.

    A picture's class is kept if some training picture has it; otherwise it becomes None.

    Args:
        entries: all pictures of the folder.
        root: the folder, for messages.

    Raises:
        UserError: folders are named as splits, but none holds training pictures.
    """
    check_training_role((entry.role for entry in entries), root, CLASSES)
    unused = unused_role((entry.role for entry in entries), root)
    trained = {entry.label for entry in entries if entry.role in (None, "train")}
    return [
        entry if entry.label in trained else replace(entry, label=None)
        for entry in entries
        if entry.role is None or entry.role != unused
    ]


def resolve_inside(root: Path, name: str) -> Path:
    """Return the path of the file `name`, which is relative to the folder `root`, with symlinks resolved.

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


def _sorted_out(names: Iterable[str]) -> _Files:
    """Sort relative paths of files that are used into pictures, files named metadata.* and caption files."""
    files = _Files()
    for name in names:
        stem, _, suffix = name.rpartition(".")
        suffix = suffix.lower()
        if name.rpartition("/")[2].startswith("metadata."):
            files.tables.append(name)
        elif suffix in KINDS:
            files.sidecars.setdefault(stem, []).append(name[len(stem) + 1 :])
        else:
            files.pictures.append(name)
    return files


def _walk(root: Path) -> Iterator[str]:
    """Yield the relative paths of all files but hidden ones; linked folders end in a slash, and are not entered."""
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [f"{name}/" for name in folders if (folder / name).is_symlink()]
        above = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        yield from (above + link for link in links)
        yield from (above + name for name in files if not name.startswith("."))


def _is_used(name: str) -> bool:
    """Return whether a path is that of a picture, caption file, metadata table or (ending in a slash) linked folder."""
    base = name.rpartition("/")[2]
    return (
        not base or is_picture(name) or base.startswith("metadata.") or PurePosixPath(name).suffix.lower()[1:] in KINDS
    )


def _from_layout(root: Path, files: _Files, layout: Layout, texts: tuple[bool, bool]) -> list[Entry]:
    """List pictures by their folders and caption files; `texts`: whether these are read, and each line is a caption."""
    captions, lines = texts
    if files.tables:
        return _from_split_tables(root, files, layout)
    names = files.pictures
    sidecars = files.sidecars if captions else {}
    kinds = [sidecars.get(name.rpartition(".")[0], []) for name in names]
    captioned = frozenset(name for name, own in zip(names, kinds, strict=True) if _has_text(own))
    named = zip(names, folder_meanings(root, names, layout, captioned), kinds, strict=True)
    entries = [_entry_of(root, name, own, meaning, lines) for name, meaning, own in named]
    _report_captions(root, entries, len(captioned), files.sidecars if captions else {})
    return entries


def _entry_of(root: Path, name: str, kinds: Sequence[str], meaning: FolderMeaning, lines: bool) -> Entry:
    """Return the picture `name` in `root` with the caption and class that caption files and folders give.

    A file's caption is preferred to a folder's, a folder's class to a file's. `kinds` are the suffixes of the picture's
    caption files, each `lines` of which may be a caption; `meaning` is what its folders' names say.
    """
    beside = read_sidecar(root, name.rpartition(".")[0], kinds, lines) if kinds else Sidecar()
    label = meaning.label if beside.label is None else meaning.label or beside.label
    return Entry(
        name.rstrip("/"),
        beside.text or meaning.text,
        label,
        role=meaning.role,
        problem=beside.problem,
        others=beside.others,
    )


def _has_text(kinds: Sequence[str]) -> bool:
    return any(kind.lower() in TEXT_KINDS for kind in kinds)


def _report_captions(
    root: Path, entries: Sequence[Entry], captioned: int, sidecars: Mapping[str, Sequence[str]]
) -> None:
    """Log how many pictures have no caption file, if others have one, and which caption files have no picture.

    `root` is the folder, and `entries` are its pictures, of which `captioned` have a caption file. `sidecars` are all
    caption files: path without suffix -> suffixes.
    """
    if captioned and captioned < len(entries):
        _log.warning(
            "%s: %d of %d pictures have no caption file beside them; their folder's name is their caption, or nothing",
            *(root, len(entries) - captioned, len(entries)),
        )
    stems = [PurePosixPath(entry.name).with_suffix("") for entry in entries]
    beside, names = {str(stem) for stem in stems}, {stem.name for stem in stems}
    lost = [stem for stem, kinds in sidecars.items() if _has_text(kinds) and stem not in beside]
    if not captioned:  # other texts, such as a licence, are no captions then
        lost = [stem for stem in lost if PurePosixPath(stem).name in names]
    if lost:
        _log.warning(
            "%s: %d captions such as %s lie beside no picture of their name and are not read; put them there, or "
            "write %s",
            *(root, len(lost), f"{lost[0]}.{sidecars[lost[0]][0]}", TABLES[0]),
        )


def _from_split_tables(root: Path, files: _Files, layout: Layout) -> list[Entry]:
    """List the pictures that metadata tables in the folders of splits name, such as train/metadata.jsonl.

    Raises:
        UserError: `layout` is not "auto", or some table or picture lies outside a split's folder with a table.
    """
    folders = sorted({table.rpartition("/")[0] for table in files.tables})
    roles = {folder: folder_role(folder) for folder in folders}
    rest = [name for name in files.pictures if name.partition("/")[0] not in roles]
    tables = {folder: table for folder in folders if (table := find_table(root / folder))}
    if layout != "auto" or rest or None in roles.values() or len(tables) < len(folders):
        raise UserError(
            f"{root} holds {files.tables[0]} but captions are read from {' or '.join(TABLES)} at its top; point path "
            "there"
        )
    return [
        replace(entry, name=f"{folder}/{entry.name}", role=roles[folder])
        for folder, table in tables.items()
        for entry in read_table(table)
    ]
