"""Both parts of a split as one picture set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm_kit.data.alpha import AlphaMasked
from ldm_kit.data.images import DerivedSet, PictureSet, Record, Split, Subset, digest, subset


@dataclass(frozen=True, eq=False)
class Joined(DerivedSet):
    """The pictures of a set (`base`), followed by those of another set of the same resolution and classes."""

    other: PictureSet

    @property
    def records(self) -> Sequence[Record]:
        """Records (name, caption, class) of the pictures, in the set's order."""
        return [*self.base.records, *self.other.records]

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of the fingerprints of both sets."""
        return digest([self.base.fingerprint, self.other.fingerprint])

    def __len__(self) -> int:
        return len(self.base) + len(self.other)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        first = len(self.base)
        return self.base.picture(index) if index < first else self.other.picture(index - first)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels."""
        return torch.stack([self.picture(int(i)) for i in indices])


def whole(split: Split) -> PictureSet:
    """Return the training and the held-out pictures of a split as one set, each picture once.

    Parts of one data set become a subset of it, in its order, which keeps factors that are known. A picture that
    training repeats is there once.
    """
    if isinstance(split.train, AlphaMasked) and isinstance(split.heldout, AlphaMasked):
        return AlphaMasked(whole(Split(split.train.base, split.heldout.base, None)))
    (train, rows), (heldout, more) = map(_in_root, split[:2])
    if train is heldout:
        return subset(train, np.union1d(rows, more))
    return Joined(subset(train, np.unique(rows)), heldout) if len(heldout) else subset(train, np.unique(rows))


def _in_root(pictures: PictureSet) -> tuple[PictureSet, np.ndarray]:
    """Return the set that a subset, or a subset of one, is taken from, and the pictures' indices in it."""
    if not isinstance(pictures, Subset):
        return pictures, np.arange(len(pictures))
    root, rows = _in_root(pictures.base)
    return root, rows[pictures.indices]
