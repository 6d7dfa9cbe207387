"""Sets of pictures at one resolution: what a set is, views of it, its fixed splits, and pixels as numbers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldm_kit.data.image_files import BadPicture as BadPicture
from ldm_kit.data.image_files import load_image as load_image


@dataclass(frozen=True)
class Record:
    """What is known of one picture beside its pixels."""

    name: str  # stable id: relative posix path, or an emoji's code points "1F469-1F3FF-200D-1F680"
    text: str  # caption, "" if none
    label: int | None  # index into PictureSet.classes, None if unlabelled
    fields: Mapping[str, str] = field(default_factory=dict)


class PictureSet(Protocol):
    """Pictures at one resolution, uint8 [C, R, R]; the fingerprint binds caches to settings, order and contents."""

    @property
    def records(self) -> Sequence[Record]:
        """One record a picture, in the set's order."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Class names that `Record.label` indexes; empty if nothing is labelled."""
        ...

    @property
    def resolution(self) -> int:
        """R, pixels along each side."""
        ...

    @property
    def channels(self) -> int:
        """C: 1 grey, 3 RGB, 4 RGBA."""
        ...

    @property
    def fingerprint(self) -> str:
        """Sha256 hex of the preprocessing settings and of every record's name and contents, in order."""
        ...

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Tensor:
        """One picture, uint8 [C, R, R]."""
        ...

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Several pictures, uint8 [N, C, R, R]."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """A picture set held as one tensor, uint8 [N, C, R, R]."""

    records: Sequence[Record]
    classes: Sequence[str]
    pixels: Tensor
    fingerprint: str

    @property
    def resolution(self) -> int:
        """R, pixels along each side."""
        return self.pixels.shape[-1]

    @property
    def channels(self) -> int:
        """C: 1 grey, 3 RGB, 4 RGBA."""
        return self.pixels.shape[1]

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        """One picture, uint8 [C, R, R]."""
        return self.pixels[index]

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Several pictures, uint8 [N, C, R, R]."""
        return self.pixels[torch.as_tensor(indices, dtype=torch.long)]


@dataclass(frozen=True, eq=False)
class _Subset:
    whole: PictureSet
    indices: Sequence[int]  # into `whole`
    records: Sequence[Record]
    fingerprint: str

    @property
    def classes(self) -> Sequence[str]:
        return self.whole.classes

    @property
    def resolution(self) -> int:
        return self.whole.resolution

    @property
    def channels(self) -> int:
        return self.whole.channels

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        return self.whole.picture(self.indices[index])

    def pictures(self, indices: Sequence[int]) -> Tensor:
        return self.whole.pictures([self.indices[int(i)] for i in indices])


class Split(NamedTuple):
    """Disjoint sets; `compositional` holds unseen combinations of seen parts, None where there are no parts."""

    train: PictureSet
    heldout: PictureSet
    compositional: PictureSet | None


def subset(pictures: PictureSet, indices: Sequence[int]) -> PictureSet:
    """A view of some pictures in the order given, with its own fingerprint; the pixels are not copied.

    Raises:
        IndexError: an index outside 0..len - 1.
    """
    indices = tuple(int(i) for i in indices)
    if outside := [i for i in indices if not 0 <= i < len(pictures)]:
        raise IndexError(f"index {outside[0]} is outside 0..{len(pictures) - 1}")
    fingerprint = digest([pictures.fingerprint, *map(str, indices)])
    return _Subset(pictures, indices, [pictures.records[i] for i in indices], fingerprint)


def split_off(records: Sequence[Record], share: float) -> tuple[list[int], list[int]]:
    """Indices kept and held out: about `share` of the records, by a hash of each one's own name.

    A record's side does not depend on the order, and (but for the two guards) not on which others exist. The guards:
    of more than 10 records at least one is held out if share > 0, and the last record of a class stays in training.
    """
    ranks = [unit_hash("heldout", record.name) for record in records]
    held = {i for i, rank in enumerate(ranks) if rank < share}
    if not held and share > 0 and len(records) > 10:
        held = {min(range(len(records)), key=ranks.__getitem__)}
    missing = {r.label for r in records} - {r.label for i, r in enumerate(records) if i not in held} - {None}
    for label in missing:
        held.remove(max((i for i in held if records[i].label == label), key=ranks.__getitem__))
    return [i for i in range(len(records)) if i not in held], sorted(held)


def unit_hash(salt: str, name: str) -> float:
    """A number in [0, 1) that depends on the two strings alone, the same on every machine and in every release."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode("utf-8", "surrogateescape")).digest()[:6]) / 2**48


def digest(parts: Sequence[str]) -> str:
    """Sha256 hex over a sequence of strings; no two different sequences read the same (lengths go in)."""
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")
        state.update(len(raw).to_bytes(8) + raw)
    return state.hexdigest()


def to_unit(pictures: Tensor) -> Tensor:
    """Bytes 0..255 -> float32 in [-1, 1], any shape."""
    return pictures.to(torch.float32) / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 0..255, rounded and clamped, any shape; NaN becomes 0."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).nan_to_num(0).to(torch.uint8)
