"""The one interface between networks, guidance and samplers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, to_prediction
from ldm_kit.diffusion.schedule import Schedule


class Denoiser(Protocol):
    """Anything that, given x_t, says what x_0 and eps are."""

    @property
    def schedule(self) -> Schedule:
        """The schedule under which x_t was made."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        """Noisy pictures x [B, ...] at integer times t [B] under a condition (None: unconditional)."""
        ...


class Gradient(Protocol):
    """The gradient of a log-probability with respect to x_t, times its scale: what steers guidance by a classifier."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy pictures x [B, ...] at integer times t [B] to a tensor like x."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network `(x, t, cond) -> output` as a denoiser; computed in the network's dtype, returned in that of x.

    `learned_range`: the output has twice the channels, the second half being v = 2 fraction - 1 (Nichol & Dhariwal).
    """

    network: Callable[[Tensor, Tensor, Any], Tensor]
    schedule: Schedule
    target: PredictionType
    learned_range: bool = False

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        a, s = self.schedule.at(t)
        out = self.network(x, t, cond).to(x.dtype)
        if not self.learned_range:
            return to_prediction(self.target, out, x, a, s)
        out, v = out.chunk(2, dim=1)
        return to_prediction(self.target, out, x, a, s)._replace(fraction=(v + 1) / 2)


@dataclass(frozen=True, eq=False)
class Clipped:
    """A denoiser whose x_0 is clipped to [low, high] and whose eps is re-derived from it, so that both views agree."""

    denoiser: Denoiser
    low: float = -1.0
    high: float = 1.0

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.at(t)
        return with_output("x0", p.x_0.clamp(self.low, self.high), p, x, a, s)


@dataclass(frozen=True, eq=False)
class Thresholded:
    """Dynamic thresholding for pixel models (Saharia et al. 2022, section 2.3); eps is re-derived from the new x_0.

    Each picture's x_0 is clipped to [-s, s] and divided by s, the `quantile` of its |x_0|, at least 1 and at most
    `largest`. Not for latents, which have no natural range.
    """

    denoiser: Denoiser
    quantile: float = 0.995
    largest: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.quantile <= 1 and (self.largest is None or self.largest >= 1)):
            raise ValueError(
                f"expected a quantile in (0, 1] and a largest of 1 or more, got {self.quantile} and {self.largest}"
            )

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.at(t)
        reach = torch.quantile(p.x_0.abs().flatten(1).float(), self.quantile, dim=1).clamp(1, self.largest)
        limit = expand_like(reach, p.x_0)
        return with_output("x0", p.x_0.clamp(-limit, limit) / limit, p, x, a, s)


def with_output(target: PredictionType, out: Tensor, p: Prediction, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """`p`, made to say `out` at x_t with coefficients [B]; a view that `out` cannot give stays.

    That is x_0 where a = 0 and out is eps, and eps where s = 0 and out is x_0.
    """
    found = to_prediction(target, out, x, a, s)
    x_0 = torch.where(expand_like(a, x) > 0, found.x_0, p.x_0) if target == "eps" else found.x_0
    eps = torch.where(expand_like(s, x) > 0, found.eps, p.eps) if target == "x0" else found.eps
    return Prediction(x_0, eps, p.fraction)


def times_like(x: Tensor, t: int) -> Tensor:
    """The integer time t for every picture of x, [B]."""
    return torch.full((len(x),), t, dtype=torch.long, device=x.device)
