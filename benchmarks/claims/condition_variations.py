"""Image variations: which factors of a face an embedding knows, and which of them a picture under it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.condition_data import faces
from benchmarks.claims.condition_judge import face_judge
from benchmarks.claims.condition_ways import SAMPLING, originals
from benchmarks.claims.judge import pixels_of
from benchmarks.claims.paper_ways import BATCH, Bench, Figures
from ldm_kit.data.faces.values import FACTORS
from ldm_kit.data.images import PictureSet
from ldm_kit.metrics.probes import LinearProbe
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

ALL = tuple(FACTORS)


def shares_of(read: Tensor, values: Tensor) -> Tensor:
    """Return the share of N pictures whose value of each of F factors is the given one, float64 [F].

    Args:
        read: int64 [N, F], the index of the value that is read in a picture.
        values: int64 [N, F], that of the given value.
    """
    return (read == values).double().mean(0)


def unrelated_shares(read: Tensor, values: Tensor) -> Tensor:
    """Return the shares of `shares_of` over all pairs of a picture and the values given for another one, float64 [F].

    They are what pictures reach that have the right frequencies of values, and nothing of the given values.
    """
    equal = (read[:, None] == values).double().sum((0, 1)) - (read == values).double().sum(0)
    return equal / (len(read) * (len(read) - 1))


def above_chance(shares: Tensor, chance: Tensor) -> Tensor:
    """Return shares [F] on a scale on which `chance` [F] is 0 and all pictures are 1."""
    return (shares - chance) / (1 - chance)


def correlation(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation of a [F] and b [F]; 0 if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12))


def halves(known: Tensor, shares: Tensor) -> tuple[float, float]:
    """Return the means of shares [F] over the F // 2 factors whose `known` [F] is greatest, and over the others."""
    order = known.argsort(descending=True, stable=True)
    return float(shares[order[: len(order) // 2]].mean()), float(shares[order[len(order) // 2 :]].mean())


def factor_figures(shares: Tensor) -> Figures:
    """Return shares [F] of the factors ALL by name, and all factors: their mean."""
    return {**dict(zip(ALL, shares.tolist(), strict=True)), "all factors": float(shares.mean())}


def factor_values(pictures: PictureSet, count: int) -> Tensor:
    """Return the values of the factors ALL in the first `count` faces of a set, as indices, int64 [<= count, F]."""
    rows = [record.fields for record in pictures.records[:count]]
    return torch.tensor([[FACTORS[factor].index(row[factor]) for factor in ALL] for row in rows])


@dataclass(frozen=True)
class Known:
    """What an embedding knows of held-out faces: linear probes of each factor, fitted to the training faces."""

    model: str = "image"

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the shares of held-out faces whose factors the probes predict rightly; see `factor_figures`."""
        return factor_figures(shares_of(self.predicted(bench), _given(bench)))

    def predicted(self, bench: Bench) -> Tensor:
        """Return the values that the probes predict of the held-out faces, int64 [N, F].

        The frozen encoder is the same for all seeds, so that one run serves.
        """
        return probed(bench.runs.model(self.model, bench.runs.seeds[0]), bench.count)


@cache
def probed(model: Path, count: int) -> Tensor:
    """Return what linear probes of a model's embedding predict of `count` held-out faces, int64 [N, F]."""
    heldout = Pipeline.load(model).embed(pixels_of(faces("old").heldout)[:count]).double()
    return torch.stack([probe.predict(heldout) for probe in probes_of(model)], 1)


@cache
def probes_of(model: Path) -> list[LinearProbe]:
    """Return a linear probe of a model's embedding for each of the factors ALL, fitted to the training faces."""
    train = faces("old").train
    z, labels = Pipeline.load(model).embed(pixels_of(train)).double(), factor_values(train, len(train))
    return [LinearProbe.fit(z, labels[:, i], len(FACTORS[factor])) for i, factor in enumerate(ALL)]


@dataclass(frozen=True)
class Varied:
    """Variations of held-out faces, one of each, under its embedding.

    Attributes:
        unrelated: whether a variation is compared with all other faces in place of its own: the chance level.
        model: variant whose model samples.
        options: sampling options that are not the defaults.
    """

    unrelated: bool = False
    model: str = "image"
    options: Mapping[str, Any] = field(default_factory=lambda: dict(SAMPLING))

    def samples(self, bench: Bench, seed: int) -> Tensor:
        """Sample a variation of each of at most `bench.count` held-out faces, uint8 [N, C, R, R]."""
        given = originals(bench)
        seeds, options = range(seed * len(given), (seed + 1) * len(given)), SamplingOptions(**self.options)
        pipeline = Pipeline.load(bench.runs.model(self.model, seed))
        return torch.cat([*pipeline.generate([""] * len(given), seeds, options, BATCH, pictures={"image": given})])

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the figures of `factor_figures`; of related faces also those of `kept_figures`, and seconds."""
        read, values = face_judge().read(self.samples(bench, seed), ALL), _given(bench)
        if self.unrelated:
            return factor_figures(unrelated_shares(read, values))
        figures = kept_figures(read, Known(self.model).predicted(bench), values)
        return {**factor_figures(shares_of(read, values)), **figures, "seconds": bench.runs.seconds(self.model, seed)}


@dataclass(frozen=True)
class Variations(Varied):
    """Variations whose pictures are shown."""

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Return the variations of `samples`."""
        return self.samples(bench, seed)


def kept_figures(read: Tensor, predicted: Tensor, values: Tensor) -> Figures:
    """Return how what variations have of the given faces goes with what the embedding knows of them.

    known best, known least: the share above chance that variations have of the half of the factors that the probes
    predict best (above chance), and of the other half; correlation: of the two shares above chance over factors.

    Args:
        read: int64 [N, F], values that are read in the variations.
        predicted: int64 [N, F], values that probes of the given faces' embeddings predict.
        values: int64 [N, F], values of the given faces.
    """
    kept = above_chance(shares_of(read, values), unrelated_shares(read, values))
    known = above_chance(shares_of(predicted, values), unrelated_shares(predicted, values))
    best, least = halves(known, kept)
    return {"known best": best, "known least": least, "correlation": correlation(kept, known)}


@dataclass(frozen=True)
class Itself:
    """The given faces themselves."""

    def pictures(self, bench: Bench, seed: int) -> Tensor:
        """Return at most `bench.count` held-out faces, uint8 [N, C, R, R]."""
        return originals(bench)

    def measure(self, bench: Bench, seed: int) -> Figures:
        """Return the shares of values that the judge reads rightly; see `factor_figures`."""
        return factor_figures(shares_of(face_judge().read(originals(bench), ALL), _given(bench)))


def _given(bench: Bench) -> Tensor:
    return factor_values(faces("old").heldout, bench.count)
