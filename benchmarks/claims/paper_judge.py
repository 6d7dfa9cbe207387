"""What is measured of generated pictures in the tests of papers' claims, by a small classifier of the data's factors.

The features are the last hidden layer of a `FactorReader` trained on other pictures than the reference's. Distances of
such features compare rows of one table, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.claims.judge import labels_of, pixels_of
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import PictureSet, Split, to_unit
from ldm_kit.data.rendered import RenderedConfig
from ldm_kit.data.sources import DataConfig, load
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.metrics.factor_reader import FactorReader, ReaderConfig, train_reader
from ldm_kit.metrics.factor_shares import count_right
from ldm_kit.metrics.fidelity import embed, frechet
from ldm_kit.metrics.neighbourhoods import precision_recall
from ldm_kit.models.factor_readers import factor_labels, factor_reader

READER = ReaderConfig(width=8, epochs=30, noise=0.1)
FEW_RENDERS = ReaderConfig(width=8, epochs=10, count=3000)


@dataclass(frozen=True, eq=False)
class PictureJudge:
    """A classifier of factors, and the pictures and prompts of a data set with which generated pictures are compared.

    Attributes:
        data: config of the data set.
        reader: the classifier.
        split: the data set; its held-out pictures are the reference.
        labels: int64 [N, F], each held-out picture's values of the factors.
        features: float64 [N, D], features of the held-out pictures.
    """

    data: DataConfig
    reader: FactorReader
    split: Split
    labels: Tensor
    features: Tensor

    @classmethod
    def open(cls, data: DataConfig) -> "PictureJudge":
        """Load a data set and train a reader: of classes, or of all factors where pictures are rendered from them."""
        split = load(data)
        if isinstance(data, RenderedConfig):
            reader = factor_reader(data, split, FEW_RENDERS)
            labels = factor_labels(known_factors(split.heldout))
        else:
            reader, labels = class_reader(split.train), labels_of(split.heldout)[:, None]
        return cls(data, reader, split, labels, features_of(reader, pixels_of(split.heldout)))

    @property
    def accuracy(self) -> float:
        """Share of the held-out pictures' factors that the reader reads rightly, mean over factors."""
        return count_right(self.reader, pixels_of(self.split.heldout), self.labels).mean or 0.0

    def chosen(self, count: int) -> list[int]:
        """Return the index of the held-out picture whose prompt each of `count` pictures has; all in turn."""
        return [i % len(self.labels) for i in range(count)]

    def prompts(self, count: int, *, captions: bool) -> list[str | int]:
        """Return `count` prompts: captions, or classes by number, of the held-out pictures."""
        records = self.split.heldout.records
        chosen = [records[i] for i in self.chosen(count)]
        return [record.text if captions else int(record.label or 0) for record in chosen]

    def figures(self, pictures: Tensor) -> dict[str, float]:
        """Return the measures of pictures, uint8 [N, C, R, R], generated for `prompts(N)`, by name.

        distance: Fréchet distance of the features to the held-out pictures'; precision, recall; right: share of factors
        as prompted, mean over factors.
        """
        features = features_of(self.reader, pictures)
        precision, recall = precision_recall(features, self.features)
        right = count_right(self.reader, pictures, self.labels[self.chosen(len(pictures))]).mean or 0.0
        distance = frechet(features, self.features)
        return {"distance": distance, "precision": precision, "recall": recall, "right": right}


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
