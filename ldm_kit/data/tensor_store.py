"""Large tables of tensors, row by row: on disk, or made when asked for; only the rows of a batch are in memory."""

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, to_unit

Place = int | slice | Tensor | tuple[Tensor | slice, int | Tensor | slice]  # rows, or (rows, which view of each)
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class Rows(Protocol):
    """What is asked of a table [N, V, ...]: its size, and rows by number. A tensor is one."""

    @property
    def shape(self) -> Sequence[int]:
        """[N, V, ...]."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: Place, /) -> Tensor:
        """Rows by number or slice; with a second index, one view of each."""
        ...


class Piece(NamedTuple):
    """Where one tensor lies in a safetensors file."""

    path: Path
    offset: int  # of its first byte
    shape: tuple[int, ...]
    dtype: torch.dtype


def locate(path: Path, name: str) -> Piece:
    """Where a tensor lies in a safetensors file whose header is known to be good."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(size))[name]
    return Piece(path, 8 + size + about["data_offsets"][0], tuple(about["shape"]), DTYPES[about["dtype"]])


@dataclass(frozen=True, eq=False)
class Stored:
    """One table out of pieces in several files, joined along their first dimension and read with plain reads.

    It holds no file open and nothing mapped, so it can be copied to data-loader processes, and memory stays flat
    however many rows are read.
    """

    pieces: Sequence[Piece]
    ends: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", list(accumulate(piece.shape[0] for piece in self.pieces)))

    @property
    def shape(self) -> Sequence[int]:
        """[N, V, ...]."""
        return torch.Size((len(self), *self.pieces[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """As stored."""
        return self.pieces[0].dtype

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, place: Place, /) -> Tensor:
        return _looked_up(self._read, len(self), place)

    def _read(self, rows: Sequence[int]) -> Tensor:
        """The rows [B, V, ...]; each file is opened once."""
        found = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        wanted: dict[int, list[int]] = {}
        for slot, row in enumerate(rows):
            wanted.setdefault(bisect_right(self.ends, row), []).append(slot)
        for number, slots in wanted.items():
            piece = self.pieces[number]
            first = self.ends[number] - piece.shape[0]
            found[slots] = _rows_of(piece, [rows[slot] - first for slot in slots])
        return found


def _rows_of(piece: Piece, rows: Sequence[int]) -> Tensor:
    size = torch.Size(piece.shape[1:]).numel() * piece.dtype.itemsize
    file = os.open(piece.path, os.O_RDONLY)
    try:
        raw = bytearray().join(os.pread(file, size, piece.offset + row * size) for row in rows)
    finally:
        os.close(file)
    if len(raw) != size * len(rows):
        raise UserError(f"{piece.path} has been cut since the run began; expected it to stay as it is")
    return torch.frombuffer(raw, dtype=piece.dtype).view(len(rows), *piece.shape[1:])


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pictures as numbers in [-1, 1], [N, V, C, R, R] float32: plain and, with `flip`, mirrored; decoded when asked."""

    pictures: PictureSet
    flip: bool

    @property
    def shape(self) -> Sequence[int]:
        """[N, V, C, R, R]."""
        side = self.pictures.resolution
        return torch.Size((len(self), 1 + self.flip, self.pictures.channels, side, side))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: Place, /) -> Tensor:
        return _looked_up(self._read, len(self), place)

    def _read(self, rows: Sequence[int]) -> Tensor:
        plain = to_unit(self.pictures.pictures(rows))
        return torch.stack([plain, plain.flip(3)] if self.flip else [plain], dim=1)


class _Read(Protocol):
    def __call__(self, rows: Sequence[int], /) -> Tensor: ...


def _looked_up(read: _Read, count: int, place: Place) -> Tensor:
    """Index as a tensor would be: rows first, then perhaps the view of each."""
    rows, *view = place if isinstance(place, tuple) else (place,)
    numbers = torch.arange(count)[rows]
    found = read(numbers.reshape(-1).tolist())
    if numbers.ndim == 0:
        return found[0]
    if not view:
        return found
    return found[torch.arange(len(found)), view[0]] if isinstance(view[0], Tensor) else found[:, view[0]]
