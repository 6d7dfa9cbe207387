"""Tables of pictures' attributes in the forms that other tools write: CSV of pandas or Excel, JSONL, CelebA's list.

A missing value may be empty, NaN or NA, and a whole number may be written 1.0. The column with the pictures' names has
one of the headers `NAME_COLUMNS`, or is a pandas index, whose header is empty.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ldm_kit.config import UserError
from ldm_kit.data.metadata import as_text

NAME_COLUMNS = ("file_name", "filename", "image_id", "image", "image_name", "image_path", "img", "file", "path")
_MISSING = {"", "nan", "na", "n/a", "<na>", "null"}
_INDEX = re.compile(r"|Unnamed: \d+")  # the header of pandas' index: as pandas writes it, as it reads it
_WHOLE = re.compile(r"([-+]?\d+)\.0*")
_Row = tuple[int, Mapping[str, str]]  # line number in the file, values by column


@dataclass
class Table:
    """A table of pictures' attributes, column by column; a missing value is None."""

    rows: dict[str, int] = field(default_factory=dict)  # picture's name -> index of its row
    columns: dict[str, list[str | None]] = field(default_factory=dict)  # attribute's name -> value of each row

    def add(self, name: str, values: Mapping[str, str]) -> None:
        """Add the row of one picture.

        A column for which `values` has no value is not lengthened; a later `add` or `pad` fills the gap with None.

        Args:
            name: the picture's name.
            values: the row's values by the column's name.
        """
        number = len(self.rows)
        self.rows[name] = number
        for key, text in values.items():
            column = self.columns.setdefault(key, [])
            column.extend([None] * (number - len(column)))
            column.append(clean_value(text))

    def pad(self) -> None:
        """Lengthen all columns with None to the number of rows."""
        for column in self.columns.values():
            column.extend([None] * (len(self.rows) - len(column)))


@lru_cache(maxsize=65536)
def clean_value(text: str) -> str | None:
    """Return a value in a common spelling: 1.0 becomes 1; nan, NA and empty text become None."""
    text = text.strip()
    if text.lower() in _MISSING:
        return None
    if match := _WHOLE.fullmatch(text):
        text = match[1]
    return sys.intern(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))  # a few values, many times


def read_table(path: Path) -> Table:
    """Read the table of pictures' attributes in `path`: .csv, .tsv, .jsonl, or a .txt in the form of CelebA's list.

    Raises:
        UserError: the file cannot be read, has none of these forms, or has a broken row, one without a picture's name,
            or one with the picture of an earlier row.
    """
    table = Table()
    for number, row in _numbered_rows(path, _read(path)):
        column = next((name for name in NAME_COLUMNS if row.get(name)), "")
        name = row.get(column)
        if not name:
            raise UserError(
                f"{path}, line {number}: no file_name (nor {', '.join(NAME_COLUMNS[1:4])}, ...); expected the "
                "picture's path within the folder"
            )
        if (name := str(PurePosixPath(name.replace("\\", "/")))) in table.rows:
            raise UserError(f"{path}, line {number}: names {name!r} a second time; expected each file once")
        table.add(name, {key: text for key, text in row.items() if key != column and not _INDEX.fullmatch(key)})
    if not table.rows:
        raise UserError(f"{path} holds no row; expected file_name and attributes of each picture")
    table.pad()
    return table


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read labels from {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); expected a .csv or .jsonl of labels") from None


def _numbered_rows(path: Path, text: str) -> Iterator[_Row]:
    suffix, first = path.suffix.lower(), text.partition("\n")[0].strip()
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, text)
    if suffix == ".jsonl":
        return _json_rows(path, text)
    if suffix == ".txt" and first.isdecimal():
        return _list_rows(path, text)
    raise UserError(
        f"{path} ends in {suffix or 'nothing'}; expected labels as .csv or .jsonl (or .tsv), or a list as CelebA's "
        "list_attr_celeba.txt, which begins with the number of its rows"
    )


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} values as in the header"
                )
            yield reader.line_num, {key.strip(): value.strip() for key, value in row.items()}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no CSV ({error})") from None


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object with file_name and attributes")
        yield number, {key: as_text(value).strip() for key, value in row.items() if value is not None}


def _list_rows(path: Path, text: str) -> Iterator[_Row]:
    """Yield line number and values by column of each row of a list in CelebA's form; `path` is for messages.

    The first line of `text` is the number of rows, the second the attributes' names; each further line is a picture's
    name and values.
    """
    lines = text.splitlines()
    header = lines[1].split() if len(lines) > 1 else []
    header = header if header and header[0] in NAME_COLUMNS else ["file_name", *header]
    for number, line in enumerate(lines[2:], 3):
        values = line.split()
        if values and len(values) != len(header):
            raise UserError(f"{path}, line {number}: expected a name and {len(header) - 1} values as in line 2")
        if values:
            yield number, dict(zip(header, values, strict=True))
