"""The posterior q(x_s | x_t, x_0) between any two timesteps t > s, and the variance of the reverse step p(x_s | x_t).

Everything follows from a and s at the two timesteps alone (Kingma et al. 2021, appendix A), so that a respaced chain is
the list of its timesteps. For variance-preserving schedules the formulas are those of Ho et al. 2020, eq. 7, on the
respaced betas.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.prediction import expand_like
from ldm_kit.diffusion.schedule import Schedule

VarianceType = Literal["small", "large", "learned_range"]  # as diffusers' schedulers call them
_TINY = 1e-38  # flow is clean at t = 0 already: no logarithm of zero there


class Level(NamedTuple):
    """A timestep with its coefficients, x_t = a x_0 + s eps."""

    t: int
    a: float
    s: float


def levels(schedule: Schedule, times: Sequence[int]) -> list[Level]:
    """Return the coefficients at each of the timesteps as plain numbers; -1 is clean data."""
    coefficients = zip(*schedule.alpha_sigma(torch.tensor(times)), strict=True)
    return [Level(t, float(a), float(s)) for t, (a, s) in zip(times, coefficients, strict=True)]


class Posterior(NamedTuple):
    """One step t -> t_next of a chain: q(x_next | x_t, x_0) = N(coef_x x_t + coef_x0 x_0, variance).

    Plain numbers, computed in float64.

    Args:
        t: the timestep that is left.
        t_next: the cleaner timestep that is reached; -1 is clean data.
        alpha_ratio: a_t / a_next, so that q(x_t | x_next) = N(alpha_ratio x_next, beta).
        beta: variance that the forward step adds, `Schedule.beta`.
        coef_x: weight of x_t in the mean.
        coef_x0: weight of x_0 in the mean.
        variance: the posterior's variance; 0 in the step to clean data.
        variance_floor: the same, but in the step to clean data that of the step before, which stands in for it where a
            logarithm or noise is needed (Ho et al. 2020, section 3.2); nan in a chain of one step.
    """

    t: int
    t_next: int
    alpha_ratio: float
    beta: float
    coef_x: float
    coef_x0: float
    variance: float
    variance_floor: float

    def mean(self, x: Tensor, x_0: Tensor) -> Tensor:
        """Return the mean of q(x_next | x_t, x_0) for tensors of one shape; in the step to clean data it is x_0."""
        return self.coef_x * x + self.coef_x0 * x_0

    def reverse_variance(self, kind: VarianceType | Literal["auto"], fraction: Tensor | None = None) -> Tensor | float:
        """Return the variance of the reverse step p(x_next | x_t).

        Args:
            kind: small, the posterior's; large, beta, but in the step to clean data `variance_floor`; learned_range,
                the exponential of `learned_log_variance`; auto, learned_range where there is a fraction, else small.
            fraction: `Prediction.fraction`, [B, ...].

        Returns:
            A number or, where it is learned, a tensor like `fraction`.

        Raises:
            ValueError: learned_range without a fraction; or `variance_floor` is needed where there is none.
        """
        if kind == "small" or (kind == "auto" and fraction is None):
            return self.variance
        if kind == "large" and self.t_next >= 0:
            return self.beta
        if math.isnan(self.variance_floor):
            raise ValueError(
                f"a chain of one step has no {kind} variance to be guided with; expected two steps or more"
            )
        if kind == "large":
            return self.variance_floor
        if fraction is None:
            raise ValueError("the learned variance was asked for, but the denoiser's predictions have no fraction")
        low, high = self.log_variances
        return learned_log_variance(fraction, low, high - low).exp()

    @property
    def log_variances(self) -> tuple[float, float]:
        """Natural logarithms of `variance_floor` and of `beta`, the ends of a learned variance."""
        return math.log(max(self.variance_floor, _TINY)), math.log(max(self.beta, _TINY))


def learned_log_variance(fraction: Tensor, low: float | Tensor, spread: float | Tensor) -> Tensor:
    """Return low + fraction spread, the log variance that a network learns (Nichol & Dhariwal 2021, eq. 15).

    Args:
        fraction: `Prediction.fraction` [B, ...], not clamped.
        low: log variance of the posterior, a number or like `fraction`; for 0 the result is what lies above it.
        spread: log of beta minus `low`, a number or like `fraction`; take the difference in float64.
    """
    return low + fraction * spread


def chain(schedule: Schedule, times: Sequence[int]) -> list[Posterior]:
    """Return the posteriors of the steps between neighbouring timesteps.

    Args:
        schedule: of any kind; where s_t = 0, in clean data, the posterior is x_0 itself.
        times: N + 1 falling timesteps; -1 is clean data.

    Returns:
        N posteriors.
    """
    grid = torch.tensor(times)
    (a, s), beta = schedule.alpha_sigma(grid), schedule.beta(grid[:-1], grid[1:])
    alpha_ratio, ratio, clean = a[:-1] / a[1:], (s[1:] / s[:-1]).square(), s[:-1] == 0
    coef_x = torch.where(clean, 0.0, alpha_ratio * ratio)
    coef_x0 = torch.where(clean, 1.0, a[1:] * beta / s[:-1].square())
    variance = torch.where(clean, 0.0, beta * ratio)
    before = torch.cat([torch.full((1,), math.nan, dtype=torch.float64), variance[:-1]])
    floor = torch.where(grid[1:] >= 0, variance, before)
    columns = torch.stack([alpha_ratio, beta, coef_x, coef_x0, variance, floor], dim=1)
    rows = [[float(number) for number in row] for row in columns]
    return [Posterior(t, t_next, *row) for (t, t_next), row in zip(pairwise(times), rows, strict=True)]


def log_variance(schedule: Schedule, t: Tensor, kind: Tensor | Literal["small", "large"]) -> Tensor:
    """Return the log variance of the reverse step from x_t to x_{t-1} in the chain over all timesteps.

    At t = 0, where the posterior has no variance, that of t = 1 takes its place (Ho et al. 2020, section 3.2); a
    learned variance still ends in beta_0 there. For a respaced chain give the respaced schedule.

    Args:
        schedule: of two timesteps or more.
        t: timesteps [B].
        kind: small, the posterior's; large, beta; or the fraction [B, ...] of a learned variance.

    Returns:
        float64 [B], on the CPU where the device of `t` has no float64; or a tensor like the fraction.
    """
    t = exact(t)
    low, high = log_variance_range(schedule, t)
    if isinstance(kind, Tensor):
        return learned_log_variance(kind, expand_like(low, kind), expand_like(high - low, kind))
    return low if kind == "small" else torch.where(t > 0, high, low)


def log_variance_range(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of a learned log variance at timesteps t [B], two tensors [B] float64.

    They are the posterior's log variance, at t = 0 that of t = 1, and the log of beta; on the device of `t`, or on the
    CPU where that has no float64.
    """
    t = exact(t)
    low, high = (table.to(t.device)[t] for table in _log_variances(schedule))
    return low, high


@lru_cache(maxsize=16)
def _log_variances(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return the ends of `log_variance_range` at all timesteps, [T] each, on the device of the schedule."""
    steps = chain(schedule, range(len(schedule) - 1, -2, -1))
    tables = torch.tensor([step.log_variances for step in reversed(steps)], dtype=torch.float64)
    low, high = tables.to(schedule.a.device).unbind(1)
    return low, high
