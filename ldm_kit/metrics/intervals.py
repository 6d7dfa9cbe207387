"""Confidence intervals: by bootstrap over the samples of one model, and by Student's t over several trainings.

The two answer different questions. The bootstrap says how a value varies with the pictures that were drawn from one
trained model. Only several trainings say how it varies with the training, which for the FID is about three times more
(arXiv 2606.20536).
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion import rng


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def bootstrap(
    statistic: Callable[..., float], *samples: Tensor, count: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a statistic (Efron & Tibshirani 1993, section 13.3).

    Each of `count` times, as many rows are drawn from each tensor as it has, with repetition and independently of the
    other tensors, and the statistic is computed from them. The bounds are the (1 - level) / 2 and (1 + level) / 2
    quantiles of these values.

    A draw with repetition has about 63 % of the different rows. A statistic that depends on their number, such as the
    Fréchet distance, MIND, precision or coverage, is biased by that, and its interval may not hold its value: the
    interval's length then says how the value varies, and its position nothing. Do not resample references that such a
    statistic looks for nearest neighbours among: keep them outside, as in `bootstrap(lambda g: f(g, references), g)`.

    Args:
        statistic: function of as many tensors as `samples`, of the same shapes.
        samples: tensors whose rows are samples, [N, ...]; N may differ.
        count: number of draws.
        level: chance that the interval holds the true value, above 0 and below 1.
        seed: seed of the draws; draw i is the same for any `count`.

    Raises:
        ValueError: there are no samples or no draws, `level` is out of range, or a value of the statistic is not
            finite.
    """
    if not samples or min(map(len, samples)) < 1 or count < 1:
        raise ValueError(f"expected tensors of at least 1 sample and at least 1 draw, got {count} draws")
    _check_level(level)
    draws = ([x[_resampled(len(x), seed, f"{i} {j}")] for j, x in enumerate(samples)] for i in range(count))
    values = torch.tensor([float(statistic(*draw)) for draw in draws], dtype=torch.float64)
    if not values.isfinite().all():
        raise ValueError("the statistic of resampled rows is not finite: expected more samples, or finite features")
    return Interval(*values.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).double()).tolist())


def resample_counts(size: int, count: int, seed: int = 0) -> Tensor:
    """Return how often each of `size` rows is in each of `count` draws, int64 [count, size]: those of `bootstrap`.

    Args:
        size: number of rows, and of rows in a draw.
        count: number of draws, 0 or more.
        seed: seed of the draws; draw i is the same for any `count`.
    """
    draws = [_resampled(size, seed, f"{i} 0").bincount(minlength=size) for i in range(count)]
    return torch.stack(draws) if draws else torch.zeros(0, size, dtype=torch.long)


def _resampled(size: int, seed: int, name: str) -> Tensor:
    """Draw `size` indices in 0..size - 1 with repetition, int64 [size] on the CPU."""
    return (rng.uniform(seed, f"bootstrap {name}", torch.arange(size)) * size).long()


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the confidence interval of the mean of independent runs' values, by Student's t.

    It is m -+ t s / sqrt(n) for n values of mean m and standard deviation s (with n - 1), t from `student_quantile`.

    Args:
        values: a value of each run, at least 2. Runs must be trained from different seeds.
        level: chance that the interval holds the mean of all runs, above 0 and below 1.

    Raises:
        ValueError: there are fewer than 2 values, a value is not finite, or `level` is out of range.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"expected finite values of at least 2 runs, got {[*values]}")
    half = student_quantile(len(values) - 1, level) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return Interval(mean - half, mean + half)


def student_quantile(degrees: int, level: float = 0.95) -> float:
    """Return the t for which a Student's t variable is in [-t, t] with probability `level`.

    Args:
        degrees: degrees of freedom, at least 1: for the mean of n values n - 1.
        level: probability, above 0 and below 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if degrees < 1:
        raise ValueError(f"expected at least 1 degree of freedom, got {degrees}")
    _check_level(level)
    from scipy.stats import t  # slow to import; lpips brings it along

    return float(t.ppf((1 + level) / 2, degrees))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"expected a confidence level above 0 and below 1, got {level}")
