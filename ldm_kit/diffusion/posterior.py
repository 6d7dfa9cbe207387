"""The chain over a grid of times, respaced: whatever it needs follows from a and s at two neighbouring times alone.

q(x_t | x_next) = N(keep x_next, forward) and q(x_next | x_t, x_0) = N(of_x x_t + of_x_0 x_0, posterior) for t above
t_next (Kingma et al. 2021, appendix A). For variance-preserving schedules `forward` is the respaced beta.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion.schedule import Schedule

Variance = Literal["small", "large", "learned", "auto"]
_TINY = 1e-38  # flow is clean at t = 0 already: no logarithm of zero there


class Link(NamedTuple):
    """One step t -> t_next of a chain, as plain numbers computed in float64."""

    t: int
    t_next: int
    s: float  # at t
    keep: float
    forward: float
    of_x: float
    of_x_0: float
    posterior: float  # 0 in the step to clean data
    floor: float  # posterior, and in the step to clean data that of the step before; nan where there is none

    def mean(self, x: Tensor, x_0: Tensor) -> Tensor:
        """Mean of q(x_next | x_t, x_0); in the step to clean data it is x_0."""
        return self.of_x * x + self.of_x_0 * x_0

    def variance(self, kind: Variance, fraction: Tensor | None) -> Tensor | float:
        """Variance of the way down: a number or, where it is learned, one for each coordinate.

        "small" is the posterior's. "large" is `forward`; the step to clean data has `floor` (Ho et al. 2020, section
        3.2). "learned" has a log variance between those of `floor` (fraction 0) and `forward` (1), Nichol & Dhariwal
        2021, eq. 15. "auto" is learned where there is a fraction, else small.

        Raises:
            ValueError: learned, without a fraction; or `floor` where there is none.
        """
        if kind == "small" or (kind == "auto" and fraction is None):
            return self.posterior
        if kind == "large" and self.t_next >= 0:
            return self.forward
        if math.isnan(self.floor):
            raise ValueError(
                f"a chain of one step has no {kind} variance to be guided with; expected two steps or more"
            )
        if kind == "large":
            return self.floor
        if fraction is None:
            raise ValueError("the learned variance was asked for, but the denoiser's predictions have no fraction")
        low, high = math.log(max(self.floor, _TINY)), math.log(max(self.forward, _TINY))
        return (low + fraction * (high - low)).exp()


class Level(NamedTuple):
    """A time, and the numbers a and s there."""

    t: int
    a: float
    s: float


def levels(schedule: Schedule, times: Sequence[int]) -> list[Level]:
    """What the schedule says at each of the times."""
    a_s = zip(*schedule.at(torch.tensor(times)), strict=True)
    return [Level(t, float(a), float(s)) for t, (a, s) in zip(times, a_s, strict=True)]


def link(now: Level, then: Level, before: float = math.nan) -> Link:
    """The step from one level down to another; `before` is the posterior's variance in the step before."""
    keep = now.a / then.a
    forward = max(now.s**2 - (keep * then.s) ** 2, 0.0)
    if now.s == 0:  # flow at t = 0 is clean already
        of_x, of_x_0, posterior = 0.0, 1.0, 0.0
    else:
        ratio = (then.s / now.s) ** 2
        of_x, of_x_0, posterior = keep * ratio, then.a * forward / now.s**2, forward * ratio
    floor = posterior if then.t >= 0 else before
    return Link(now.t, then.t, now.s, keep, forward, of_x, of_x_0, posterior, floor)


def chain(schedule: Schedule, times: Sequence[int]) -> list[Link]:
    """The links between falling times."""
    links: list[Link] = []
    for now, then in pairwise(levels(schedule, times)):
        links.append(link(now, then, links[-1].posterior if links else math.nan))
    return links
