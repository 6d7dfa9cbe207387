"""Parquet tables of pictures, in the layout of data sets on the Hugging Face Hub.

The image column holds the bytes of an image file, or a struct {bytes, path}. Only the bytes are used: a path in a table
is never opened. Reading a picture reads its whole row group; the row group read last is kept in memory.
"""

import importlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ldm_kit.config import UserError
from ldm_kit.data import archives
from ldm_kit.data.archive_rows import ArchiveSample
from ldm_kit.data.archives import ArchiveConfig
from ldm_kit.data.captions import Captions
from ldm_kit.data.images import Split
from ldm_kit.data.metadata import Entry, as_text
from ldm_kit.packages import import_extra

_log = logging.getLogger("ldm_kit.data")
GROUP_LIMIT = 512 * 2**20  # most bytes of the pictures in a row group, uncompressed
GROUP_SLOW = 32 * 2**20  # bytes of the pictures in a row group above which a warning says that reading is slow
SCAN_ROWS = 64  # rows read at once while scanning a table


class ParquetConfig(ArchiveConfig):
    """Options of a data source that is a parquet file or a folder of parquet files."""

    source: Literal["parquet"] = Field(default="parquet", description="which data: parquet tables")
    image_column: str = Field(default="image", description="column of the pictures: bytes, or a struct {bytes, path}")
    text_column: str | None = Field(
        default=None, description="column of captions; null: the column text or caption, if the table has one"
    )
    label_column: str | None = Field(
        default=None, description="column of classes; null: the column label, if the table has one"
    )


@dataclass(frozen=True)
class ParquetReader:
    """Reader of the pictures, captions and classes in parquet files; its attributes are names of columns."""

    image: str = "image"  # column of pictures
    text: str | None = None  # column of captions; None: the column text or caption, if the table has one
    label: str | None = None  # column of classes; None: the column label, if the table has one
    fields: Sequence[str] = ()  # columns of further values to keep

    @property
    def key(self) -> Sequence[str]:
        """The word "parquet" and the column names: part of the key under which a file's list of pictures is cached."""
        return ["parquet", self.image, str(self.text), str(self.label), *self.fields]

    def scan(self, path: Path) -> Iterator[ArchiveSample | str]:
        """Yield a picture with its metadata for every row of the file `path`; for a bad row, a message that says why.

        Rows come in order; a picture's name is the number of its row.

        Raises:
            UserError: the file is not parquet or is damaged, a column is missing or of another type, or row groups are
                too large.
        """
        try:
            with _parquet().ParquetFile(path) as file:
                columns = self._columns(file.schema_arrow, path)
                names = _class_names(file.schema_arrow, columns["label"])
                image = _bytes_column(file.schema_arrow, self.image, path)
                _check_row_groups(file, image, path)
                read = [image, *filter(None, {*columns.values(), *self.fields})]
                for number, (location, row) in enumerate(_rows(file, read)):
                    yield self._sample(f"{number:08d}", location, row, columns=columns, class_names=names)
        except _read_errors() as error:
            raise UserError(f"{path} is no parquet file, or damaged ({' '.join(str(error).split()):.200})") from None

    def _columns(self, schema: Any, path: Path) -> dict[str, str | None]:
        """Return {"text": name of the caption column, "label": name of the class column}, None for a missing column.

        `schema` is pyarrow's schema of the table in the file `path`.

        Raises:
            UserError: a configured column is missing.
        """
        configured = [name for name in (self.text, self.label, *self.fields) if name is not None]
        if missing := [name for name in configured if name not in schema.names]:
            raise UserError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(schema.names)}")
        text = self.text or next((name for name in ("text", "caption") if name in schema.names), None)
        return {"text": text, "label": self.label or ("label" if "label" in schema.names else None)}

    def _sample(
        self,
        name: str,
        location: tuple[int, int],
        row: dict[str, Any],
        *,
        columns: dict[str, str | None],
        class_names: list[str],
    ) -> ArchiveSample | str:
        image = row[self.image]
        contents = image["bytes"] if isinstance(image, dict) else image
        if not contents:
            return f"{name}: holds no bytes of a picture (a path inside a table is never opened)"
        text, label = (None if column is None else row[column] for column in (columns["text"], columns["label"]))
        try:
            captions = Captions.of(text)
        except ValueError as error:
            return f"{name}: its text is {error}"
        if not isinstance(label, str | int | None):
            return f"{name}: its label is {label!r:.60}; expected a text or a number"
        if isinstance(label, int) and 0 <= label < len(class_names):
            label = class_names[label]
        elif class_names and label == -1:  # the value of data sets for no label
            label = None
        fields = {field: as_text(row[field]) for field in self.fields}
        label = None if label is None else str(label)
        return ArchiveSample(Entry(name, captions.text, label, fields, others=captions.others), location, contents)

    def read(self, path: Path, location: tuple[int, int]) -> bytes:
        """Return the bytes of one image file in the parquet file `path`; `location` is (row group, row within it)."""
        stat = path.stat()
        group, row = location
        image = _read_row_group(path, (stat.st_size, stat.st_mtime_ns), group, self.image)[row].as_py()
        return image["bytes"] if isinstance(image, dict) else image


def load(config: ParquetConfig) -> Split:
    """Load the training and held-out pictures of parquet files.

    Raises:
        UserError: pyarrow is missing, there are no files, a column is missing, no picture is usable, more pictures are
            bad than allowed, or no picture is left to train on.
    """
    _parquet()
    reader = ParquetReader(config.image_column, config.text_column, config.label_column, config.fields)
    return archives.load(config, reader, ".parquet")


def _parquet() -> Any:
    return import_extra("pyarrow.parquet", "pyarrow", "parquet", "data.source parquet")


def _read_errors() -> tuple[type[Exception], ...]:
    return (importlib.import_module("pyarrow").ArrowException, OSError)


def _bytes_column(schema: Any, image: str, path: Path) -> str:
    """Return the name of the column with the pictures' bytes: `image`, or `image.bytes` if that column is a struct.

    Raises:
        UserError: pyarrow's `schema` of the file `path` has no column `image`, or one of another type.
    """
    arrow = importlib.import_module("pyarrow")
    if image not in schema.names:
        raise UserError(f"{path} has no column {image!r}; name another image_column of {', '.join(schema.names)}")
    kind = schema.field(image).type
    inner = kind
    if arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
    if not (arrow.types.is_binary(inner) or arrow.types.is_large_binary(inner)):
        raise UserError(f"{path}: column {image!r} is {kind}; expected bytes, or a struct with bytes")
    return image if inner is kind else f"{image}.bytes"


def _class_names(schema: Any, label: str | None) -> list[str]:
    """Return the names of classes 0, 1, ... of column `label` that Hugging Face's `datasets` stored in `schema`.

    The result is [] if `datasets` stored none, or `label` is None.
    """
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _check_row_groups(file: Any, image: str, path: Path) -> None:
    """Check the size of row groups, as reading a picture reads its whole row group; warn if this will be slow.

    Args:
        file: the open `pyarrow.parquet.ParquetFile`.
        image: name of the column of pictures.
        path: path of the file, for messages.

    Raises:
        UserError: the pictures of a row group have more than GROUP_LIMIT (512 MiB) bytes.
    """
    largest = max((_size(file.metadata.row_group(i), image) for i in range(file.num_row_groups)), default=0)
    advice = "write the table anew with row groups of at most 100 rows (row_group_size=100), or as tar shards"
    if largest > GROUP_LIMIT:
        raise UserError(f"{path} has row groups of {largest / 2**20:,.0f} MiB; {advice}")
    if largest > GROUP_SLOW:
        _log.warning("%s: each picture costs reading a row group of %.0f MiB; %s", path.name, largest / 2**20, advice)


def _size(group: Any, image: str) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == image)


def _rows(file: Any, columns: Sequence[str]) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    for group in range(file.num_row_groups):
        row = 0
        for batch in file.iter_batches(SCAN_ROWS, row_groups=[group], columns=columns, use_threads=False):
            for values in batch.to_pylist():
                yield (group, row), values
                row += 1


@lru_cache(maxsize=1)
def _read_row_group(path: Path, _stamp: tuple[int, int], group: int, image: str) -> Any:
    """Read column `image` of row group number `group`; the last result is kept while `_stamp` stays the same.

    `_stamp` is the size and the time of change of the file `path`.
    """
    with _parquet().ParquetFile(path) as file:
        column = _bytes_column(file.schema_arrow, image, path)
        return file.read_row_group(group, columns=[column], use_threads=False).column(image)
