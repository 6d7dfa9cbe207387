"""Picture sets: protocol, sets in memory, subsets, fixed splits."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.levels import to_bytes as to_bytes
from ldm_kit.data.levels import to_unit as to_unit
from ldm_kit.data.records import UNLABELLED, Records, labels_of, names_of
from ldm_kit.data.records import Record as Record
from ldm_kit.data.value_range import ValueRange
from ldm_kit.data.value_range import value_range_of as value_range_of


class PictureSet(Protocol):
    """Pictures in a fixed order, uint8 [C, R, R] each (C channels, R x R pixels) or, with a `value_range`, uint16."""

    @property
    def records(self) -> Sequence[Record]:
        """Records (name, caption, class) of the pictures, in the set's order."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Class names that `Record.label` indexes; empty if nothing is labelled."""
        ...

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, R."""
        ...

    @property
    def channels(self) -> int:
        """Channels of a picture, C: 1 grey, 3 RGB, 4 RGBA."""
        ...

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) that identifies the set: of preprocessing settings and every picture's name and contents."""
        ...

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        ...

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """A set of pictures held in memory as one tensor."""

    records: Sequence[Record]  # name, caption and class of each picture
    classes: Sequence[str]  # class names that `Record.label` indexes; empty if nothing is labelled
    pixels: Tensor  # uint8 [N, C, R, R]
    fingerprint: str  # sha256 (hex) of preprocessing settings and of every picture's name and contents
    value_range: ValueRange | None = None  # what the levels stand for, uint16 in place of uint8; None: 8 bits

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, R."""
        return self.pixels.shape[-1]

    @property
    def channels(self) -> int:
        """Channels of a picture, C: 1 grey, 3 RGB, 4 RGBA."""
        return self.pixels.shape[1]

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        return self.pixels[index]

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels."""
        return self.pixels[torch.as_tensor(indices, dtype=torch.long)]


@dataclass(frozen=True, eq=False)
class DerivedSet:
    """Base class of picture sets that are made from another set, and have its classes, resolution and channels."""

    base: PictureSet  # the other set

    @property
    def classes(self) -> Sequence[str]:
        """Class names that `Record.label` indexes; empty if nothing is labelled."""
        return self.base.classes

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, R."""
        return self.base.resolution

    @property
    def channels(self) -> int:
        """Channels of a picture, C: 1 grey, 3 RGB, 4 RGBA."""
        return self.base.channels

    @property
    def value_range(self) -> ValueRange | None:
        """What the levels of the pictures stand for; None: they have 8 bits."""
        return value_range_of(self.base)


@dataclass(frozen=True, eq=False)
class Subset(DerivedSet):
    """A view of some pictures of a set, made by `subset`."""

    indices: np.ndarray[Any, Any]  # int64 [N], indices of the N pictures in `base`
    records: Sequence[Record]  # their names, captions and classes
    fingerprint: str  # sha256 (hex) of the fingerprint of `base`, and of the indices

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        return self.base.picture(int(self.indices[index]))

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels."""
        return self.base.pictures([int(self.indices[int(i)]) for i in indices])


class Split(NamedTuple):
    """Disjoint picture sets of one data set.

    Args:
        train: pictures that models are trained on.
        heldout: pictures like the training pictures that training never sees; losses are measured on them.
        compositional: further held-out pictures: each combines two attributes (such as role and skin tone) that
            training pictures show, but never together; None where the data source has none.
    """

    train: PictureSet
    heldout: PictureSet
    compositional: PictureSet | None


def subset(pictures: PictureSet, indices: Sequence[int] | np.ndarray[Any, Any]) -> PictureSet:
    """Return a view of some pictures of a set, with its own fingerprint; pixels are not copied.

    Args:
        pictures: the picture set.
        indices: indices of the pictures to take, in the order that they have in the view.

    Raises:
        IndexError: an index is outside 0..len(pictures) - 1.
    """
    rows = np.fromiter((int(i) for i in indices), np.int64, len(indices))
    outside = rows[(rows < 0) | (rows >= len(pictures))]
    if len(outside):
        raise IndexError(f"index {outside[0]} is outside 0..{len(pictures) - 1}")
    records = pictures.records
    fingerprint = digest(chain([pictures.fingerprint], map(str, rows.tolist())))
    chosen = records.take(rows) if isinstance(records, Records) else [records[i] for i in rows.tolist()]
    return Subset(pictures, rows, chosen, fingerprint)


def split_off(records: Sequence[Record], share: float) -> tuple[list[int], list[int]]:
    """Split records into training and held-out ones by a hash of each record's name.

    Whether a record is held out depends neither on the order nor on the other records, with two exceptions: if `share`
    is above 0 and there are over 10 records, one or more are held out; and each class keeps a training record.

    Args:
        records: all records of the data set.
        share: approximate share of records to hold out, in [0, 1).

    Returns:
        Indices of training records and indices of held-out records, both in increasing order.
    """
    held = _heldout_mask(records, share)
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def _heldout_mask(records: Sequence[Record], share: float) -> np.ndarray[Any, Any]:
    """Return bool [N]: which of N records, about `share` of them, are held out; `split_off` has the exact rule."""
    count = len(records)
    hashes = np.fromiter((unit_hash("heldout", name) for name in names_of(records)), np.float64, count)
    labels = np.fromiter((UNLABELLED if v is None else v for v in labels_of(records)), np.int64, count)
    held = hashes < share
    if share > 0 and count > 10 and not held.any():
        held[hashes.argmin()] = True
    for label in np.setdiff1d(labels, np.append(labels[~held], UNLABELLED)):
        candidates = np.flatnonzero(held & (labels == label))
        held[candidates[hashes[candidates].argmax()]] = False
    return held


def heldout_split(pictures: PictureSet, share: float, source: object) -> Split:
    """Split a set into training and held-out pictures by a hash of each picture's name.

    Each class keeps at least one training picture. If `share` is above 0 and the set has more than 10 pictures, at
    least one is held out. The split's third set, `compositional`, is None.

    Args:
        pictures: all pictures of the data set.
        share: approximate share of pictures to hold out, in [0, 1).
        source: name of the data set, for messages.

    Raises:
        UserError: no picture is left to train on.
    """
    held = _heldout_mask(pictures.records, share)
    if held.all():
        raise UserError(f"all {len(held)} pictures in {source} are held out; lower data.heldout")
    return Split(subset(pictures, np.flatnonzero(~held)), subset(pictures, np.flatnonzero(held)), None)


def class_names(labels: Iterable[str | None]) -> list[str]:
    """Return the distinct class names in `labels`, sorted as numbers if all are numbers, else alphabetically."""
    names = {label for label in labels if label is not None}
    return sorted(names, key=int if all(name.isdecimal() for name in names) else str)


def unit_hash(salt: str, name: str) -> float:
    """Return a hash of `name` in [0, 1), the same on every machine; a different `salt` gives an independent hash."""
    return int.from_bytes(hashlib.sha256(_utf8(f"{salt}:{name}")).digest()[:6]) / 2**48


def digest(texts: Iterable[str]) -> str:
    """Return the sha256 (hex) of a sequence of strings.

    The length of each string is hashed too, so that ("ab", "c") and ("a", "bc") differ.
    """
    state = hashlib.sha256()
    for text in texts:
        raw = _utf8(text)
        state.update(len(raw).to_bytes(8) + raw)
    return state.hexdigest()


def _utf8(text: str) -> bytes:
    """Return a string as UTF-8; lone surrogates, which strict UTF-8 cannot encode, are kept.

    Surrogates by which Python stands for undecodable bytes of a file name become those bytes; if the string has other
    surrogates, all of them become 3 bytes each.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
