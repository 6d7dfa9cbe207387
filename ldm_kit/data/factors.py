"""Picture sets that know their factors: what each picture shows, factor by factor, and the exact picture of an edit."""

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
    """A picture set that knows which factors its pictures differ in, and the exact picture of each edit."""

    @property
    def factors(self) -> Mapping[str, Sequence[str]]:
        """The values that each factor can have, by the factor's name."""
        ...

    def values(self, index: int) -> Values:
        """Return the value of each factor that the picture at an index has."""
        ...

    def counterpart(self, index: int, factor: str, value: str) -> Tensor:
        """Return the exact picture of an edit, uint8 [C, R, R]: one factor has another value, all else is unchanged.

        Args:
            index: index of the picture that is edited.
            factor: name of a factor.
            value: the value that the factor has after the edit.

        Raises:
            UserError: there is no factor of this name, or the factor cannot have this value in this picture.
        """
        ...

    def hidden(self, values: Values) -> frozenset[str]:
        """Return the factors whose value a picture with these values does not show, such as a covered mouth."""
        ...


@dataclass(frozen=True, eq=False)
class FactorSubset(Subset):
    """A subset of a picture set that knows its factors; counterparts may be pictures outside the subset."""

    base: FactorSet  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def factors(self) -> Mapping[str, Sequence[str]]:
        """The values that each factor can have, by the factor's name."""
        return self.base.factors

    def values(self, index: int) -> Values:
        """Return the value of each factor that the picture at an index has."""
        return self.base.values(int(self.indices[index]))

    def counterpart(self, index: int, factor: str, value: str) -> Tensor:
        """Return the exact picture of an edit; see `FactorSet`."""
        return self.base.counterpart(int(self.indices[index]), factor, value)

    def hidden(self, values: Values) -> frozenset[str]:
        """Return the factors whose value a picture with these values does not show; see `FactorSet`."""
        return self.base.hidden(values)


@dataclass(frozen=True)
class FactorSpace:
    """All combinations of the factors' values, numbered from 0 (the first value of every factor) to size - 1."""

    factors: Mapping[str, tuple[str, ...]]

    @cached_property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(map(len, self.factors.values()))

    def draw(self, seed: int, count: int) -> list[int]:
        """Return `count` different combinations; the one at position i is a function of seed and i alone."""
        return rng.permuted(seed, "factors", torch.arange(count), self.size).tolist()

    def draw_records(self, seed: int, count: int, phrasings: int, describe: Callable[[int, int], Record]) -> Records:
        """Return the records of `count` different combinations; each is a function of seed and position alone.

        Args:
            seed: which combinations are drawn, and how each is phrased.
            count: number of combinations.
            phrasings: number of ways to phrase a caption.
            describe: function from a combination and the index of a phrasing to a record.
        """
        drawn = rng.bits(seed, "phrasing", torch.arange(count), 1)[:, 0].remainder(phrasings).tolist()
        return Records.of(map(describe, self.draw(seed, count), drawn))

    def combination(self, number: int) -> dict[str, str]:
        """Return the value of each factor in a combination; the last factor varies fastest with the number."""
        values: dict[str, str] = {}
        for factor, names in reversed([*self.factors.items()]):
            number, index = divmod(number, len(names))
            values[factor] = names[index]
        return {factor: values[factor] for factor in self.factors}


def known_factors(pictures: PictureSet) -> FactorSet:
    """Return a picture set as one that knows its factors; a subset's factors are those of the whole set.

    Raises:
        UserError: the set has no known factors (a folder of pictures has none).
    """
    if isinstance(pictures, FactorSet):
        return pictures
    if isinstance(pictures, Subset):
        base = known_factors(pictures.base)
        return FactorSubset(base, pictures.indices, pictures.records, pictures.fingerprint)
    raise UserError("these pictures have no known factors, so no counterparts; expected faces, shapes or openmoji")


def check_factor(factors: Mapping[str, Sequence[str]], factor: str) -> None:
    """Check that a factor exists among `factors`, values by the factor's name; raises UserError."""
    if factor not in factors:
        raise UserError(f"there is no factor {factor!r}; expected one of {', '.join(factors)}")


def check_edit(factors: Mapping[str, Sequence[str]], factor: str, value: str) -> None:
    """Check that a factor exists and can have a value.

    Args:
        factors: the values that each factor can have, by the factor's name.
        factor: name of a factor.
        value: a value.

    Raises:
        UserError: `factors` has no factor of this name, or the factor cannot have this value.
    """
    check_factor(factors, factor)
    if value not in factors[factor]:
        raise UserError(f"{factor} cannot be {value!r}; expected one of {', '.join(factors[factor])}")


def split_factors(pictures: PictureSet, pairs: Sequence[Values], heldout: float, source: str) -> Split:
    """Split rendered pictures: those that show a pair of values are compositional; of the others a share is held out.

    The compositional part is None if no picture shows a pair.

    Args:
        pictures: pictures whose records have the value of each factor as a field.
        pairs: pairs of values that training does not show together, each as {factor: value, other factor: value}.
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
    """Return whether a picture's fields have both values of any of the pairs."""
    return any(pair.items() <= record.fields.items() for pair in pairs)


def pixel_digest(picture: Tensor) -> bytes:
    """Return a sha256 of a picture's pixels, uint8 [C, R, R], by which equal pictures of different names are found."""
    return hashlib.sha256(picture.contiguous().numpy().data).digest()


def pixel_digests(pictures: PictureSet) -> frozenset[bytes]:
    """Return the digests (`pixel_digest`) of all pictures of a set."""
    return frozenset(pixel_digest(pictures.picture(index)) for index in range(len(pictures)))
