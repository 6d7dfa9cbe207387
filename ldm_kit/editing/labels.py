"""Labels of pictures, attribute by attribute, from a table, from OpenMoji's fields or from known factors."""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path, PurePosixPath

from ldm_kit.config import UserError
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import PictureSet
from ldm_kit.editing.label_tables import read_table

MAX_VALUES = 32  # most values of an attribute; a column with more holds captions, numbers or names
_YES, _NO = {"1", "true", "yes", "y", "t"}, {"0", "-1", "false", "no", "n", "f"}
_log = logging.getLogger("ldm_kit.editing")


@dataclass(frozen=True)
class Column:
    """The values of one attribute of N pictures; a value is None where it is not known or does not apply."""

    name: str  # the attribute's name
    values: tuple[str | None, ...]  # value of each picture
    pairs: tuple[str | None, ...] | None = None  # a name each: pictures of equal names differ in this attribute alone

    @cached_property
    def binary(self) -> bool:
        """Whether all known values are yes or no, in any spelling: 1, true, yes, y, t; 0, -1, false, no, n, f."""
        return {value.lower() for value in {*self.values} if value is not None} <= _YES | _NO

    @cached_property
    def paired_rows(self) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """Pairs of pictures with equal pair names but different values: {(value of i, value of j): [(i, j), ...]}.

        i and j are the pictures' row indices. Of pictures with equal pair name and value, only the first counts. A pair
        is listed under both orders of its values; the pairs of one key are sorted by their smaller index.
        """
        first: dict[str, dict[str, int]] = {}
        for i, (value, pair) in enumerate(zip(self.values, self.pairs or (), strict=False)):
            if pair is not None and value is not None:
                first.setdefault(pair, {}).setdefault(value, i)
        rows: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for sides in first.values():
            for (before, i), (after, j) in permutations(sides.items(), 2):
                rows.setdefault((before, after), []).append((i, j))
        return {values: sorted(indices, key=min) for values, indices in rows.items()}

    def positive(self, value: str) -> list[bool | None]:
        """Return for each picture whether its value is `value`; None where the value is not known.

        For a binary attribute, `value` is ignored: the result is whether the picture's value is yes.
        """
        spellings = _YES if self.binary else {value.lower()}
        return [None if own is None else own.lower() in spellings for own in self.values]

    @property
    def kinds(self) -> list[str]:
        """The different values that the attribute has in the pictures, sorted; "yes" alone for a binary attribute."""
        return ["yes"] if self.binary else sorted({value for value in self.values if value is not None})


def from_openmoji(pictures: PictureSet) -> list[Column]:
    """Return three attributes of OpenMoji pictures (a set of `data.openmoji`): gender, skin tone and group.

    The role of a picture is its caption without gender and skin tone. For gender, pictures of one role and one skin
    tone are pairs; for skin tone, pictures of one role and one gender. A yellow drawing has the skin tone "none" if its
    role is also drawn in skin tones. Things have neither gender nor skin tone.
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


def from_factors(pictures: PictureSet) -> list[Column]:
    """Return the factors of a data set as attributes, such as the hair colour of faces (see `data.factors`).

    Two pictures that are equal in all factors but one are a pair of this factor (`Column.pairs`). OpenMoji's drawings
    must also be of one role, such as "astronaut". The value of a factor that a picture hides counts as not known.

    Raises:
        UserError: the data set has no factors.
    """
    factor_set = known_factors(pictures)
    rows = [factor_set.values(index) for index in range(len(factor_set))]
    shown = [{factor: row[factor] for factor in row.keys() - factor_set.hidden(row)} for row in rows]
    roles = [record.fields.get("role", "") for record in factor_set.records]

    def pair_names(factor: str) -> tuple[str, ...]:
        others = ("/".join(row[other] for other in row if other != factor) for row in rows)
        return tuple(f"{role}/{values}" for role, values in zip(roles, others, strict=True))

    return [
        Column(factor, tuple(row.get(factor) for row in shown), pair_names(factor)) for factor in factor_set.factors
    ]


def _pair_names(fields: Sequence[Mapping[str, str]], other: str) -> tuple[str | None, ...]:
    """Return a pair name for each drawing, "ROLE/VALUE"; None where VALUE is "mixed".

    `fields` has each drawing's values by field name. ROLE is the value of "role", the caption without gender and skin
    tone; VALUE is that of the field `other` ("gender" or "skin_tone").
    """
    return tuple(None if field[other] == "mixed" else f"{field['role']}/{field[other]}" for field in fields)


def from_file(
    path: Path, names: Sequence[str], *, columns: Sequence[str] = (), pair: str | None = None
) -> list[Column]:
    """Read the attributes of a folder's pictures from a table (.csv, .tsv, .jsonl, or CelebA's .txt).

    A column of more than 32 different numbers, such as an age, becomes a binary attribute: whether the number is above
    the median. If these are whole numbers and all different, such as serial numbers, `columns` must name the column.

    Args:
        path: the table. Each row has file_name and the attributes of one picture; an empty cell means unknown.
        names: the pictures' paths relative to the folder. A picture without a row has only unknown attributes; rows
            of pictures that are not in `names` are ignored.
        columns: names of the columns to read; empty: all columns of 2 to 32 different values, or of numbers.
        pair: name of the column whose value is the same for pictures that differ in one attribute alone; None: none.

    Raises:
        UserError: the table cannot be read, has a broken row or lacks a named column; no column is an attribute; or
            no row is for a picture in `names`.
    """
    table = read_table(path)
    rows = _rows_of(path, table.rows, names)
    present = list(table.columns)
    if missing := [name for name in (*columns, *([pair] if pair else [])) if name not in present]:
        raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(present) or 'none beside file_name'}")

    def values_of(name: str) -> tuple[str | None, ...]:
        column = table.columns[name]
        return tuple(None if row is None else column[row] for row in rows)

    pairs = None if pair is None else values_of(pair)
    read = [_column(name, values_of(name), pairs, named=bool(columns)) for name in columns or present if name != pair]
    attributes = [column for column in read if column is not None]
    if not attributes:
        raise UserError(
            f"{path} has no attribute: no column beside file_name with 2 to {MAX_VALUES} values, or numbers"
        )
    return attributes


def _column(
    name: str, values: tuple[str | None, ...], pairs: tuple[str | None, ...] | None, named: bool
) -> Column | None:
    """Return a table's column as an attribute; None if it has too few or too many different values (see `from_file`).

    Args:
        name: the column's name.
        values: the value of each picture; None: not known.
        pairs: pair name of each picture; None: there are no pairs.
        named: whether the user named the column; a named column may have any number of values.
    """
    distinct = {value for value in values if value is not None}
    if len(distinct) > MAX_VALUES and (numbers := _numbers(distinct)):
        is_count = len(distinct) == sum(value is not None for value in values) and all(map(str.isdecimal, distinct))
        if named or not is_count:
            return _above_median(name, values, numbers, pairs)
    if len(distinct) > MAX_VALUES and not named:
        _log.warning(
            "left out the column %s, which has %d values; name it with --column to learn it", name, len(distinct)
        )
    return Column(name, values, pairs) if named or 2 <= len(distinct) <= MAX_VALUES else None


def _above_median(
    name: str, values: Sequence[str | None], numbers: Mapping[str, float], pairs: tuple[str | None, ...] | None
) -> Column:
    median = statistics.median(numbers[value] for value in values if value is not None)
    marks = {value: "1" if number > median else "0" for value, number in numbers.items()}
    return Column(f"{name} above {median:g}", tuple(None if value is None else marks[value] for value in values), pairs)


def _numbers(values: Collection[str]) -> dict[str, float]:
    """Parse values as numbers; return each value's number, by value, or {} if a value is no finite number."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return {}
    return numbers if all(map(math.isfinite, numbers.values())) else {}


def _rows_of(path: Path, rows: Mapping[str, int], names: Sequence[str]) -> list[int | None]:
    """Return the index of each picture's row in a table; None for a picture without a row.

    Pictures and rows are matched by path; if no path matches, by file name; if no file name matches, by file name
    without suffix. Published tables give the file name alone, and say .jpg where a converted folder has .png. A warning
    counts the rows without a picture, another the pictures without a row.

    Args:
        path: the table's path, for messages.
        rows: row index by the picture's name in the table.
        names: names of the folder's pictures.

    Raises:
        UserError: no row of the table is for a picture in `names`.
    """
    matched = next(filter(None, (_matched(rows, names, key) for key in (str, _base, _stem))), {})
    if not matched:
        shown = ", ".join([*rows][:3]) + (", ..." if len(rows) > 3 else "")
        raise UserError(
            f"{path} labels {len(rows)} pictures that the folder does not hold: {shown}; the folder's are named as "
            f"{names[0]}"
        )
    if unused := len(rows) - len(matched):
        taken = {*matched.values()}
        first = next(name for name, number in rows.items() if number not in taken)
        _log.warning("%s has %d rows of pictures that the folder does not hold, first %s", path, unused, first)
    if unlabelled := [name for name in names if name not in matched]:
        _log.warning(
            "%d of %d pictures have no label and are left out, first %s", len(unlabelled), len(names), unlabelled[0]
        )
    return [matched.get(name) for name in names]


def _matched(rows: Mapping[str, int], names: Sequence[str], key: Callable[[str], str]) -> dict[str, int]:
    """Match pictures to rows of a table by a part of their names.

    Args:
        rows: row index by the picture's name in the table.
        names: names of the folder's pictures.
        key: returns the part of a name that is compared, such as the file name without its folder.

    Returns:
        Row index by the picture's name, for each picture whose key is the key of one row and of no other picture.
    """
    keys, counts = Counter(map(key, rows)), Counter(map(key, names))
    by_key = {key(name): number for name, number in rows.items() if keys[key(name)] == 1}
    return {name: by_key[k] for name in names if counts[k := key(name)] == 1 and k in by_key}


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    return PurePosixPath(name).stem
