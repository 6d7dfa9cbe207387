"""Records of pictures; many records are stored in a few arrays, in memory or mapped from a file, not as objects."""

import json
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, overload

import numpy as np

Array = np.ndarray[Any, Any]
UNLABELLED = -1  # class index, in arrays, of a picture without a class
BLOCK = 65536  # values that an iterator converts to Python objects at once
_ERRORS = "surrogatepass"  # file names and JSON may hold lone surrogates
_NO_FIELDS: Mapping[str, str] = {}  # one object for all records
_OTHERS = "\0others"  # key of the further captions among a picture's stored values; no column has this name
_OTHERS_IN_JSON = json.dumps(_OTHERS)


@dataclass(frozen=True)
class Record:
    """Metadata of one picture: name, caption, class and further values."""

    name: str  # stable id: relative posix path, or an emoji's code points "1F469-1F3FF-200D-1F680"
    text: str  # caption, "" if none
    label: int | None  # index into PictureSet.classes, None if unlabelled
    fields: Mapping[str, str] = field(default_factory=dict)  # further values by name, such as skin_tone
    others: tuple[str, ...] = ()  # further captions, of which training draws one

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions, the first one included; ("",) if there are none."""
        return self.text, *self.others


class StringBuilder:
    """Collector of strings, added one by one, which it stores in one UTF-8 buffer and returns as `Strings`."""

    def __init__(self) -> None:
        self.buffer, self.ends = bytearray(), array("q")

    def add(self, text: str) -> None:
        """Append a string."""
        self.buffer += text.encode("utf-8", _ERRORS)
        self.ends.append(len(self.buffer))

    def strings(self) -> "Strings":
        """Return all strings added so far, in order."""
        return Strings(np.array(self.buffer, np.uint8), np.array(self.ends, np.int64))


@dataclass(frozen=True, eq=False)
class Strings(Sequence[str]):
    """N strings stored as UTF-8 in one buffer, which may hold further strings that are not selected."""

    buffer: Array  # uint8, the strings one after the other
    ends: Array  # int64, the end of each string in the buffer
    rows: Array | None = None  # int64 [N], the selected strings as indices into `ends`; None: all strings

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Strings":
        """Store the strings `texts` in one buffer; the iterable is consumed once."""
        builder = StringBuilder()
        for text in texts:
            builder.add(text)
        return builder.strings()

    def take(self, rows: Array) -> "Strings":
        """Return the strings at the indices `rows` [M]; the buffer is not copied."""
        return Strings(self.buffer, self.ends, rows if self.rows is None else self.rows[rows])

    def __len__(self) -> int:
        return len(self.ends if self.rows is None else self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Strings": ...
    def __getitem__(self, index: int | slice) -> "str | Strings":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index] if self.rows is None else int(self.rows[index])
        start = int(self.ends[row - 1]) if row else 0
        return self.buffer[start : int(self.ends[row])].tobytes().decode("utf-8", _ERRORS)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), BLOCK):
            last = min(first + BLOCK, len(self))
            rows = np.arange(first, last) if self.rows is None else self.rows[first:last]
            starts, ends = np.where(rows > 0, self.ends[rows - 1], 0), self.ends[rows]
            low = int(starts.min())
            block = self.buffer.data[low : int(ends.max())]  # slices of it are quicker than an array's
            for start, end in zip((starts - low).tolist(), (ends - low).tolist(), strict=True):
                yield str(block[start:end], "utf-8", _ERRORS)


@dataclass(frozen=True, eq=False)
class Labels(Sequence[int | None]):
    """The class indices of N pictures, stored as an array; read as None for a picture without a class."""

    values: Array  # int32 [N], UNLABELLED (-1) for None

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> int | None: ...
    @overload
    def __getitem__(self, index: slice) -> "Labels": ...
    def __getitem__(self, index: int | slice) -> "int | Labels | None":
        if isinstance(index, slice):
            return Labels(self.values[index])
        value = int(self.values[index])
        return None if value == UNLABELLED else value

    def __iter__(self) -> Iterator[int | None]:
        for first in range(0, len(self), BLOCK):
            yield from (None if v == UNLABELLED else v for v in self.values[first : first + BLOCK].tolist())


@dataclass(frozen=True, eq=False)
class Records(Sequence[Record]):
    """The metadata of N pictures, stored as arrays; a `Record` object is made only when an element is read."""

    names: Strings  # name of each picture
    texts: Strings  # caption of each picture, "" for none
    labels: Labels  # class index of each picture, None for none
    fields: Strings  # each picture's further metadata and captions as a JSON object (`stored`), "" for none

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Records":
        """Store `Record` objects as arrays; the iterable is consumed once."""
        names, texts, fields, labels = StringBuilder(), StringBuilder(), StringBuilder(), array("i")
        for record in records:
            names.add(record.name)
            texts.add(record.text)
            fields.add(stored_json(record.fields, record.others))
            labels.append(UNLABELLED if record.label is None else record.label)
        numbers = Labels(np.frombuffer(labels, np.int32))
        return cls(names.strings(), texts.strings(), numbers, fields.strings())

    def take(self, rows: Array) -> "Records":
        """Return the records of the pictures at the indices `rows` [M]; strings are not copied."""
        labels = Labels(self.labels.values[rows])
        return Records(self.names.take(rows), self.texts.take(rows), labels, self.fields.take(rows))

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return _record(self.names[index], self.texts[index], self.labels[index], self.fields[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __iter__(self) -> Iterator[Record]:
        return map(_record, self.names, self.texts, self.labels, self.fields)


@dataclass(frozen=True, eq=False)
class Numbers(Sequence[int]):
    """A sequence of N integers, stored as an array and read as Python ints."""

    values: Array  # int64 [N]

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> int | Self:
        return type(self)(self.values[index]) if isinstance(index, slice) else int(self.values[index])

    def __iter__(self) -> Iterator[int]:
        for first in range(0, len(self), BLOCK):
            yield from self.values[first : first + BLOCK].tolist()


def names_of(records: Sequence[Record]) -> Sequence[str]:
    """Return the pictures' names; if `records` is a `Records`, without making a `Record` object for each."""
    return records.names if isinstance(records, Records) else [record.name for record in records]


def texts_of(records: Sequence[Record]) -> Sequence[str]:
    """Return the pictures' captions; if `records` is a `Records`, without making a `Record` object for each."""
    return records.texts if isinstance(records, Records) else [record.text for record in records]


def labels_of(records: Sequence[Record]) -> Sequence[int | None]:
    """Return the pictures' class indices (None: no class); from a `Records`, without making `Record` objects."""
    return records.labels if isinstance(records, Records) else [record.label for record in records]


def compact(values: Sequence[str | int]) -> Sequence[str | int]:
    """Return strings as `Strings`, or ints as `Numbers`, which take less memory than lists; a mix is returned as is."""
    if all(isinstance(value, str) for value in values):
        return Strings.of(str(value) for value in values)
    if all(isinstance(value, int) for value in values):
        return Numbers(np.fromiter((int(value) for value in values), np.int64, len(values)))
    return values


def others_of(records: Sequence[Record]) -> Sequence[tuple[str, ...]]:
    """Return the pictures' further captions; from a `Records`, without making `Record` objects."""
    if not isinstance(records, Records):
        return [record.others for record in records]
    return [tuple(json.loads(text)[_OTHERS]) if _OTHERS_IN_JSON in text else () for text in records.fields]


def stored(fields: Mapping[str, str], others: Sequence[str]) -> dict[str, Any]:
    """Return a picture's further values and captions as one JSON object, from which `record_of` takes both."""
    return {**fields, _OTHERS: [*others]} if others else {**fields}


def stored_json(fields: Mapping[str, str], others: Sequence[str]) -> str:
    """Return a picture's further values and captions as the text of a JSON object; "" for none."""
    values = stored(fields, others)
    return json.dumps(values) if values else ""


def record_of(name: str, text: str, label: int | None, values: Mapping[str, Any]) -> Record:
    """Return the record of a picture whose further values and captions `values` are as `stored` returns them."""
    if _OTHERS not in values:
        return Record(name, text, label, values or _NO_FIELDS)
    fields = {key: value for key, value in values.items() if key != _OTHERS}
    return Record(name, text, label, fields, tuple(values[_OTHERS]))


def _record(name: str, text: str, label: int | None, values: str) -> Record:
    return record_of(name, text, label, json.loads(values) if values else _NO_FIELDS)
