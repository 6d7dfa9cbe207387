"""Picture sets in which a picture that turns out to be broken while they are read is replaced by the next one.

Pictures that are decoded on demand may break after they were listed: `verify` is off, or a file changes. Which picture
takes a broken one's place depends on the files alone, so that all processes, data loaders and resumed runs agree, and
the set keeps its length, order and fingerprint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm_kit.data.bad_pictures import BadPictureSettings, check_share, skip_or_raise
from ldm_kit.data.image_files import BadPicture
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.records import Record

_NONE: Mapping[int, int] = {}


@dataclass(frozen=True, eq=False)
class ReadablePictures:
    """A picture set that is total: pictures that cannot be read are named, counted, and replaced by the next that can.

    Each process counts those that it has met.
    """

    base: PictureSet
    settings: BadPictureSettings
    replaced: dict[int, int] = field(default_factory=dict)  # index of a broken picture -> index of its replacement

    @property
    def records(self) -> Sequence[Record]:
        """Records of the pictures, those of broken ones too."""
        return self.base.records

    @property
    def classes(self) -> Sequence[str]:
        """Class names that `Record.label` indexes."""
        return self.base.classes

    @property
    def resolution(self) -> int:
        """R, pixels along each side."""
        return self.base.resolution

    @property
    def channels(self) -> int:
        """C: 1 grey, 3 RGB, 4 RGBA."""
        return self.base.channels

    @property
    def fingerprint(self) -> str:
        """The set's own: what breaks later does not change it."""
        return self.base.fingerprint

    def __len__(self) -> int:
        return len(self.base)

    def picture(self, index: int) -> Tensor:
        """Return one picture, uint8 [C, R, R]."""
        return self.pictures([index])[0]

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return several pictures, uint8 [N, C, R, R].

        Raises:
            UserError: more are broken than `max_bad_share` allows, or (with on_bad: raise) one is.
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
    """Return a split of pictures that are decoded on demand, in which broken ones are replaced within their part."""
    train, heldout = (ReadablePictures(pictures, settings) for pictures in (split.train, split.heldout))
    return split._replace(train=train, heldout=heldout)


def replacements(pictures: PictureSet) -> Mapping[int, int]:
    """Return the replacements of broken pictures met so far, by index; it grows as pictures are read."""
    return pictures.replaced if isinstance(pictures, ReadablePictures) else _NONE


def sources(index: Tensor, replaced: Mapping[int, int]) -> Tensor:
    """Return the indices [B] of the pictures that are read for indices [B]."""
    return torch.tensor([replaced.get(i, i) for i in index.tolist()], dtype=index.dtype) if replaced else index
