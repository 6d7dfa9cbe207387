"""The judge of generated faces: the kit's reader of factors, trained on other renders, and distances of features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.claims.condition_data import FACES, NAMED, Group, faces
from benchmarks.claims.judge import pixels_of
from benchmarks.claims.paper_judge import features_of
from ldm_kit.data.faces.dataset import load
from ldm_kit.data.faces.values import FACTORS
from ldm_kit.data.images import PictureSet
from ldm_kit.metrics.factor_reader import FactorReader, ReaderConfig
from ldm_kit.metrics.fidelity import frechet
from ldm_kit.models.factor_readers import factor_reader, reader_accuracy

READER = ReaderConfig(width=16, epochs=8, count=6000)


@dataclass(frozen=True, eq=False)
class FaceJudge:
    """A reader of the factors of faces, which no model that it judges has been trained with."""

    reader: FactorReader

    @classmethod
    def open(cls) -> "FaceJudge":
        """Train the reader on faces of another seed than those of models and measures, or load it from the cache."""
        return cls(factor_reader(FACES, load(FACES), READER))

    @property
    def accuracy(self) -> dict[str, float]:
        """Share of real held-out faces in which the reader reads a factor of NAMED rightly, by the factor's name."""
        shares = reader_accuracy(self.reader, load(FACES).heldout)
        return {factor: shares[factor] or 0.0 for factor in NAMED}

    def right(self, pictures: Tensor, asked: Tensor) -> Tensor:
        """Return which factors of NAMED are read as asked for, bool [N, F].

        Args:
            pictures: uint8 [N, C, R, R].
            asked: int64 [N, F], the index of each factor's value among its values.
        """
        return self.read(pictures, NAMED) == asked

    def read(self, pictures: Tensor, factors: Sequence[str]) -> Tensor:
        """Return the index of the value of each of F factors that is read in pictures, int64 [N, F].

        Args:
            pictures: uint8 [N, C, R, R].
            factors: names of factors.
        """
        columns = [[*self.reader.factors].index(factor) for factor in factors]
        return self.reader.read(pictures)[:, columns]

    def distance(self, pictures: Tensor, group: Group) -> float:
        """Return the Fréchet distance of pictures, uint8 [N, C, R, R], to all faces of a group, in the features."""
        return frechet(features_of(self.reader, pictures), _features(self.reader, group))


@cache
def face_judge() -> FaceJudge:
    """Return the judge; it is opened when it is first needed."""
    return FaceJudge.open()


@cache
def _features(reader: FactorReader, group: Group) -> Tensor:
    split = faces(group)
    return features_of(reader, torch.cat([pixels_of(split.train), pixels_of(split.heldout)]))


def values_of(pictures: PictureSet, count: int) -> Tensor:
    """Return the values of the factors of NAMED in `count` faces of a set in turn, as indices, int64 [count, F]."""
    rows = [pictures.records[i % len(pictures)].fields for i in range(count)]
    return torch.tensor([[FACTORS[factor].index(row[factor]) for factor in NAMED] for row in rows])


def share(right: Tensor, factors: Sequence[str]) -> float:
    """Return the share of the values of some factors that are right, of those of all factors of NAMED, bool [N, F]."""
    return float(right[:, [NAMED.index(factor) for factor in factors]].double().mean())
