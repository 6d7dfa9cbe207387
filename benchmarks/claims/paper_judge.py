"""What is measured of generated pictures in the tests of papers' claims, by a small classifier.

The features are the last hidden layer of a `FactorReader` of classes, trained on the training pictures; the reference
is the held-out ones. Distances of such features compare rows of one page, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from benchmarks.claims.judge import labels_of, pixels_of
from ldm_kit.data.images import PictureSet, Split, to_unit
from ldm_kit.data.sources import DataConfig, load
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.metrics.factor_reader import FactorReader, ReaderConfig, train_reader
from ldm_kit.metrics.fidelity import embed, frechet
from ldm_kit.metrics.neighbourhoods import precision_recall

READER = ReaderConfig(width=8, epochs=30, noise=0.1)


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier, and the held-out pictures with which generated pictures are compared.

    Attributes:
        reader: the classifier.
        split: the data set; its held-out pictures are the reference.
        labels: int64 [N] or [N, F], what the held-out pictures show: classes, or a value of each factor.
        features: float64 [N, D], features of the held-out pictures.
    """

    reader: FactorReader
    split: Split
    labels: Tensor
    features: Tensor

    @classmethod
    def of(cls, reader: FactorReader, split: Split, labels: Tensor) -> Self:
        """Compute the features of the held-out pictures."""
        return cls(reader, split, labels, features_of(reader, pixels_of(split.heldout)))

    def distances(self, pictures: Tensor) -> dict[str, float]:
        """Return the measures of pictures, uint8 [N, C, R, R], that need no prompt.

        distance: Fréchet distance of the features to the held-out pictures'; precision and recall.
        """
        features = features_of(self.reader, pictures)
        precision, recall = precision_recall(features, self.features)
        return {"distance": frechet(features, self.features), "precision": precision, "recall": recall}


@dataclass(frozen=True, eq=False)
class PictureJudge(Judge):
    """A classifier of digits as the judge of generated ones; its labels are classes."""

    @classmethod
    def open(cls, data: DataConfig) -> "PictureJudge":
        """Load a data set, and train a reader of its classes on the training pictures."""
        split = load(data)
        return cls.of(class_reader(split.train), split, labels_of(split.heldout))

    @property
    def accuracy(self) -> float:
        """Share of the held-out pictures whose class the reader reads rightly."""
        return self.right(pixels_of(self.split.heldout))

    def classes(self, count: int) -> Tensor:
        """Return the classes, int64 [count], that generated pictures are to have: those of the held-out ones."""
        return self.labels[torch.arange(count) % len(self.labels)]

    def right(self, pictures: Tensor) -> float:
        """Return the share of pictures, uint8 [N, C, R, R], that are read as the class of `classes(N)`."""
        return float((self.reader.read(pictures)[:, 0] == self.classes(len(pictures))).double().mean())

    def figures(self, pictures: Tensor) -> dict[str, float]:
        """Return the measures of pictures, uint8 [N, C, R, R], generated for `classes(N)`, by name.

        Those of `distances`, and right: share of the pictures that are read as the class asked for.
        """
        return {**self.distances(pictures), "right": self.right(pictures)}


def class_reader(pictures: PictureSet) -> FactorReader:
    """Train a reader of classes on all pictures of a set; it depends on them and READER alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(READER.seed, "reader weights"))
        shape = {"channels": pictures.channels, "side": pictures.resolution, "width": READER.width}
        reader = FactorReader({"class": tuple(pictures.classes)}, **shape)
    return train_reader(reader, pictures.pictures, labels_of(pictures)[:, None], READER)


def features_of(reader: FactorReader, pictures: Tensor) -> Tensor:
    """Return the last hidden layer, float64 [N, 8 * width], of a reader for pictures uint8 [N, C, R, R]."""
    hidden: Sequence[torch.nn.Module] = [*reader.layers][:-1]
    return embed(torch.nn.Sequential(*hidden).eval().forward, to_unit(pictures), 256)
