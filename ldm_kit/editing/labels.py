"""Labels of pictures by attribute, from a CSV or JSONL file or from OpenMoji's own fields."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldm_kit.config import UserError
from ldm_kit.data.folder_index import as_text
from ldm_kit.data.images import PictureSet

MAX_VALUES = 32  # of an attribute; a column with more holds captions, numbers or names
_YES, _NO = {"1", "true", "yes"}, {"0", "-1", "false", "no"}
_log = logging.getLogger("ldm_kit.editing")


@dataclass(frozen=True)
class Column:
    """An attribute of N pictures; its value is None where it is not known or does not apply."""

    name: str
    values: tuple[str | None, ...]
    pairs: tuple[str | None, ...] | None = None  # pictures with equal names differ in the attribute alone

    @property
    def binary(self) -> bool:
        """Whether all values are yes or no, in any spelling."""
        values = {value.lower() for value in self.values if value is not None}
        return values <= _YES | _NO

    def positive(self, value: str) -> list[bool | None]:
        """Return for each picture whether it has a value ("yes" for a binary attribute); None where it is not known."""
        spellings = _YES if self.binary else {value.lower()}
        return [None if own is None else own.lower() in spellings for own in self.values]

    @property
    def kinds(self) -> list[str]:
        """The values that occur, sorted; "yes" alone for a binary attribute."""
        return ["yes"] if self.binary else sorted({value for value in self.values if value is not None})


def from_openmoji(pictures: PictureSet) -> list[Column]:
    """Return gender, skin tone and group of OpenMoji pictures; pairs have the same role and differ in one of the two.

    A yellow drawing has the skin tone "none" where its role is drawn in skin tones as well; things have neither.
    """
    fields = [record.fields for record in pictures.records]
    toned_roles = {field["role"] for field in fields if field["skin_tone"]}
    tones = tuple(field["skin_tone"] or ("none" if field["role"] in toned_roles else None) for field in fields)
    genders = tuple(field["gender"] or None for field in fields)
    return [
        Column("gender", genders, _pair_names(fields, "skin_tone")),
        Column("skin tone", tones, _pair_names(fields, "gender")),
        Column("group", tuple(field["group"] for field in fields)),
    ]


def _pair_names(fields: Sequence[Mapping[str, str]], other: str) -> tuple[str | None, ...]:
    """Return equal names for drawings that differ in one attribute alone; None where the other attribute is mixed."""
    return tuple(None if field[other] == "mixed" else f"{field['role']}/{field[other]}" for field in fields)


def from_file(
    path: Path, names: Sequence[str], *, columns: Sequence[str] = (), pair: str | None = None
) -> list[Column]:
    """Read the attributes of a folder's pictures from a table (.csv, .jsonl).

    Args:
        path: has a row for each picture: file_name and the attributes; an empty value is not known.
        names: of the pictures, relative to the folder; attributes of a picture without a row are not known.
        columns: the attributes to read; none: all that have at most 32 values.
        pair: the column that is equal for pictures that differ in one attribute alone.

    Raises:
        UserError: no such file or column, a broken row, or rows of pictures that the folder does not hold.
    """
    rows = _rows(path)
    _check_names(path, rows, names)
    present = list(dict.fromkeys(key for row in rows.values() for key in row))
    if missing := [name for name in (*columns, *([pair] if pair else [])) if name not in present]:
        raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(present) or 'none beside file_name'}")
    ordered = [rows.get(name, {}) for name in names]
    pairs = None if pair is None else tuple(row.get(pair) or None for row in ordered)
    attributes = [
        Column(name, tuple(row.get(name) or None for row in ordered), pairs)
        for name in columns or present
        if name != pair and (columns or _is_attribute(name, rows))
    ]
    if not attributes:
        raise UserError(f"{path} has no attribute: no column beside file_name with 2 to {MAX_VALUES} values")
    return attributes


def _is_attribute(name: str, rows: Mapping[str, Mapping[str, str]]) -> bool:
    count = len({row[name] for row in rows.values() if row.get(name)})
    if count > MAX_VALUES:
        _log.warning("left out the column %s, which has %d values; name it with --column to learn it", name, count)
    return 2 <= count <= MAX_VALUES


def _check_names(path: Path, rows: Mapping[str, object], names: Sequence[str]) -> None:
    if unknown := [name for name in rows if name not in set(names)]:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise UserError(
            f"{path} labels {len(unknown)} pictures that the folder does not hold: {shown}; "
            f"the folder's are named as {names[0]}"
        )
    if unlabelled := [name for name in names if name not in rows]:
        _log.warning(
            "%d of %d pictures have no label and are left out, first %s", len(unlabelled), len(names), unlabelled[0]
        )


def _rows(path: Path) -> dict[str, dict[str, str]]:
    """Read the attributes by file name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read labels from {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); expected a .csv or .jsonl of labels") from None
    match path.suffix.lower():
        case ".csv":
            numbered = _csv_rows(path, text)
        case ".jsonl":
            numbered = _json_rows(path, text)
        case suffix:
            raise UserError(f"{path} ends in {suffix or 'nothing'}; expected labels as .csv or .jsonl")
    rows: dict[str, dict[str, str]] = {}
    for number, row in numbered:
        name = row.pop("file_name", None)
        if not name:
            raise UserError(f"{path}, line {number}: no file_name; expected the picture's path within the folder")
        if (name := str(PurePosixPath(name))) in rows:
            raise UserError(f"{path}, line {number}: names {name!r} a second time; expected each file once")
        rows[name] = row
    if not rows:
        raise UserError(f"{path} holds no row; expected file_name and attributes of each picture")
    return rows


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(text.splitlines())
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} values as in the header"
                )
            rows.append((reader.line_num, {key.strip(): value.strip() for key, value in row.items()}))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no CSV ({error})") from None
    return rows


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    rows: list[tuple[int, dict[str, str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object with file_name and attributes")
        rows.append((number, {key: as_text(value).strip() for key, value in row.items() if value is not None}))
    return rows
