"""The variational bound on the negative log-likelihood of data, term by term, in bits per dimension.

The bound is the sum of a prior term, one term for each timestep t > 0, and the reconstruction term at t = 0 (Ho et al.
2020, eq. 5). It is defined for variance-preserving schedules.
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

_HALF_BIN = 1 / 255  # half the distance between neighbouring 8-bit levels k / 127.5 - 1
_LEAST_PROBABILITY = 1e-12  # to which `log_level_tanh` raises a level's
_EDGE = 0.999  # the only level above it is the brightest, 1; the only level below -0.999 is the darkest, -1


class Term(NamedTuple):
    """Terms of the variational bound, one for each of B pictures.

    Attributes:
        t: timestep of each term, [B].
        bits: each term in bits per dimension, [B].
        bits_tanh: the same with the published code's approximation of the term at t = 0 (`log_level_tanh`), [B].
    """

    t: Tensor
    bits: Tensor
    bits_tanh: Tensor


@lru_cache(maxsize=16)
def check_schedule(schedule: Schedule) -> None:
    """Check that the variational bound is defined for a noise schedule.

    Raises:
        ValueError: the schedule is not variance-preserving, or has a single timestep.
    """
    if not schedule.variance_preserving:
        raise ValueError("the variational bound needs a variance-preserving schedule (a^2 + s^2 = 1), not flow")
    if len(schedule) < 2:
        raise ValueError("the variational bound needs two times or more: t = 0 borrows its variance from t = 1")


def term(
    p: Prediction,
    x_0: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    variance: VarianceType = "small",
    levels: bool = True,
    tanh: bool = False,
) -> Tensor:
    """Return the variational bound's term at timestep t of each sample, in bits per dimension.

    For t > 0 the term is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)). The means of q and p weigh x_t equally. Their
    squared distance, divided by the variance of q, is therefore (SNR_{t-1} - SNR_t) (x_0 - x_0')^2, where x_0' is the
    predicted x_0 (Kingma et al. 2021, eq. 13).

    At t = 0 the term of pixels is the negative log probability of their 8-bit levels (`log_level`). Latents have no
    levels, and the negative log of a density has no lower limit. Their term at t = 0 is KL(N(x_0, v) || p(x_0 | x_1))
    instead, where v is the small variance at t = 0: never negative, and 0 only if p has mean x_0 and variance v.

    Args:
        p: predictions x_0 and eps [B, ...] from x_t, with `Prediction.fraction` if the variance is learned.
        x_0: true clean data [B, ...], in -1..1 if `levels` is True.
        t: timesteps [B].
        schedule: variance-preserving noise schedule.
        variance: variance of the reverse step p(x_{t-1} | x_t): small (the posterior's), large (beta) or learned_range.
        levels: whether the data are 8-bit levels k / 127.5 - 1, as pixels are; False for latents.
        tanh: whether the probability of levels is that of `log_level_tanh`, as in published figures, not of
            `log_level`.

    Returns:
        Bits per dimension, the mean over a sample's dimensions, [B].

    Raises:
        ValueError: `variance` is unknown, or is learned_range although `p` has no fraction; or the bound is not defined
            for the schedule, see `check_schedule`.
    """
    check_schedule(schedule)
    small = log_variance(schedule, t, "small")
    excess = _excess(p, x_0, t, schedule, variance)
    when = exact(t)
    precision = torch.where(when > 0, schedule.snr(when - 1) - schedule.snr(when), (-small).exp())
    distance = expand_like(precision, x_0) * (x_0 - p.x_0).square()
    nats = (torch.expm1(-excess) + excess + distance * (-excess).exp()) / 2
    if levels:
        level = log_level_tanh if tanh else log_level
        nats = torch.where(expand_like(t, x_0) == 0, -level(x_0, p.x_0, expand_like(small, x_0) + excess), nats)
    return nats.flatten(1).mean(1) / math.log(2)


def _excess(p: Prediction, x_0: Tensor, t: Tensor, schedule: Schedule, variance: VarianceType) -> Tensor:
    """Return the log variance of p(x_{t-1} | x_t) minus that of q(x_{t-1} | x_t, x_0), computed in float64.

    The arguments are those of `term`. The shape is that of `p.fraction`, [B, ...], for a learned variance; else
    [B, 1, ...], which broadcasts to x_0.
    """
    if variance not in get_args(VarianceType):
        raise ValueError(f"unknown variance {variance!r}; known are {', '.join(get_args(VarianceType))}")
    low, high = log_variance_range(schedule, t)
    if variance != "learned_range":
        return expand_like(log_variance(schedule, t, variance) - low, x_0)
    if p.fraction is None:
        raise ValueError("variance learned_range needs a prediction with a fraction; this network has learned none")
    return learned_log_variance(p.fraction, 0.0, expand_like(high - low, x_0))


def log_level(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the natural log probability of 8-bit levels under a Gaussian (Ho et al. 2020, eq. 13).

    The probability of a level is the Gaussian's integral over x_0 - 1/255 .. x_0 + 1/255. For the darkest level the
    lower limit is -infinity, for the brightest level the upper limit is infinity. The integral is exact here;
    `log_level_tanh` has the published code's approximation.

    Args:
        x_0: levels k / 127.5 - 1, k = 0 .. 255, of any shape.
        mean: mean of the Gaussian, broadcasts to x_0.
        log_variance: natural logarithm of the Gaussian's variance, broadcasts to x_0.

    Returns:
        Log probabilities in nats, in the shape of x_0.
    """
    scale = (-log_variance / 2).exp()
    low, high = (x_0 - _HALF_BIN - mean) * scale, (x_0 + _HALF_BIN - mean) * scale
    mirror = low + high > 0  # the integral is exact in its left tail alone
    left, right = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    below, upto = _log_normal_integral(left), _log_normal_integral(right)
    inner = upto + (-torch.expm1((below - upto).clamp_max(-1e-7))).log()  # no logarithm of zero for a vast variance
    inner = torch.where(x_0 < -_EDGE, _log_normal_integral(high), inner)
    return torch.where(x_0 > _EDGE, _log_normal_integral(-low), inner)


def log_level_tanh(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return `log_level` as the code of Ho et al. 2020 and of Nichol & Dhariwal 2021 approximates it.

    The normal distribution function is replaced by (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, whose error is at
    most 2e-4, and probabilities below 1e-12 by 1e-12. Published bits/dim are computed with it. The clamp makes the
    code length of a level that the model rules out too short: 39.9 bits.

    Args:
        x_0: levels k / 127.5 - 1, k = 0 .. 255, of any shape.
        mean: mean of the Gaussian, broadcasts to x_0.
        log_variance: natural logarithm of the Gaussian's variance, broadcasts to x_0.

    Returns:
        Log probabilities in nats, in the shape of x_0.
    """
    scale = (-log_variance / 2).exp()
    below, upto = (_tanh_normal_integral((x_0 + sign * _HALF_BIN - mean) * scale) for sign in (-1, 1))
    probability = torch.where(x_0 < -_EDGE, upto, torch.where(x_0 > _EDGE, 1 - below, upto - below))
    return probability.clamp_min(_LEAST_PROBABILITY).log()


def _tanh_normal_integral(x: Tensor) -> Tensor:
    """Return an approximation of the standard normal distribution function at x, of any shape (Page 1977)."""
    return (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()) / 2


def _log_normal_integral(x: Tensor) -> Tensor:
    """Return the natural logarithm of the standard normal distribution function at x, of any shape.

    This replaces torch.special.log_ndtr, which in torch 2.15 has wrong float32 gradients, even NaN, for x below -1000.
    """
    z = x / math.sqrt(2)
    low, high = torch.where(x < 0, z, 0.0), torch.where(x < 0, 0.0, z)
    scaled = cast(Tensor, torch.special.erfcx(-low))  # pyright: ignore[reportUnknownMemberType]  (torch has no type)
    return torch.where(x < 0, scaled.log() - low.square() - math.log(2), torch.log1p(-torch.erfc(high) / 2))


def prior(x_0: Tensor, schedule: Schedule) -> Tensor:
    """Return the variational bound's prior term, KL(q(x_{T-1} | x_0) || N(0, 1)), which does not depend on the model.

    Args:
        x_0: clean data [B, ...].
        schedule: variance-preserving noise schedule.

    Returns:
        Bits per dimension, [B].

    Raises:
        ValueError: the bound is not defined for the schedule, see `check_schedule`.
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
    """Yield the variational bound's terms for pictures, timestep by timestep; plus `prior`, they sum to the bound.

    Args:
        denoiser: the model; its predictions of x_0 are clipped to [-1, 1].
        x_0: pictures [B, ...] of 8-bit levels k / 127.5 - 1.
        noise: function of timesteps [B] to standard normal noise in the shape of x_0.
        times: one tensor of timesteps [B] for each `Term` to yield; None: all timesteps, from T-1 to 0.
        cond: condition in the form that the denoiser takes.
        variance: variance of the model's reverse step: small (the posterior's), large (beta) or learned_range.

    Raises:
        ValueError: `variance` is unknown, or is learned_range although the denoiser predicts no variance; or the bound
            is not defined for the denoiser's schedule, see `check_schedule`.
    """
    schedule, clipped = denoiser.schedule, Clipped(denoiser)
    all_times = (times_like(x_0, t) for t in reversed(range(len(schedule))))
    for t in all_times if times is None else times:
        p = clipped(schedule.add_noise(x_0, noise(t), t), t, cond)
        yield Term(t, *(term(p, x_0, t, schedule, variance=variance, tanh=tanh) for tanh in (False, True)))


def sparse_density(total: int) -> Tensor:
    """Return a density over T = `total` timesteps, proportional to 1 / (t + 1), to estimate the variational bound.

    The bound is a sum of one term per timestep, and a trained model's terms fall about as 1 / (t + 1). For timesteps
    drawn from this density, the mean of term / density estimates the sum of all terms without bias and, as the density
    follows the terms, with low variance.

    Returns:
        Probabilities, float64 [T], with sum 1.
    """
    weights = 1 / torch.arange(1, total + 1, dtype=torch.float64)
    return weights / weights.sum()
