"""The variational bound on the negative log-likelihood, term by term, in bits per dimension.

Ho et al. 2020, eq. 5: a prior, one term for each time t > 0, and the reconstruction at t = 0. For variance-preserving
schedules, whose posteriors q(x_{t-1} | x_t, x_0) are Gaussians in closed form (eq. 6 and 7).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Clipped, Denoiser, times_like
from ldm_kit.diffusion.loss import noised
from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule

VarianceType = Literal["small", "large", "learned_range"]  # as diffusers' schedulers call them

_HALF_BIN = 1 / 255  # of the 8-bit levels k / 127.5 - 1
_EDGE = 0.999  # beyond it lies the darkest, or the brightest, level alone


class Term(NamedTuple):
    """One term of the bound for each picture: bits per dimension [B] at times [B]."""

    t: Tensor
    bits: Tensor


@lru_cache(maxsize=16)
def check_schedule(schedule: Schedule) -> None:
    """Raise ValueError for a schedule without such posteriors: not variance-preserving, or of a single time."""
    a, s = schedule.a, schedule.s
    if not torch.allclose(a.square() + s.square(), torch.ones_like(a)):
        raise ValueError("the variational bound needs a variance-preserving schedule (a^2 + s^2 = 1), not flow")
    if len(a) < 2:
        raise ValueError("the variational bound needs two times or more: t = 0 borrows its variance from t = 1")


def log_variance(schedule: Schedule, t: Tensor, kind: Tensor | Literal["small", "large"]) -> Tensor:
    """Log variance of the way down from x_t, t [B], as float64 [B] or like a learned fraction [B, ...].

    "small" is the posterior's and "large" is beta; both stand at t = 0, where the posterior has none, for the
    posterior's of t = 1 (Ho et al. 2020, section 3.2). A fraction lies between small (0) and log beta_t (1), which at
    t = 0 is that of t = 0 (Nichol & Dhariwal 2021, eq. 15). For respaced chains give the respaced schedule.

    Raises:
        ValueError: the schedule has no posterior, see `check_schedule`.
    """
    check_schedule(schedule)
    later = t.clamp_min(1)
    small = _log_beta(schedule, later) + _log_ratio(schedule, later)
    if isinstance(kind, Tensor):
        return expand_like(small, kind) + kind * expand_like(_log_beta(schedule, t) - small, kind)
    return small if kind == "small" else torch.where(t > 0, _log_beta(schedule, t), small)


def _log_beta(schedule: Schedule, t: Tensor) -> Tensor:
    """Log of beta_t = 1 - (a_t / a_{t-1})^2."""
    return torch.log1p(-(schedule.at(t)[0] / schedule.at(t - 1)[0]).square())


def _log_ratio(schedule: Schedule, t: Tensor) -> Tensor:
    """Log of the posterior's variance over beta_t, s_{t-1}^2 / s_t^2."""
    return 2 * (schedule.at(t - 1)[1] / schedule.at(t)[1]).log()


def term(
    p: Prediction, x_0: Tensor, t: Tensor, schedule: Schedule, *, variance: VarianceType = "small", levels: bool = True
) -> Tensor:
    """The bound's terms at times t [B] for a prediction from x_t, bits per dimension, mean over dimensions [B].

    For t > 0 the divergence KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)). Both means hold x_t alike, so what is left
    of their distance is (SNR_{t-1} - SNR_t) (x_0 - x_0')^2 posterior variances (Kingma et al. 2021, eq. 13).

    At t = 0 pixels pay for their 8-bit level, see `log_level`. Latents have no levels, and a density has no least
    value: with `levels` off they pay KL(N(x_0, small) || p(x_0 | x_1)), as if known up to the chain's own smallest
    noise, which is never negative, and zero if and only if prediction and variance are right.

    Raises:
        ValueError: the variance is learned but the prediction has none, or the schedule has no posterior.
    """
    small = log_variance(schedule, t, "small")
    excess = _excess(p, x_0, t, schedule, variance)
    precision = torch.where(t > 0, schedule.snr(t - 1) - schedule.snr(t), (-small).exp())
    distance = expand_like(precision, x_0) * (x_0 - p.x_0).square()
    nats = (torch.expm1(-excess) + excess + distance * (-excess).exp()) / 2
    if levels:
        nats = torch.where(expand_like(t, x_0) == 0, -log_level(x_0, p.x_0, expand_like(small, x_0) + excess), nats)
    return nats.flatten(1).mean(1) / math.log(2)


def _excess(p: Prediction, x_0: Tensor, t: Tensor, schedule: Schedule, variance: VarianceType) -> Tensor:
    """Log variance above the posterior's, in one subtraction of float64: [B, 1, ...] or like x_0."""
    if variance not in get_args(VarianceType):
        raise ValueError(f"unknown variance {variance!r}; known are {', '.join(get_args(VarianceType))}")
    small = log_variance(schedule, t, "small")
    if variance != "learned_range":
        return expand_like(log_variance(schedule, t, variance) - small, x_0)
    if p.fraction is None:
        raise ValueError("variance learned_range needs a prediction with a fraction; this network has learned none")
    return p.fraction * expand_like(_log_beta(schedule, t) - small, x_0)


def log_level(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability of x_0's 8-bit level under a Gaussian, like x_0 (Ho et al. 2020, eq. 13).

    The bin is x_0 +- 1/255; those of the darkest and brightest level are open. With the exact normal integral, in
    logarithms, where the published code has a tanh (off by 2e-4 at most) and a floor at 1e-12.
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
    """As torch.special.log_ndtr, whose float32 gradient is wrong below -1000 and NaN further down (torch 2.15)."""
    z = x / math.sqrt(2)
    low, high = torch.where(x < 0, z, 0.0), torch.where(x < 0, 0.0, z)
    scaled = cast(Tensor, torch.special.erfcx(-low))  # pyright: ignore[reportUnknownMemberType]  (torch has no type)
    return torch.where(x < 0, scaled.log() - low.square() - math.log(2), torch.log1p(-torch.erfc(high) / 2))


def prior(x_0: Tensor, schedule: Schedule) -> Tensor:
    """KL(q(x_T | x_0) || N(0, 1)) at the last time, bits per dimension [B]; nothing trains it."""
    check_schedule(schedule)
    last = times_like(x_0, len(schedule) - 1)
    kept = schedule.at(last)[0].square()  # so that the variance is 1 - kept
    nats = (expand_like(kept, x_0) * x_0.square() - expand_like(kept + torch.log1p(-kept), x_0)) / 2
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
    """Every term of the bound for pictures x_0 [B, ...] of 8-bit levels in [-1, 1]; with `prior` they sum to it.

    Args:
        denoiser: its predictions of x_0 are clipped to [-1, 1].
        x_0: pictures.
        noise: what is added at times [B], like x_0.
        times: [B] each, such as `sparse_times`; all, falling, when left out.
        cond: as the denoiser takes it.
        variance: that of the model's way down.
    """
    schedule, clipped = denoiser.schedule, Clipped(denoiser)
    every = (times_like(x_0, t) for t in reversed(range(len(schedule))))
    for t in every if times is None else times:
        p = clipped(noised(x_0, noise(t), t, schedule), t, cond)
        yield Term(t, term(p, x_0, t, schedule, variance=variance))


def sparse_density(total: int) -> Tensor:
    """A density over times [T] float64 like the terms of a trained model, which fall about as 1 / (t + 1)."""
    weights = 1 / torch.arange(1, total + 1, dtype=torch.float64)
    return weights / weights.sum()
