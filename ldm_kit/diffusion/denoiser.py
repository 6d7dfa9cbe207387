"""The one interface between networks, guidance and samplers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.prediction import Prediction, Target, to_prediction
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


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network `(x, t, cond) -> output` as a denoiser; computed in the network's dtype, returned in that of x.

    `learned_range`: the output has twice the channels, the second half being v = 2 fraction - 1 (Nichol & Dhariwal).
    """

    network: Callable[[Tensor, Tensor, Any], Tensor]
    schedule: Schedule
    target: Target
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
        return to_prediction("x0", p.x_0.clamp(self.low, self.high), x, a, s)._replace(fraction=p.fraction)


def times_like(x: Tensor, t: int) -> Tensor:
    """The integer time t for every picture of x, [B]."""
    return torch.full((len(x),), t, dtype=torch.long, device=x.device)
