"""Picture sets with known factors (such as hair): their values in every picture, and the exact picture of an edit."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.images import PictureSet, Record, Split, Subset, split_off, subset
from ldm_kit.data.records import Records
from ldm_kit.diffusion import rng

Values = Mapping[str, str]  # factor -> value: all that a rendered picture depends on, or two values that form a pair


@runtime_checkable
class FactorSet(PictureSet, Protocol):
    """A picture set that knows each picture's values of some factors (such as hair), and the exact picture of an edit.

    An edit changes one factor of a picture to another value.
    """

    @property
    def factors(self) -> Mapping[str, Sequence[str]]:
        """All values that each factor can have, {factor: values}, such as {"hair": ("bun", "spiky")}."""
        ...

    def values(self, index: int) -> Values:
        """Return {factor: value} for the factors that the picture at `index` has, such as {"eyes": "winking"}."""
        ...

    def counterpart(self, index: int, factor: str, value: str) -> Tensor:
        """Return a picture after an exact edit, uint8 [C, R, R]: one factor has another value, all else is unchanged.

        Args:
            index: index of the picture that is edited.
            factor: name of a factor.
            value: the value that the factor has after the edit.

        Raises:
            UserError: there is no factor of this name, or the factor cannot have this value in this picture.
        """
        ...

    def hidden(self, values: Values) -> frozenset[str]:
        """Return the factors whose value cannot be seen in a picture with these `values`, {factor: value}.

        An example is a smile that is too faint on dark skin.
        """
        ...


@dataclass(frozen=True, eq=False)
class FactorSubset(Subset):
    """A subset of a set with known factors (`base`); the picture after an edit (`counterpart`) may be outside it."""

    base: FactorSet  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def factors(self) -> Mapping[str, Sequence[str]]:
        """All values that each factor can have, {factor: values}, such as {"hair": ("bun", "spiky")}."""
        return self.base.factors

    def values(self, index: int) -> Values:
        """Return {factor: value} for the factors that the picture at `index` has, such as {"eyes": "winking"}."""
        return self.base.values(int(self.indices[index]))

    def counterpart(self, index: int, factor: str, value: str) -> Tensor:
        """Return the picture at `index` with `factor` changed to `value`, all else unchanged, uint8 [C, R, R]."""
        return self.base.counterpart(int(self.indices[index]), factor, value)

    def hidden(self, values: Values) -> frozenset[str]:
        """Return the factors whose value cannot be seen in a picture with these `values`, {factor: value}."""
        return self.base.hidden(values)


@dataclass(frozen=True)
class FactorSpace:
    """All combinations of the factors' values, numbered from 0 (the first value of every factor) to size - 1."""

    factors: Mapping[str, tuple[str, ...]]

    @cached_property
    def size(self) -> int:
        """Number of combinations of values."""
        return math.prod(map(len, self.factors.values()))

    def draw(self, seed: int, count: int) -> list[int]:
        """Return the numbers of `count` different random combinations; the i-th is a function of `seed` and i alone."""
        return rng.permuted(seed, "factors", torch.arange(count), self.size).tolist()

    def draw_records(self, seed: int, count: int, phrasings: int, describe: Callable[[int, int], Record]) -> Records:
        """Return the records (name, caption, class, values) of pictures of `count` different random combinations.

        The i-th record is a function of `seed` and i alone, whatever `count` is.

        Args:
            seed: chooses the combinations, and how each caption is phrased.
            count: number of combinations.
            phrasings: number of ways to phrase a caption.
            describe: function from the number of a combination and the index of a phrasing to a record.
        """
        drawn = rng.bits(seed, "phrasing", torch.arange(count), 1)[:, 0].remainder(phrasings).tolist()
        return Records.of(map(describe, self.draw(seed, count), drawn))

    def combination(self, number: int) -> dict[str, str]:
        """Return {factor: value} for the combination with this number; the last factor varies fastest with it."""
        values: dict[str, str] = {}
        for factor, names in reversed([*self.factors.items()]):
            number, index = divmod(number, len(names))
            values[factor] = names[index]
        return {factor: values[factor] for factor in self.factors}


def known_factors(pictures: PictureSet) -> FactorSet:
    """Return `pictures` as a `FactorSet`, which has the factors' values and the exact picture of an edit.

    A subset of a `FactorSet` becomes a `FactorSubset`, whose pictures after an edit come from the whole set.

    Raises:
        UserError: the factors of the pictures are not known, such as those of a user's folder.
    """
    if isinstance(pictures, FactorSet):
        return pictures
    if isinstance(pictures, Subset):
        base = known_factors(pictures.base)
        return FactorSubset(base, pictures.indices, pictures.records, pictures.fingerprint)
    raise UserError("these pictures have no known factors, so no counterparts; expected faces, shapes or openmoji")


def check_factor(factors: Mapping[str, Sequence[str]], factor: str) -> None:
    """Check that `factor` is a key of `factors`, {factor: its possible values}; raise UserError if it is not."""
    if factor not in factors:
        raise UserError(f"there is no factor {factor!r}; expected one of {', '.join(factors)}")


def check_edit(factors: Mapping[str, Sequence[str]], factor: str, value: str) -> None:
    """Check that pictures can be edited by giving `factor` the value `value`.

    Args:
        factors: the values that each factor can have, by the factor's name.
        factor: name of the factor to change.
        value: its value after the edit.

    Raises:
        UserError: `factors` has no factor of this name, or the factor cannot have this value.
    """
    check_factor(factors, factor)
    if value not in factors[factor]:
        raise UserError(f"{factor} cannot be {value!r}; expected one of {', '.join(factors[factor])}")


def split_factors(pictures: PictureSet, pairs: Sequence[Values], heldout: float, source: str) -> Split:
    """Split rendered pictures into training, held-out and compositional ones.

    Pictures that show both values of one of the `pairs` are the compositional set, which is None if there are none. Of
    the other pictures a share is held out.

    Args:
        pictures: pictures whose records have the value of each factor as a field.
        pairs: pairs of values that no training picture may show together, each {factor: value, other factor: value}.
        heldout: share of the other pictures to hold out by a hash of their names, in [0, 1).
        source: name of the data source, for the message.

    Raises:
        UserError: no picture is left to train on.
    """
    records = pictures.records
    compositional = {i for i, record in enumerate(records) if shows_pair(record, pairs)}
    rest = [i for i in range(len(records)) if i not in compositional]
    train, held = split_off([records[i] for i in rest], heldout)
    if not train:
        raise UserError(f"all {len(records)} {source} are held out; raise data.count")
    unseen = subset(pictures, sorted(compositional)) if compositional else None
    return Split(subset(pictures, [rest[i] for i in train]), subset(pictures, [rest[i] for i in held]), unseen)


def shows_pair(record: Record, pairs: Sequence[Values]) -> bool:
    """Return whether `record` has both values of at least one of `pairs`, {factor: value, other factor: value} each."""
    return any(pair.items() <= record.fields.items() for pair in pairs)


def pixel_digest(picture: Tensor) -> bytes:
    """Return the sha256 of a picture's pixels, uint8 [C, R, R]: the same for equal pictures of different names."""
    return hashlib.sha256(picture.contiguous().numpy().data).digest()


def pixel_digests(pictures: PictureSet) -> frozenset[bytes]:
    """Return the digests (`pixel_digest`) of all pictures of a set."""
    return frozenset(pixel_digest(pictures.picture(index)) for index in range(len(pictures)))
