"""Picture sets in which a picture that turns out to be broken when it is read is replaced by the next readable one.

A picture that is decoded on demand may turn out to be broken late: `verify` was off, or its file has changed. Which
picture replaces it depends on the files alone, so that all processes, data loaders and resumed runs agree. The set
keeps its length, order and fingerprint.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm_kit.data.alpha import AlphaMasked
from ldm_kit.data.bad_pictures import BadPictureSettings, check_share, skip_or_raise
from ldm_kit.data.image_files import BadPicture
from ldm_kit.data.images import DerivedSet, PictureSet, Split
from ldm_kit.data.mixed import MixedSet
from ldm_kit.data.records import Record

_NONE: Mapping[int, int] = {}


@dataclass(frozen=True, eq=False)
class ReadablePictures(DerivedSet):
    """A view of the picture set `base` in which each broken picture is replaced by the next readable one.

    Broken pictures are found when they are read, logged and counted; each process counts those that it has tried to
    read itself.
    """

    settings: BadPictureSettings  # the data config: what to do about broken pictures
    replaced: dict[int, int] = field(default_factory=dict)  # index of a broken picture -> index of its replacement

    @property
    def records(self) -> Sequence[Record]:
        """Records (name, caption, class) of all pictures, including broken ones."""
        return self.base.records

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the underlying set; replacements of broken pictures do not change it."""
        return self.base.fingerprint

    def __len__(self) -> int:
        return len(self.base)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, or the next readable one if it is broken, uint8 [C, R, R] (R x R pixels)."""
        return self.pictures([index])[0]

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]; for a broken picture, the next readable one.

        Raises:
            UserError: more pictures are broken than `max_bad_share` allows, or one is broken and `on_bad` is "raise".
        """
        while True:
            rows = [self.replaced.get(int(i), int(i)) for i in indices]
            try:
                return self.base.pictures(rows)
            except BadPicture:
                broken = {row: reason for row in dict.fromkeys(rows) if (reason := self._check(row))}
            self._replace(broken)

    def _check(self, row: int) -> str | None:
        try:
            self.base.picture(row)
        except BadPicture as error:
            return error.reason
        return None

    def _replace(self, broken: Mapping[int, str]) -> None:
        count, total = len(self.replaced) + len(broken), len(self)
        for row, reason in broken.items():
            complaint = f"{self.records[row].name}: {reason}"
            skip_or_raise(complaint, self.settings)
            check_share(count, total, self.settings, complaint)
        all_broken = {*self.replaced, *broken}
        for row in all_broken:
            self.replaced[row] = next(j % total for j in range(row + 1, row + total) if j % total not in all_broken)


def readable(split: Split, settings: BadPictureSettings) -> Split:
    """Return a split whose training and held-out sets replace a broken picture by another one of the same set.

    `settings` is the data config. Reading a broken picture raises UserError if `on_bad` is "raise", or if more of the
    set's pictures are broken than the share `max_bad_share`.
    """
    train, heldout = (ReadablePictures(pictures, settings) for pictures in (split.train, split.heldout))
    return split._replace(train=train, heldout=heldout)


def replacements(pictures: PictureSet) -> Mapping[int, int]:
    """Return {index of a broken picture found so far: index of the picture that replaces it} of a picture set.

    The mapping grows as pictures are read; it is empty for a set that replaces no pictures.
    """
    match pictures:
        case ReadablePictures():
            return pictures.replaced
        case AlphaMasked():
            return replacements(pictures.base)
        case MixedSet():
            return _PartReplacements(pictures)
        case _:
            return _NONE


@dataclass(frozen=True, eq=False)
class _PartReplacements(Mapping[int, int]):
    """Replacements of broken pictures in the parts of a set, by the indices in the whole set; it grows as they do."""

    pictures: MixedSet

    def _pairs(self) -> Iterator[tuple[int, int]]:
        for number, member in enumerate(self.pictures.parts):
            first = self.pictures.first(number)
            yield from ((first + old, first + new) for old, new in replacements(member).items())

    def __getitem__(self, index: int) -> int:
        return dict(self._pairs())[index]

    def __iter__(self) -> Iterator[int]:
        return (old for old, _ in self._pairs())

    def __len__(self) -> int:
        return sum(len(replacements(member)) for member in self.pictures.parts)


def sources(index: Tensor, replaced: Mapping[int, int]) -> Tensor:
    """Return `index` [B] with each broken picture's index changed to its replacement's, as `replaced` maps them."""
    return torch.tensor([replaced.get(i, i) for i in index.tolist()], dtype=index.dtype) if replaced else index
