"""Measures of an evaluation that compare no sets of features: their values, and 95 % intervals by bootstrap."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from ldm_kit.metrics.distributions import inception_score
from ldm_kit.metrics.factor_shares import ALL, FactorShares, count_readings
from ldm_kit.metrics.fidelity import wilson
from ldm_kit.metrics.intervals import resample_counts
from ldm_kit.metrics.reconstruction import psnr, ssim, ssim_zero_padded, unit_mse

Better = Literal["lower", "higher", "neither"]
PARTS, PART = 10, 500  # most parts of the inception score, and the least pictures of one
INCEPTION = "inception_score"
CLIP = "clip_score"
PROMPTS: tuple[str, ...] = ("prompt_fidelity", "prompt_fidelity_all")  # the mean of factors, and all factors at once


class PictureMeasure(NamedTuple):
    """A measure of reconstructions, picture by picture."""

    title: str
    better: Better
    compare: Callable[[Tensor, Tensor], Tensor] | None = None  # of originals and reconstructions; None: a network's


PICTURES: dict[str, PictureMeasure] = {
    "psnr": PictureMeasure("PSNR, dB", "higher", psnr),
    "mse": PictureMeasure("mean squared error, pixels in 0..1", "lower", unit_mse),
    "ssim": PictureMeasure("SSIM, reflected borders (torchmetrics)", "higher", ssim),
    "ssim_zero_padded": PictureMeasure("SSIM, zero padding (papers)", "higher", ssim_zero_padded),
    "perceptual": PictureMeasure("perceptual distance", "lower"),
}

RANDOM: dict[str, PictureMeasure] = {  # of semantic models, whose noise x_T is inferred from a picture or random
    f"{name}_random": measure._replace(title=f"{measure.title}, random x_T") for name, measure in PICTURES.items()
}


class Titled(NamedTuple):
    """A measure's name in tables, and which values are better."""

    title: str
    better: Better


CODES: dict[str, Titled] = {  # of semantic models' codes; those of DCI take long
    "probe_auroc": Titled("AUROC of linear probes, mean of attributes", "higher"),
    "mig": Titled("mutual information gap", "higher"),
    "factor_vae_score": Titled("FactorVAE score", "higher"),
    "tad": Titled("total AUROC difference", "higher"),
    "dci_disentanglement": Titled("DCI, disentanglement", "higher"),
    "dci_completeness": Titled("DCI, completeness", "higher"),
    "dci_informativeness": Titled("DCI, informativeness", "higher"),
}
EDITS: dict[str, Titled] = {  # of semantic models' edits, compared with the exact pictures of these edits
    "edit_right": Titled("edits that show the wanted value", "higher"),
    "edit_unchanged": Titled("other factors unchanged by an edit", "higher"),
    "edit_closer": Titled("edits closer to the truth than the original is", "higher"),
    "edit_nearest": Titled("edits nearest to the truth of all edits'", "higher"),
    "edit_distance": Titled("distance to the truth, of the original's", "lower"),
}
BITS: dict[str, PictureMeasure] = {
    "bits_per_dim": PictureMeasure("bits/dim, bound, exact integral", "lower"),
    "bits_per_dim_tanh": PictureMeasure("bits/dim, bound, tanh approximation (papers)", "lower"),
}


@dataclass(frozen=True)
class Figure:
    """A measured value."""

    name: str  # name of the measure, as --measures takes it
    title: str  # name in tables, with that of the feature network
    value: float | None  # None: no picture has one
    interval: tuple[float, float] | None  # 95 %, over the samples of this one model; None: not computed
    better: Better
    count: int  # pictures that were judged
    reference_count: int | None = None  # pictures that they were compared with; None: the measure needs none

    @property
    def counts(self) -> str:
        """Number of judged pictures, and that of reference pictures, in tables."""
        return f"{self.count}" + ("" if self.reference_count is None else f" / {self.reference_count}")

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


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class Estimated(NamedTuple):
    """A value and its 95 % interval."""

    value: float | None  # None: no picture has one
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed: by draws of the judged pictures with repetition; the reference is not drawn anew."""

    draws: int  # number of draws; 0: no intervals
    seed: int

    def counts(self, size: int) -> Tensor:
        """Return how often each of `size` pictures is in the whole set, once, and in each draw: [1 + draws, size]."""
        whole = torch.ones(1, size, dtype=torch.long)
        return torch.cat([whole, resample_counts(size, self.draws if size > 1 else 0, self.seed)])

    @staticmethod
    def share(column: Tensor) -> Estimated:
        """Return the share of pictures with a property, bool [N], with Wilson's interval, which needs no draws."""
        value = column.double().mean().item()
        return Estimated(value, wilson(value, len(column)))

    def mean(self, column: Tensor) -> Estimated:
        """Return the mean of one number for each picture, [N]."""
        return self.estimate(self.counts(len(column)).double() @ column.double() / len(column))

    def estimate(self, values: Tensor, *, share: bool = False) -> Estimated:
        """Return a value and, around it, the 95 % interval of the draws' deviations from their mean.

        Draws with repetition hold 63 % of the different pictures, which biases Fréchet distances and nearest-neighbour
        measures by as much in every draw; the deviations from the draws' mean are free of that.

        Args:
            values: float64 [1 + draws], the value of all pictures and that of each draw, as `counts` lists them; NaN
                where there is none. Such draws are left out.
            share: whether values are in [0, 1], to which the interval is then cut.
        """
        value, drawn = values[0].item(), values[1:][values[1:].isfinite()]
        if not len(drawn) or math.isnan(value):
            return Estimated(None if math.isnan(value) else value, None)
        low, high = (value + (drawn - drawn.mean()).quantile(torch.tensor([0.025, 0.975]).double())).tolist()
        return Estimated(value, (max(0.0, low), min(1.0, high)) if share else (low, high))


def inception_figure(probabilities: Tensor, bootstrap: Bootstrap) -> Figure:
    """Return the inception score of class probabilities [N, K], over up to 10 parts of at least 500 pictures."""
    count = len(probabilities)
    parts = max(1, min(PARTS, count // PART))
    draws = tqdm(bootstrap.counts(count), desc="inception score", unit="draw", leave=False, delay=2.0)
    drawn = (probabilities.repeat_interleave(counts, 0) for counts in draws)
    values = [inception_score(rows, parts, seed=bootstrap.seed).mean for rows in drawn]
    title = f"inception score, {parts} part{'s' if parts > 1 else ''}"
    return Figure(INCEPTION, title, *bootstrap.estimate(torch.tensor(values).double()), "higher", count)


def clip_figure(features: Tensor, texts: Tensor, network: str, bootstrap: Bootstrap) -> Figure:
    """Return the CLIP score: the mean of 100 max(cos, 0) of pictures and their captions (Hessel et al. 2021).

    The paper's factor is 2.5 in place of 100.

    Args:
        features: embeddings [N, D] of pictures.
        texts: embeddings [N, D] of their captions.
        network: the network's name, for the title.
        bootstrap: how the interval is computed.
    """
    scores = 100 * cosine_similarity(features.double(), texts.double()).clamp_min(0)
    return Figure(CLIP, f"CLIP score of {network}", *bootstrap.mean(scores), "higher", len(scores))


def prompt_figures(
    factors: Sequence[str], readings: Tensor, labels: Tensor, bootstrap: Bootstrap
) -> tuple[list[Figure], FactorShares]:
    """Return how often pictures show the factors' values that their prompts name: two figures, and all shares.

    Args:
        factors: names of the F factors.
        readings: int64 [N, F], the number of each factor's value that a reader has read.
        labels: int64 [N, F], the number that the prompt names; -1: the value cannot show.
        bootstrap: how the interval of the mean is computed.
    """
    shares = count_readings(factors, readings, labels)
    counts, shown = bootstrap.counts(len(readings)).double(), labels >= 0
    by_factor = (counts @ ((readings == labels) & shown).double()) / (counts @ shown.double())  # [1 + draws, F]
    mean = bootstrap.estimate(by_factor.nanmean(1), share=True)
    titles = ("prompt fidelity, mean of factors", f"prompt fidelity, {ALL}")
    estimates = (mean, Estimated(shares.all.value, shares.all.interval))
    named = zip(PROMPTS, titles, estimates, strict=True)
    return [Figure(name, title, *estimate, "higher", len(readings)) for name, title, estimate in named], shares


def picture_figures(values: Mapping[str, Tensor], titles: Mapping[str, str], bootstrap: Bootstrap) -> list[Figure]:
    """Return means over pictures: `values` [N] by name of the measure, `titles` other titles than those of PICTURES."""
    figures: list[Figure] = []
    for name, column in values.items():
        title, better, _ = (PICTURES | RANDOM | BITS)[name]
        figures.append(Figure(name, titles.get(name, title), *bootstrap.mean(column), better, len(column)))
    return figures
