"""Tables of tensors that are too large for memory: the rows of a batch are read from disk, or computed on demand."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, to_unit

RowIndex = int | slice | Tensor | tuple[Tensor | slice, int | Tensor | slice]  # rows, or (rows, view of each row)
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class TensorTable(Protocol):
    """Protocol of tables [N, V, ...], indexed like a tensor, of N pictures in V views (1: plain; 2: also mirrored)."""

    @property
    def shape(self) -> Sequence[int]:
        """Shape [N, V, ...] of the table."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: RowIndex, /) -> Tensor:
        """Return the rows that a number, slice or tensor selects; a second index, if given, selects each row's view."""
        ...


class StoredTensor(NamedTuple):
    """Location of one tensor in a safetensors file."""

    path: Path
    offset: int  # position of the tensor's first byte in the file
    shape: tuple[int, ...]
    dtype: torch.dtype


def locate(path: Path, name: str) -> StoredTensor:
    """Return the location of the tensor `name` in a safetensors file, whose header must be valid.

    Raises:
        KeyError: the file has no tensor of this name.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    return StoredTensor(path, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])


@dataclass(frozen=True, eq=False)
class StoredTable:
    """A table on disk: tensors in several safetensors files, joined along their first dimension.

    The table keeps no file open and maps none into memory. So it can be copied to data-loader processes, and its memory
    stays constant however many rows are read.
    """

    tensors: Sequence[StoredTensor]  # in the order of rows
    ends: Sequence[int] = field(init=False)  # for each tensor, 1 + the number of its last row in the table

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", list(accumulate(tensor.shape[0] for tensor in self.tensors)))

    @property
    def shape(self) -> Sequence[int]:
        """Shape [N, V, ...] of the table."""
        return torch.Size((len(self), *self.tensors[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the stored tensors."""
        return self.tensors[0].dtype

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: RowIndex, /) -> Tensor:
        return _indexed(self._read, len(self), index)

    def _read(self, rows: Sequence[int]) -> Tensor:
        """Return the rows with the numbers `rows`, [B, V, ...]; each file is opened once."""
        values = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        slots_by_tensor: dict[int, list[int]] = {}
        for slot, row in enumerate(rows):
            slots_by_tensor.setdefault(bisect_right(self.ends, row), []).append(slot)
        for number, slots in slots_by_tensor.items():
            tensor = self.tensors[number]
            start = self.ends[number] - tensor.shape[0]
            values[slots] = _read_rows(tensor, [rows[slot] - start for slot in slots])
        return values


def _read_rows(tensor: StoredTensor, rows: Sequence[int]) -> Tensor:
    size = torch.Size(tensor.shape[1:]).numel() * tensor.dtype.itemsize
    with tensor.path.open("rb", buffering=0) as file:  # opened anew, and not shared among processes
        content = bytearray().join(_read_at(file, tensor.offset + row * size, size) for row in rows)
    if len(content) != size * len(rows):
        raise UserError(f"{tensor.path} has been cut since the run began; expected it to stay as it is")
    return torch.frombuffer(content, dtype=tensor.dtype).view(len(rows), *tensor.shape[1:])


def _read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


@dataclass(frozen=True, eq=False)
class PixelTable:
    """N pictures (C channels, R x R pixels) as a table [N, V, C, R, R], float32 in [-1, 1], decoded when it is read.

    Args:
        pictures: the picture set.
        flip: whether each picture has two views (V = 2), plain and mirrored, or only the plain view (V = 1).
        size: height and width of the pictures; None: they are squares.
    """

    pictures: PictureSet
    flip: bool
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> Sequence[int]:
        """Shape [N, V, C, R, R] of the table."""
        side = self.pictures.resolution
        return torch.Size((len(self), 1 + self.flip, self.pictures.channels, *(self.size or (side, side))))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: RowIndex, /) -> Tensor:
        return _indexed(self._read, len(self), index)

    def _read(self, rows: Sequence[int]) -> Tensor:
        plain = to_unit(self.pictures.pictures(rows))
        return torch.stack([plain, plain.flip(3)] if self.flip else [plain], dim=1)


class _ReadRows(Protocol):
    def __call__(self, rows: Sequence[int], /) -> Tensor: ...


def _indexed(read: _ReadRows, count: int, index: RowIndex) -> Tensor:
    """Return the rows that `index` selects in a table of `count` rows, [N, V, ...]: of each all V views, or one.

    `read` is a function that returns the rows with B given numbers (0 to count - 1), [B, V, ...].
    """
    rows, *view = index if isinstance(index, tuple) else (index,)
    numbers = _row_numbers(count, rows)
    values = read(numbers)
    if isinstance(rows, int) or (isinstance(rows, Tensor) and rows.ndim == 0):
        return values[0][view[0]] if view else values[0]
    if not view:
        return values
    return values[torch.arange(len(values)), view[0]] if isinstance(view[0], Tensor) else values[:, view[0]]


def _row_numbers(count: int, rows: int | slice | Tensor) -> Sequence[int]:
    """Return the numbers (0 to count - 1) of the rows that `rows` selects in a table of `count` rows.

    `rows` is a number (negative: from the end), a slice, a tensor of integers, or a boolean mask [count].

    Raises:
        IndexError: a row is outside -count..count - 1.
    """
    if isinstance(rows, slice):
        return range(*rows.indices(count))
    if isinstance(rows, Tensor) and rows.dtype == torch.bool:
        rows = rows.nonzero()
    numbers = [rows] if isinstance(rows, int) else rows.reshape(-1).tolist()
    if outside := [number for number in numbers if not -count <= number < count]:
        raise IndexError(f"row {outside[0]} is outside a table of {count}")
    return [number % count for number in numbers]
