"""Tables of a folder's pictures, metadata.jsonl or metadata.csv, as Hugging Face's imagefolder reads them.

Each row has file_name (relative to the folder), text (the caption; in .jsonl also a list of several), an optional
label, and further values.
"""

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from ldm_kit.config import UserError
from ldm_kit.data.captions import Captions
from ldm_kit.data.records import Record
from ldm_kit.data.splits import Role

TABLES = ("metadata.jsonl", "metadata.csv")
BadCaption = Literal["skip", "ignore"]
BAD_CAPTION: BadCaption = Field(
    default="skip",
    description="a picture whose caption file cannot be read is skipped as bad, or used without one (ignore); a run "
    "that needs no captions ignores such files",
)
CAPTION_LINES: bool = Field(
    default=False, description="each line of a caption file is a caption, of which training draws one"
)
_COLUMNS = {"file_name", "text", "label"}
_log = logging.getLogger("ldm_kit.data")


@dataclass(frozen=True)
class Entry:
    """A picture in a folder or an archive, with its metadata; the image itself has not been opened."""

    name: str  # posix path relative to the folder, or name in the archive
    text: str = ""  # caption
    label: str | None = None  # class name
    fields: dict[str, str] = field(default_factory=dict)  # further values by name
    role: Role | None = None  # split that the picture's folders name: train, val or test
    problem: str = ""  # why its caption and class, which lie beside it, cannot be read; "" if they can
    others: tuple[str, ...] = ()  # further captions

    def record(self, labels: Mapping[str, int]) -> Record:
        """Return the picture's record, given the index of each class by its name."""
        label = None if self.label is None else labels[self.label]
        return Record(self.name, self.text, label, self.fields, self.others)


def find_table(folder: Path) -> Path | None:
    """Return the path of a folder's metadata table, metadata.jsonl or else metadata.csv; None if it has none."""
    paths = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(paths) > 1:
        _log.warning("%s holds %s and %s; the first is read", folder, *(path.name for path in paths))
    return paths[0] if paths else None


def read_table(path: Path) -> list[Entry]:
    """Return the pictures that a metadata table (.jsonl or .csv) lists, in the order of its rows.

    Raises:
        UserError: the file is no UTF-8 text, a row is malformed, or a picture comes twice; the message has the line.
    """
    entries: dict[str, Entry] = {}
    for number, row in _csv_rows(path) if path.suffix == ".csv" else _json_rows(path):
        entry = _entry(row, f"{path}, line {number}")
        if entry.name in entries:
            raise UserError(f"{path}, line {number}: names {entry.name!r} a second time; expected each file once")
        entries[entry.name] = entry
    return list(entries.values())


def without_problems(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """Return `entries` with `problem` cleared: that captions in folder `root` are unreadable is logged and ignored."""
    broken = [entry for entry in entries if entry.problem]
    if broken:
        _log.warning("%s: %s: %s; used without a caption", root, broken[0].name, broken[0].problem + and_more(broken))
    return [replace(entry, problem="") for entry in entries]


def and_more(items: Sequence[object]) -> str:
    """Return the end of a message that names the first item, such as ", and 2 more like it"; "" for one item."""
    return f", and {len(items) - 1:,} more like it" if len(items) > 1 else ""


def as_text(value: Any) -> str:
    """Return a metadata value as text: a string unchanged, any other value (number, list, ...) as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(path: Path, expected: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); expected {expected}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number, row) for each line of a .jsonl table that is not blank; a row is {column: value}."""
    for number, line in enumerate(io.StringIO(_text(path, "one JSON object a line"), newline=None), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: holds a {type(row).__name__}; expected an object with file_name and text")
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number, row) for each row of a .csv table after its header; a row is {column: cell, if not empty}."""
    reader = csv.reader(io.StringIO(_text(path, "a header and one picture a line"), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if "file_name" not in header or len({*header}) < len(header):
            raise UserError(
                f"{path}, line 1: the columns are {', '.join(header) or 'none'}; expected file_name, text, and others, "
                "each once and with commas between them"
            )
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise UserError(f"{path}, line {reader.line_num}: has {len(cells)} cells; expected {len(header)}")
            yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _entry(row: Mapping[str, Any], where: str) -> Entry:
    name, text, label = row.get("file_name"), row.get("text"), row.get("label")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: file_name is {name!r}; expected a relative path such as images/cat.png")
    try:
        captions = Captions.of(text)
    except ValueError as error:
        raise UserError(f"{where}: text is {error}") from None
    if not isinstance(label, str | int | None):
        raise UserError(f"{where}: label is {label!r:.60}; expected a class name or number")
    fields = {str(key): as_text(value) for key, value in row.items() if key not in _COLUMNS}
    label = None if label is None else str(label)
    return Entry(str(PurePosixPath(name)), captions.text, label, fields, others=captions.others)
