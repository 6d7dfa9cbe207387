"""The variational bound on the negative log-likelihood, term by term, in bits per dimension.

The bound is a prior, one term for each timestep t > 0, and the reconstruction at t = 0 (Ho et al. 2020, eq. 5). It is
for variance-preserving schedules.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Clipped, Denoiser, times_like
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.posterior import VarianceType, learned_log_variance, log_variance, log_variance_range
from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule

_HALF_BIN = 1 / 255  # of the 8-bit levels k / 127.5 - 1
_EDGE = 0.999  # beyond it lies the darkest, or the brightest, level alone


class Term(NamedTuple):
    """One term of the bound for each picture: bits per dimension [B] at timesteps t [B]."""

    t: Tensor
    bits: Tensor


@lru_cache(maxsize=16)
def check_schedule(schedule: Schedule) -> None:
    """Check that a schedule has a variational bound.

    Raises:
        ValueError: it is not variance-preserving, or has a single timestep.
    """
    if not schedule.variance_preserving:
        raise ValueError("the variational bound needs a variance-preserving schedule (a^2 + s^2 = 1), not flow")
    if len(schedule) < 2:
        raise ValueError("the variational bound needs two times or more: t = 0 borrows its variance from t = 1")


def term(
    p: Prediction, x_0: Tensor, t: Tensor, schedule: Schedule, *, variance: VarianceType = "small", levels: bool = True
) -> Tensor:
    """Return the bound's terms for predictions from x_t, in bits per dimension.

    For t > 0 a term is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)). Both means have the same part in x_t, so that
    their squared distance is (SNR_{t-1} - SNR_t) (x_0 - x_0')^2 in units of the posterior's variance (Kingma et al.
    2021, eq. 13).

    At t = 0 the term of pixels is that of `log_level`. Latents have no 8-bit levels, and a density has no lower limit:
    with `levels` False it is KL(N(x_0, small) || p(x_0 | x_1)), as if x_0 were known up to the smallest noise of the
    chain; it is never negative, and zero if and only if prediction and variance are right.

    Args:
        p: predictions [B, ...] from x_t, with `fraction` where the variance is learned.
        x_0: true clean data [B, ...], in -1..1 where `levels` is True.
        t: timesteps [B].
        schedule: variance-preserving.
        variance: of the reverse step, see `posterior.log_variance`.
        levels: whether the data are 8-bit levels k / 127.5 - 1.

    Returns:
        Mean over dimensions, [B].

    Raises:
        ValueError: an unknown variance, learned_range for a prediction without a fraction, or a schedule without a
            bound.
    """
    check_schedule(schedule)
    small = log_variance(schedule, t, "small")
    excess = _excess(p, x_0, t, schedule, variance)
    when = exact(t)
    precision = torch.where(when > 0, schedule.snr(when - 1) - schedule.snr(when), (-small).exp())
    distance = expand_like(precision, x_0) * (x_0 - p.x_0).square()
    nats = (torch.expm1(-excess) + excess + distance * (-excess).exp()) / 2
    if levels:
        nats = torch.where(expand_like(t, x_0) == 0, -log_level(x_0, p.x_0, expand_like(small, x_0) + excess), nats)
    return nats.flatten(1).mean(1) / math.log(2)


def _excess(p: Prediction, x_0: Tensor, t: Tensor, schedule: Schedule, variance: VarianceType) -> Tensor:
    """Return the log variance above the posterior's, subtracted in float64: [B, 1, ...] or like x_0."""
    if variance not in get_args(VarianceType):
        raise ValueError(f"unknown variance {variance!r}; known are {', '.join(get_args(VarianceType))}")
    low, high = log_variance_range(schedule, t)
    if variance != "learned_range":
        return expand_like(log_variance(schedule, t, variance) - low, x_0)
    if p.fraction is None:
        raise ValueError("variance learned_range needs a prediction with a fraction; this network has learned none")
    return learned_log_variance(p.fraction, 0.0, expand_like(high - low, x_0))


def log_level(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the natural log probability of an 8-bit level under a Gaussian (Ho et al. 2020, eq. 13).

    The bin is x_0 +- 1/255; the bins of the darkest and the brightest level are open. The normal integral is exact and
    in logarithms, where the published code has a tanh (off by 2e-4 at most) and a floor at 1e-12.

    Args:
        x_0: levels k / 127.5 - 1, k = 0 .. 255, of any shape.
        mean: of the Gaussian, broadcasts to x_0.
        log_variance: natural logarithm, broadcasts to x_0.

    Returns:
        Nats, like x_0.
    """
    scale = (-log_variance / 2).exp()
    low, high = (x_0 - _HALF_BIN - mean) * scale, (x_0 + _HALF_BIN - mean) * scale
    mirror = low + high > 0  # the integral is exact in its left tail alone
    left, right = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    below, upto = _log_normal_integral(left), _log_normal_integral(right)
    inner = upto + (-torch.expm1((below - upto).clamp_max(-1e-7))).log()  # no logarithm of zero for a vast variance
    inner = torch.where(x_0 < -_EDGE, _log_normal_integral(high), inner)
    return torch.where(x_0 > _EDGE, _log_normal_integral(-low), inner)


def _log_normal_integral(x: Tensor) -> Tensor:
    """Return torch.special.log_ndtr(x), whose own float32 gradient is wrong below -1000 and then NaN (torch 2.15)."""
    z = x / math.sqrt(2)
    low, high = torch.where(x < 0, z, 0.0), torch.where(x < 0, 0.0, z)
    scaled = cast(Tensor, torch.special.erfcx(-low))  # pyright: ignore[reportUnknownMemberType]  (torch has no type)
    return torch.where(x < 0, scaled.log() - low.square() - math.log(2), torch.log1p(-torch.erfc(high) / 2))


def prior(x_0: Tensor, schedule: Schedule) -> Tensor:
    """Return the bound's first part, KL(q(x_{T-1} | x_0) || N(0, 1)), which no training changes.

    Args:
        x_0: clean data [B, ...].
        schedule: variance-preserving.

    Returns:
        Bits per dimension, [B].

    Raises:
        ValueError: the schedule has no bound.
    """
    check_schedule(schedule)
    last = exact(times_like(x_0, len(schedule) - 1))
    alpha_bar = schedule.alpha_sigma(last)[0].square()  # the variance is 1 - alpha_bar
    nats = (expand_like(alpha_bar, x_0) * x_0.square() - expand_like(alpha_bar + torch.log1p(-alpha_bar), x_0)) / 2
    return nats.flatten(1).mean(1) / math.log(2)


@torch.no_grad()
def nll(
    denoiser: Denoiser,
    x_0: Tensor,
    noise: Callable[[Tensor], Tensor],
    times: Iterable[Tensor] | None = None,
    cond: Any = None,
    *,
    variance: VarianceType = "small",
) -> Iterator[Term]:
    """Yield the terms of the bound, which together with `prior` sum to it.

    Args:
        denoiser: its predictions of x_0 are clipped to [-1, 1].
        x_0: pictures [B, ...] of 8-bit levels in [-1, 1].
        noise: timesteps [B] to standard normal noise like x_0.
        times: the timesteps of each term, [B] each; None: all, falling.
        cond: condition, as the denoiser takes it.
        variance: of the model's reverse step.

    Raises:
        ValueError: see `term`.
    """
    schedule, clipped = denoiser.schedule, Clipped(denoiser)
    all_times = (times_like(x_0, t) for t in reversed(range(len(schedule))))
    for t in all_times if times is None else times:
        p = clipped(schedule.add_noise(x_0, noise(t), t), t, cond)
        yield Term(t, term(p, x_0, t, schedule, variance=variance))


def sparse_density(total: int) -> Tensor:
    """Return a density over timesteps [T] float64 like the terms of a trained model, which fall about as 1 / (t + 1).

    Timesteps drawn from it, each term weighted by 1 / density, estimate the sum of all terms without bias.
    """
    weights = 1 / torch.arange(1, total + 1, dtype=torch.float64)
    return weights / weights.sum()
