"""The index of an archive (a tar shard or a parquet file of pictures), and the protocol of archive readers.

An index has a row for each picture: where it lies in the archive, its caption, class and further values. The rows are
stored in a few arrays, and become tuples when they are read.
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np

from ldm_kit.data import atomic
from ldm_kit.data.metadata import Entry
from ldm_kit.data.records import UNLABELLED, Array, StringBuilder, Strings

_log = logging.getLogger("ldm_kit.data")

# A picture of an archive: name in the archive, caption, class name (None: no class), further values and captions
# (`records.stored`), location in the archive (two numbers, see `ArchiveReader.read`), sha256 (hex) of the image file.
Row = tuple[str, str, str | None, Mapping[str, Any], Sequence[int], str]


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Metadata of an archive's N pictures, stored as arrays.

    An element is a tuple (name, caption, class name, further values, location in the archive, sha256) of one picture.
    """

    names: Strings  # the pictures' names in the archive
    texts: Strings  # captions
    fields: Strings  # each picture's further values as a JSON object, "" for none
    classes: Sequence[str]  # class names
    labels: Array  # int32 [N], indices into `classes`; UNLABELLED (-1) for a picture without a class
    locations: Array  # int64 [N, 2], where each picture lies in the archive (two numbers, for `ArchiveReader.read`)
    hashes: Array  # uint8 [N, 32], sha256 of each picture's file

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Rows":
        """Return `Rows` made from a tuple (name, caption, class name, further values, location, sha256) per picture."""
        names, texts, fields = StringBuilder(), StringBuilder(), StringBuilder()
        classes: dict[str, int] = {}
        labels, locations, hashes = array("i"), array("q"), bytearray()
        for name, text, label, values, location, sha256 in rows:
            names.add(name)
            texts.add(text)
            fields.add(json.dumps(values) if values else "")
            labels.append(UNLABELLED if label is None else classes.setdefault(label, len(classes)))
            locations.extend(location)
            hashes += bytes.fromhex(sha256)
        places, digests = np.array(locations, np.int64).reshape(-1, 2), np.array(hashes, np.uint8).reshape(-1, 32)
        strings = names.strings(), texts.strings(), fields.strings()
        return cls(*strings, list(classes), np.array(labels, np.int32), places, digests)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._row(index, self.names[index], self.texts[index], self.fields[index])

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, range(len(self)), self.names, self.texts, self.fields)

    def _row(self, index: int, name: str, text: str, fields: str) -> Row:
        label, values = int(self.labels[index]), json.loads(fields) if fields else {}
        class_name = None if label == UNLABELLED else self.classes[label]
        return name, text, class_name, values, self.locations[index].tolist(), self.hashes[index].tobytes().hex()


class ArchiveSample(NamedTuple):
    """A picture that `ArchiveReader.scan` found in an archive (a tar shard or a parquet file)."""

    entry: Entry  # name in the archive, caption, class and further metadata
    location: tuple[int, int]  # argument of `ArchiveReader.read`, such as the file's offset and size in a tar
    contents: bytes  # bytes of the image file


class ArchiveReader(Protocol):
    """Reader of the pictures and their metadata in one kind of archive, such as tar shards or parquet files."""

    @property
    def key(self) -> Sequence[str]:
        """The reader's settings as strings: kind of archive, names of columns or fields.

        They are part of the key under which the list of an archive's pictures is cached.
        """
        ...

    def scan(self, path: Path) -> Iterator[ArchiveSample | str]:
        """Yield each picture of the archive `path` with metadata, location and bytes, or a message why it is bad."""
        ...

    def read(self, path: Path, location: tuple[int, int]) -> bytes:
        """Return the bytes of one image file in the archive `path`; `location` is that of its `ArchiveSample`."""
        ...


class Index(NamedTuple):
    """List of an archive's pictures."""

    rows: Sequence[Row]  # the usable pictures of one archive
    bad: list[str]  # a complaint for each picture that cannot be used
    profiles: list[tuple[str, str, str]]  # (name of a picture that is not in sRGB, name of its profile, problem)


def read_index(path: Path) -> Index | None:
    """Load the list of an archive's pictures from the cache file `path`; None if the file is missing or damaged."""
    try:
        checksum, _, text = path.read_text(encoding="ascii").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise ValueError("its checksum differs")
        rows, bad, profiles = json.loads(text)
        return Index(Rows.of(rows), bad, profiles)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("the index %s is damaged (%s) and is made again", path, error)
        return None


def write_index(path: Path, index: Index) -> None:
    """Write a list of pictures to the cache file `path`; log it if that is impossible."""
    text = json.dumps([list(index.rows), index.bad, index.profiles])
    try:
        atomic.write(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode("ascii"))
    except OSError as error:
        _log.warning("cannot keep an index under %s (%s); it will be made again", path.parent, error.strerror)
