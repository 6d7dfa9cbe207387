"""A judge of generated shapes: the kit's reader of factors, trained on other pictures than those that it judges."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.claims.judge import pixels_of
from benchmarks.claims.paper_judge import Judge
from ldm_kit.data.factors import known_factors
from ldm_kit.data.sources import DataConfig, load
from ldm_kit.metrics.factor_reader import ReaderConfig
from ldm_kit.models.factor_readers import factor_labels, factor_reader

READER = ReaderConfig(width=8, epochs=10, count=3000)
COLOURS = ("floor", "wall", "object")  # factors that share their values: a caption says which colour is whose


@dataclass(frozen=True, eq=False)
class FactorJudge(Judge):
    """A reader of factors as the judge of generated pictures; its labels are a value of each factor."""

    @classmethod
    def open(cls, data: DataConfig) -> "FactorJudge":
        """Load a data set, and train a reader of its factors, or load it from the cache."""
        split = load(data)
        return cls.of(factor_reader(data, split, READER), split, factor_labels(known_factors(split.heldout)))

    @property
    def accuracy(self) -> dict[str, float]:
        """Share of the held-out pictures in which the reader reads a factor rightly, by the factor's name."""
        right = self.reader.read(pixels_of(self.split.heldout)) == self.labels
        return dict(zip(self.reader.factors, right.double().mean(0).tolist(), strict=True))

    def prompts(self, count: int) -> list[str]:
        """Return `count` captions, those of the held-out pictures in turn."""
        records = self.split.heldout.records
        return [records[i % len(records)].text for i in range(count)]

    def fidelity(self, pictures: Tensor, factors: Sequence[str] = COLOURS) -> dict[str, float]:
        """Return how pictures, uint8 [N, C, R, R], fit `prompts(N)`; all pictures show all factors.

        colours: share of the colours of floor, wall and object that are as the caption says; all colours: share of
        the pictures in which all three are; swapped: share of the pictures in which the three colours that are read
        are those of the caption, but not all where the caption says; shape: share of the shapes.
        """
        names = [*self.reader.factors]
        asked = self.labels[torch.arange(len(pictures)) % len(self.labels)]
        read = self.reader.read(pictures)
        columns = [names.index(factor) for factor in factors]
        right = (read == asked)[:, columns]
        same = (read[:, columns].sort(1).values == asked[:, columns].sort(1).values).all(1)
        shape = (read == asked)[:, names.index("shape")]
        shares = {"colours": right, "all colours": right.all(1), "swapped": same & ~right.all(1), "shape": shape}
        return {name: float(share.double().mean()) for name, share in shares.items()}
