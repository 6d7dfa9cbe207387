"""Measures of an evaluation by name: what each needs, its value, and its 95 % interval by bootstrap."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ldm_kit.metrics import distributions
from ldm_kit.metrics.factor_shares import ALL, FactorShares, count_readings
from ldm_kit.metrics.fidelity import frechet, sample_warning
from ldm_kit.metrics.intervals import bootstrap
from ldm_kit.models.feature_nets import FeatureNet

Better = Literal["lower", "higher"]
SetValue = Callable[[Tensor, Tensor, int], float]  # of features [N, D] generated, [M, D] of the reference, and a seed
SUBSET = 1000  # most pictures in a subset of the kernel distance, as published
PARTS, PART = 10, 500  # most parts of the inception score, and the least pictures of one


@dataclass(frozen=True)
class Figure:
    """A measured value."""

    name: str  # name of the measure, as --measures takes it
    title: str  # name in tables, with that of the feature network
    value: float
    interval: tuple[float, float] | None  # 95 %, over the samples of this one model; None: not computed
    better: Better
    count: int  # pictures that were judged
    reference_count: int | None = None  # pictures that they were compared with; None: the measure needs none

    @property
    def json(self) -> dict[str, Any]:
        """The figure as JSON values; None for a value that is not finite."""
        interval = None if self.interval is None else [_finite(bound) for bound in self.interval]
        counts = {"count": self.count, "reference_count": self.reference_count}
        return {
            "title": self.title,
            "value": _finite(self.value),
            "interval": interval,
            "better": self.better,
            **counts,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SetMeasure:
    """A measure of two sets of features.

    Attributes:
        title: its name, before that of the feature network.
        better: whether lower or higher values are better.
        least: fewest pictures, in each set, from which it can be computed.
        value: the function.
    """

    title: str
    better: Better
    least: int
    value: SetValue


def _frechet(a: Tensor, b: Tensor, seed: int) -> float:
    return frechet(a, b)


def _kernel(a: Tensor, b: Tensor, seed: int) -> float:
    size = min(SUBSET, len(a), len(b))
    return distributions.kernel_distance(a, b, subsets=-(-len(a) // size), size=size, seed=seed).mean


def _sliced(a: Tensor, b: Tensor, seed: int) -> float:
    return distributions.sliced_distance(a, b, seed=seed)


SETS: Mapping[str, SetMeasure] = {
    "fd": SetMeasure("FD", "lower", 2, _frechet),
    "kid": SetMeasure("KID", "lower", 2, _kernel),
    "mind": SetMeasure("MIND", "lower", 2, _sliced),
    "precision": SetMeasure("precision", "higher", 4, lambda a, b, _: distributions.precision_recall(a, b).precision),
    "recall": SetMeasure("recall", "higher", 4, lambda a, b, _: distributions.precision_recall(a, b).recall),
    "density": SetMeasure("density", "higher", 6, lambda a, b, _: distributions.density_coverage(a, b).density),
    "coverage": SetMeasure("coverage", "higher", 6, lambda a, b, _: distributions.density_coverage(a, b).coverage),
}
SHARES = ("precision", "recall", "coverage")  # measures in [0, 1]
INCEPTION, PROMPTS = "inception_score", "prompt_fidelity"
PICTURES: Mapping[str, tuple[str, Better]] = {  # of reconstructions, picture by picture
    "psnr": ("PSNR, dB", "higher"),
    "ssim": ("SSIM, reflected borders (torchmetrics)", "higher"),
    "ssim_zero_padded": ("SSIM, zero padding (papers)", "higher"),
    "perceptual": ("perceptual distance", "lower"),
}
NAMES = (*SETS, INCEPTION, PROMPTS, *PICTURES)


def within_span(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return features [N, D] and [M, D] in an orthonormal basis of their span if that has fewer than D dimensions.

    Lengths and angles stay, and so does the Fréchet distance, which is computed faster from fewer dimensions.
    """
    a, b = a.double(), b.double()
    if len(a) + len(b) >= a.shape[1]:
        return a, b
    basis = torch.linalg.qr(torch.cat([a, b]).T).Q
    return a @ basis, b @ basis


@dataclass(frozen=True)
class Draws:
    """How intervals are computed: number of bootstrap draws (0: none) and their seed."""

    count: int
    seed: int

    def interval(self, value: float, statistic: Callable[[Tensor], float], rows: Tensor) -> tuple[float, float] | None:
        """Return the 95 % interval around a value: that of the bootstrap's deviations from their mean.

        Draws with repetition hold 63 % of the different rows, which biases Fréchet distances and nearest-neighbour
        measures by as much in every draw; the deviations from the draws' mean are free of that.

        Args:
            value: the statistic of all rows.
            statistic: function from rows [N, ...] to the value.
            rows: the rows [N, ...], one for each picture that is judged; the reference is not drawn anew.
        """
        if not self.count or len(rows) < 2:
            return None
        values: list[float] = []

        def recorded(drawn: Tensor) -> float:
            values.append(statistic(drawn))
            return values[-1]

        low, high = bootstrap(recorded, rows, count=self.count, seed=self.seed)
        mean = sum(values) / len(values)
        return value + low - mean, value + high - mean


def set_figures(
    names: Sequence[str], net: FeatureNet, features: Tensor, references: Tensor, draws: Draws, *, prefix: str = ""
) -> tuple[list[Figure], list[str]]:
    """Measure two sets of features.

    Args:
        names: names of measures; those that are not in SETS are passed over.
        net: the network of the features, for titles.
        features: features [N, D] of the pictures that are judged.
        references: features [M, D] of the reference pictures.
        draws: how intervals are computed.
        prefix: what stands before the Fréchet distance's title: "r" for reconstructions.

    Returns:
        The figures, and warnings.
    """
    figures: list[Figure] = []
    for name, measure in SETS.items():
        if name not in names:
            continue
        title = prefix + net.distance if name == "fd" else measure.title
        title = title if net.is_inception or name == "fd" else f"{title} of {net.name}"
        a, b = within_span(features, references) if name == "fd" else (features, references)
        value = measure.value(a, b, draws.seed)
        interval = draws.interval(value, partial(_of_rows, measure.value, b, draws.seed), a)
        interval = _within_unit(interval) if name in SHARES else interval
        figures.append(Figure(name, title, value, interval, measure.better, len(features), len(references)))
    warning = sample_warning(min(len(features), len(references)), features.shape[1]) if "fd" in names else ""
    return figures, [f"{prefix}{net.distance}: {warning}"] if warning else []


def _within_unit(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def _of_rows(value: SetValue, references: Tensor, seed: int, rows: Tensor) -> float:
    return value(rows, references, seed)


def inception_figure(probabilities: Tensor, draws: Draws) -> Figure:
    """Return the inception score of class probabilities [N, K], over up to 10 parts of at least 500 pictures."""
    parts = max(1, min(PARTS, len(probabilities) // PART))

    def score(rows: Tensor) -> float:
        return distributions.inception_score(rows, parts, seed=draws.seed).mean

    value = score(probabilities)
    title = f"inception score, {parts} part{'s' if parts > 1 else ''}"
    return Figure(INCEPTION, title, value, draws.interval(value, score, probabilities), "higher", len(probabilities))


def prompt_figures(
    factors: Sequence[str], readings: Tensor, labels: Tensor, draws: Draws
) -> tuple[list[Figure], FactorShares]:
    """Return how often pictures show the factors' values that their prompts name: two figures, and all shares.

    Args:
        factors: names of the F factors.
        readings: int64 [N, F], the number of each factor's value that a reader has read.
        labels: int64 [N, F], the number that the prompt names; -1: the value cannot show.
    """
    shares = count_readings(factors, readings, labels)
    rows, width = torch.cat([readings, labels], dim=1), len(factors)

    def mean(drawn: Tensor) -> float:
        return count_readings(factors, drawn[:, :width], drawn[:, width:]).mean or 0.0

    value = shares.mean or 0.0
    count = len(readings)
    return [
        Figure(
            PROMPTS,
            "prompt fidelity, mean of factors",
            value,
            _within_unit(draws.interval(value, mean, rows)),
            "higher",
            count,
        ),
        Figure(
            "prompt_fidelity_all", f"prompt fidelity, {ALL}", shares.all.value, shares.all.interval, "higher", count
        ),
    ], shares


def picture_figures(values: Mapping[str, Tensor], titles: Mapping[str, str], draws: Draws) -> list[Figure]:
    """Return means over reconstructions: `values` [N] by name of the measure, `titles` other titles than PICTURES'."""
    figures: list[Figure] = []
    for name, column in values.items():
        title, better = PICTURES[name]
        mean = float(column.double().mean())
        interval = draws.interval(mean, lambda rows: float(rows.mean()), column.double())
        figures.append(Figure(name, titles.get(name, title), mean, interval, better, len(column)))
    return figures
