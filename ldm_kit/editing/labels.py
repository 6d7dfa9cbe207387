"""Labels of pictures by attribute: from the user's CSV or JSONL, or from OpenMoji's own fields."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldm_kit.config import UserError
from ldm_kit.data.folder_index import as_text
from ldm_kit.data.images import PictureSet

MOST_VALUES = 32  # of a column; what has more is a caption, a number or a name
_YES, _NO = {"1", "true", "yes"}, {"0", "-1", "false", "no"}
_log = logging.getLogger("ldm_kit.editing")


@dataclass(frozen=True)
class Column:
    """An attribute of N pictures; None where it is not known or does not apply."""

    name: str
    values: tuple[str | None, ...]
    pairs: tuple[str | None, ...] | None = None  # pictures of one name here are counterparts, but for the attribute

    @property
    def binary(self) -> bool:
        """Whether its values are yes and no, in any of their spellings."""
        known = {value.lower() for value in self.values if value is not None}
        return known <= _YES | _NO

    def positive(self, value: str) -> list[bool | None]:
        """For each picture, whether it has this value ("yes": of a binary attribute)."""
        wanted = _YES if self.binary else {value.lower()}
        return [None if found is None else found.lower() in wanted for found in self.values]

    @property
    def kinds(self) -> list[str]:
        """The values that occur, sorted; of a binary attribute "yes" alone."""
        return ["yes"] if self.binary else sorted({value for value in self.values if value is not None})


def from_openmoji(pictures: PictureSet) -> list[Column]:
    """Gender, skin tone and group of OpenMoji pictures; counterparts have the same role and differ in one of the two.

    A yellow drawing has the skin tone "none" where its role is drawn in tones as well; things have neither.
    """
    fields = [record.fields for record in pictures.records]
    toned = {field["role"] for field in fields if field["skin_tone"]}
    tones = tuple(field["skin_tone"] or ("none" if field["role"] in toned else None) for field in fields)
    genders = tuple(field["gender"] or None for field in fields)
    return [
        Column("gender", genders, _counterparts(fields, "skin_tone")),
        Column("skin tone", tones, _counterparts(fields, "gender")),
        Column("group", tuple(field["group"] for field in fields)),
    ]


def _counterparts(fields: Sequence[Mapping[str, str]], other: str) -> tuple[str | None, ...]:
    """One name for drawings that differ in an attribute alone; none where the other one is mixed in several ways."""
    return tuple(None if field[other] == "mixed" else f"{field['role']}/{field[other]}" for field in fields)


def from_file(
    path: Path, names: Sequence[str], *, columns: Sequence[str] = (), pair: str | None = None
) -> list[Column]:
    """Columns of a table (.csv, .jsonl) for pictures of a folder.

    Args:
        path: a row for each picture: file_name, and the attributes. An empty value is not known.
        names: of the folder's pictures, relative to it; those without a row are not known in any attribute.
        columns: the attributes to take; none for all that have at most 32 values.
        pair: the column that is equal for pictures that are counterparts of each other.

    Raises:
        UserError: no such file or column, a broken row, or rows of pictures that the folder does not hold.
    """
    rows = _rows(path)
    _refuse_mismatch(path, rows, names)
    present = list(dict.fromkeys(key for row in rows.values() for key in row))
    if lost := [name for name in (*columns, *([pair] if pair else [])) if name not in present]:
        raise UserError(f"{path} has no column {lost[0]!r}; it has {', '.join(present) or 'none beside file_name'}")
    known = [rows.get(name, {}) for name in names]
    pairs = None if pair is None else tuple(row.get(pair) or None for row in known)
    found = [
        Column(name, tuple(row.get(name) or None for row in known), pairs)
        for name in columns or present
        if name != pair and (columns or _is_attribute(name, rows))
    ]
    if not found:
        raise UserError(f"{path} has no attribute: no column beside file_name with 2 to {MOST_VALUES} values")
    return found


def _is_attribute(name: str, rows: Mapping[str, Mapping[str, str]]) -> bool:
    count = len({row[name] for row in rows.values() if row.get(name)})
    if count > MOST_VALUES:
        _log.warning("left out the column %s, which has %d values; name it with --columns to have it", name, count)
    return 2 <= count <= MOST_VALUES


def _refuse_mismatch(path: Path, rows: Mapping[str, object], names: Sequence[str]) -> None:
    if strangers := [name for name in rows if name not in set(names)]:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise UserError(
            f"{path} labels {len(strangers)} pictures that the folder does not hold: {shown}; "
            f"the folder's are named as {names[0]}"
        )
    if silent := [name for name in names if name not in rows]:
        _log.warning("%d of %d pictures have no label and are left out, first %s", len(silent), len(names), silent[0])


def _rows(path: Path) -> dict[str, dict[str, str]]:
    """Attributes by file name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read labels from {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); expected a .csv or .jsonl of labels") from None
    match path.suffix.lower():
        case ".csv":
            listed = _csv_rows(path, text)
        case ".jsonl":
            listed = _json_rows(path, text)
        case suffix:
            raise UserError(f"{path} ends in {suffix or 'nothing'}; expected labels as .csv or .jsonl")
    found: dict[str, dict[str, str]] = {}
    for number, row in listed:
        name = row.pop("file_name", None)
        if not name:
            raise UserError(f"{path}, line {number}: no file_name; expected the picture's path within the folder")
        if (name := str(PurePosixPath(name))) in found:
            raise UserError(f"{path}, line {number}: names {name!r} a second time; expected each file once")
        found[name] = row
    if not found:
        raise UserError(f"{path} holds no row; expected file_name and attributes of each picture")
    return found


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(text.splitlines())
    found: list[tuple[int, dict[str, str]]] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} values as in the header"
                )
            found.append((reader.line_num, {key.strip(): value.strip() for key, value in row.items()}))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no CSV ({error})") from None
    return found


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    found: list[tuple[int, dict[str, str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object with file_name and attributes")
        found.append((number, {key: as_text(value).strip() for key, value in row.items() if value is not None}))
    return found
