"""The posterior q(x_next | x_t, x_0) from a timestep t to any cleaner one, and the reverse step p(x_next | x_t).

Both follow from a and s (x_t = a_t x_0 + s_t eps) at the two timesteps alone (Kingma et al. 2021, appendix A). So a
chain of steps over fewer timesteps (respacing) is given by the list of its timesteps. For variance-preserving schedules
the formulas are those of Ho et al. 2020, eq. 7, with the betas of the respaced chain.
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

VarianceType = Literal["small", "large", "learned_range"]
"""Variance of the reverse step: the posterior's (small), beta (large), or learned by the network between the two."""
_TINY = 1e-38  # least variance of which a logarithm is taken: flow's data at t = 0 are clean, with variance 0


class Level(NamedTuple):
    """A timestep t with its signal level a and noise level s: x_t = a x_0 + s eps."""

    t: int
    a: float
    s: float


def levels(schedule: Schedule, times: Sequence[int]) -> list[Level]:
    """Return `schedule`'s signal level a_t and noise level s_t at each of the timesteps `times`, as Python numbers.

    Timestep -1 is clean data (a = 1, s = 0).
    """
    coefficients = zip(*schedule.alpha_sigma(torch.tensor(times)), strict=True)
    return [Level(t, float(a), float(s)) for t, (a, s) in zip(times, coefficients, strict=True)]


class Posterior(NamedTuple):
    """The posterior of one sampling step t -> t_next: q(x_next | x_t, x_0) = N(coef_x x_t + coef_x0 x_0, variance).

    All fields are Python numbers, computed in float64. Noisy data are x_t = a_t x_0 + s_t eps.

    Args:
        t: timestep before the step.
        t_next: cleaner timestep after the step; -1 is clean data.
        alpha_ratio: a_t / a_next; the forward step is q(x_t | x_next) = N(alpha_ratio x_next, beta).
        beta: variance of the noise that the forward step adds, see `Schedule.beta`.
        coef_x: weight of x_t in the posterior's mean.
        coef_x0: weight of x_0 in the posterior's mean.
        variance: the posterior's variance; 0 in the step to clean data.
        variance_floor: `variance`, or a value in its place in the step to clean data, where `variance` is 0 and has no
            logarithm: the previous step's variance (Ho et al. 2020, section 3.2), or nan if there was no step.
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
        """Return the mean of q(x_next | x_t, x_0) for x = x_t and x_0, [B, ...] each; x_0 itself if x_next is clean."""
        return self.coef_x * x + self.coef_x0 * x_0

    def reverse_variance(self, kind: VarianceType | Literal["auto"], fraction: Tensor | None = None) -> Tensor | float:
        """Return the variance of the reverse step p(x_next | x_t).

        Args:
            kind: small: the posterior's variance; large: beta, or `variance_floor` in the step to clean data;
                learned_range: the learned variance; auto: the learned variance if `fraction` is given, else small.
            fraction: the network's interpolation weight between log `variance_floor` (0) and log `beta` (1), which is
                `Prediction.fraction` [B, ...]; None: the network does not learn the variance.

        Returns:
            A number or, for a learned variance, a tensor in the shape of `fraction`.

        Raises:
            ValueError: `kind` is learned_range but `fraction` is None; or the variance depends on `variance_floor`,
                which is nan in a chain whose only step leads to clean data.
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
        """Natural logarithms of `variance_floor` and `beta`, between which a learned log variance interpolates."""
        return math.log(max(self.variance_floor, _TINY)), math.log(max(self.beta, _TINY))


def learned_log_variance(fraction: Tensor, low: float | Tensor, spread: float | Tensor) -> Tensor:
    """Return the log variance that a network learns, low + fraction spread (Nichol & Dhariwal 2021, eq. 15).

    Args:
        fraction: the network's interpolation weight, 0 for `low`, 1 for log beta: `Prediction.fraction` [B, ...]. It
            may lie outside 0 to 1.
        low: log variance of the posterior, a number or a tensor that broadcasts to `fraction`. With 0, the result is
            the difference to the posterior's log variance.
        spread: log beta minus `low`, a number or such a tensor. Subtract in float64: the two may be nearly equal.
    """
    return low + fraction * spread


def chain(schedule: Schedule, times: Sequence[int]) -> list[Posterior]:
    """Return the posterior of each step of a sampler that visits the given timesteps.

    Args:
        schedule: noise schedule of any kind. From a timestep without noise (s_t = 0) the posterior is x_0 itself.
        times: N + 1 falling timesteps; -1 is clean data.

    Returns:
        The N posteriors between neighbouring timesteps, in the order of `times`.
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
    """Return the natural log variance of the reverse step from x_t to x_{t-1}, with all T timesteps in the chain.

    At t = 0 the posterior's variance is 0. There the posterior's variance at t = 1 replaces it, and also replaces the
    large variance (Ho et al. 2020, section 3.2); a learned variance still has beta_0 as its upper end.

    Args:
        schedule: noise schedule of two timesteps or more; for a respaced chain, the respaced schedule.
        t: timesteps [B].
        kind: small: the posterior's variance; large: beta; a tensor: the learned variance with this
            `Prediction.fraction` [B, ...].

    Returns:
        float64 [B], on the CPU if the device of `t` has no float64; for a learned variance, in the fraction's shape.
    """
    t = exact(t)
    low, high = log_variance_range(schedule, t)
    if isinstance(kind, Tensor):
        return learned_log_variance(kind, expand_like(low, kind), expand_like(high - low, kind))
    return low if kind == "small" else torch.where(t > 0, high, low)


def log_variance_range(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and upper end of a learned log variance at timesteps t [B] of `schedule`, each float64 [B].

    The lower end is the posterior's log variance (at t = 0, that at t = 1), the upper end is log beta. The tensors are
    on the device of `t`, or on the CPU if that device has no float64.
    """
    t = exact(t)
    low, high = (table.to(t.device)[t] for table in _log_variances(schedule))
    return low, high


@lru_cache(maxsize=16)
def _log_variances(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return the log variance of the posterior and log beta of the steps from each of T timesteps t to t - 1, [T] each.

    A learned log variance interpolates between the two. At t = 0 the posterior's log variance at t = 1 is taken.
    """
    steps = chain(schedule, range(len(schedule) - 1, -2, -1))
    tables = torch.tensor([step.log_variances for step in reversed(steps)], dtype=torch.float64)
    low, high = tables.to(schedule.a.device).unbind(1)
    return low, high
