"""Several data sets as one, each with its share of the training samples."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.data.alpha import AlphaMasked
from ldm_kit.data.images import PictureSet, Record, Split, class_names, digest
from ldm_kit.data.records import Records
from ldm_kit.data.value_range import ValueRange, value_range_of


class Shares(NamedTuple):
    """Sizes of the parts of a set, and the shares of the training samples that come from each."""

    sizes: Sequence[int]  # pictures of each part, one part after the other in the set
    shares: Sequence[float]  # each above 0; their sum may be any number


@dataclass(frozen=True, eq=False)
class MixedSet:
    """The pictures of several sets (`parts`) of one resolution and number of channels, one part after the other."""

    parts: Sequence[PictureSet]
    shares: Sequence[float]  # share of the training samples from each part
    records: Sequence[Record]  # of all pictures: names with the number of the part before them, labels in `classes`
    classes: Sequence[str]  # the names of all parts' classes, each once

    @classmethod
    def of(cls, parts: Sequence[PictureSet], shares: Sequence[float], classes: Sequence[str]) -> "MixedSet":
        """Join sets; `classes` has the names of all their classes, by which labels are joined."""
        return cls(parts, shares, Records.of(_records(parts, classes)), classes)

    @cached_property
    def ends(self) -> list[int]:
        """The index after the last picture of each part."""
        return list(accumulate(map(len, self.parts)))

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, R."""
        return self.parts[0].resolution

    @property
    def channels(self) -> int:
        """Channels of a picture, C: 1 grey, 3 RGB, 4 RGBA."""
        return self.parts[0].channels

    @property
    def value_range(self) -> ValueRange | None:
        """What the levels of the pictures stand for, the same in all parts; None: they have 8 bits."""
        return value_range_of(self.parts[0])

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of the fingerprints of all parts; shares do not change it."""
        return digest(["mixed", *(member.fingerprint for member in self.parts)])

    def __len__(self) -> int:
        return self.ends[-1]

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        number, row = self._located(range(len(self))[index])
        return self.parts[number].picture(row)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels, read part by part."""
        slots: dict[int, list[int]] = {}
        located = [self._located(int(index)) for index in indices]
        for slot, (number, _) in enumerate(located):
            slots.setdefault(number, []).append(slot)
        blocks = [self.parts[number].pictures([located[slot][1] for slot in own]) for number, own in slots.items()]
        if not blocks:
            return self.parts[0].pictures([])
        order = torch.tensor([slot for own in slots.values() for slot in own]).argsort()
        return torch.cat(blocks)[order]

    def first(self, number: int) -> int:
        """Return the index of the first picture of part `number` (0, 1, ...)."""
        return self.ends[number] - len(self.parts[number])

    def _located(self, index: int) -> tuple[int, int]:
        """Return the part that the picture at `index` is in, and the picture's index in that part."""
        number = bisect_right(self.ends, index)
        return number, index - self.first(number)


def _records(parts: Sequence[PictureSet], classes: Sequence[str]) -> Iterator[Record]:
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    for number, member in enumerate(parts, 1):
        for record in member.records:
            label = None if record.label is None else numbers[member.classes[record.label]]
            yield replace(record, name=f"{number}/{record.name}", label=label)


def mix(splits: Sequence[Split], shares: Sequence[float]) -> Split:
    """Join several data sets of one resolution and number of channels, all with alpha as mask or none.

    Training, held-out and compositional sets are joined, each with those of its kind. Classes of equal names are one.

    Args:
        splits: the data sets.
        shares: share of the training samples from each; their sum may be any number.
    """
    names = class_names(name for split in splits for sets in split[:2] for name in sets.classes)
    further = [(split.compositional, share) for split, share in zip(splits, shares, strict=True) if split.compositional]
    train, heldout = (_joined([split[k] for split in splits], shares, names) for k in range(2))  # pyright: ignore
    compositional = (
        _joined([member for member, _ in further], [share for _, share in further], names) if further else None
    )
    return Split(train, heldout, compositional)


def _joined(parts: Sequence[PictureSet], shares: Sequence[float], classes: Sequence[str]) -> PictureSet:
    bases = [member.base for member in parts if isinstance(member, AlphaMasked)]
    joined = MixedSet.of(bases or parts, shares, classes)
    return AlphaMasked(joined) if bases else joined


def shares_of(pictures: PictureSet) -> Shares | None:
    """Return the sizes and shares of the parts of a set; None if it has no parts."""
    pictures = pictures.base if isinstance(pictures, AlphaMasked) else pictures
    return (
        Shares([len(member) for member in pictures.parts], pictures.shares) if isinstance(pictures, MixedSet) else None
    )
