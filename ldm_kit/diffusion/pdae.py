"""Semantic codes in the mathematics of diffusion: DiffAE's stochastic code, PDAE's shifted denoiser, and editing.

DiffAE (Preechakul et al. 2022) decodes with plain DDIM under a code z: `samplers.ddim` over falling times, and
`stochastic_code` over rising ones. PDAE (Zhang et al. 2022) shifts a frozen model's eps by a learned gradient G.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, NetworkDenoiser, times_like
from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, from_eps
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.diffusion.schedule import Schedule

Estimator = Callable[[Tensor, Tensor, Any], tuple[Prediction, Tensor]]
"""(x_t, t, condition) to the frozen model's prediction and the gradient G, which is like x_0."""


def pdae_weight(t: Tensor, schedule: Schedule, gamma: float = 0.1) -> Tensor:
    """PDAE's weight of a time, SNR^gamma / (1 + SNR), [B]; small at both ends (Zhang et al. 2022)."""
    snr = schedule.snr(t)
    return snr.pow(gamma) / (1 + snr)


def pdae_coefficient(t: Tensor, schedule: Schedule) -> Tensor:
    """c_t [B] with which eps + c_t G moves the posterior mean by its variance times G; 0 at t = 0.

    It is -(a_t / a_{t-1}) s_{t-1}^2 / s_t: that of training and of ancestral sampling. DDIM takes -s_t (`ShiftedDenoiser`); the
    two differ by design.
    """
    a, s = schedule.at(t)
    a_before, s_before = schedule.at(t - 1)
    return -(a / a_before) * s_before.square() / s


def pdae_loss(eps_hat: Tensor, gap: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Mean squared error [B] of the frozen eps_hat + c_t G against eps, not weighted (Zhang et al. 2022)."""
    shifted = eps_hat.float() + expand_like(pdae_coefficient(t, schedule), gap.float()) * gap.float()
    return (shifted - eps.float()).square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class NetworkEstimator:
    """A network `(x, t, cond) -> (frozen output, G)` as an estimator; `target` and `learned_range` are the output's."""

    network: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]
    schedule: Schedule
    target: PredictionType
    learned_range: bool = False

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Prediction, Tensor]:
        out, gap = self.network(x, t, cond)
        frozen = NetworkDenoiser(lambda _x, _t, _cond: out, self.schedule, self.target, self.learned_range)
        return frozen(x, t, cond), gap.to(x.dtype)


@dataclass(frozen=True, eq=False)
class ShiftedDenoiser:
    """A frozen model moved by its learned gradient, eps - s_t G, as classifier guidance moves it (Zhang et al. 2022).

    `strength` 0 is the frozen model itself.
    """

    estimator: Estimator
    schedule: Schedule
    strength: float = 1.0

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p, gap = self.estimator(x, t, cond)
        if self.strength == 0:
            return p
        a, s = self.schedule.at(t)
        eps = p.eps - self.strength * expand_like(s, x) * gap
        return from_eps(eps, x, expand_like(a, x), expand_like(s, x))._replace(fraction=p.fraction)


@dataclass(frozen=True, eq=False)
class InterpolatedDenoiser:
    """Between two conditions at every step: (1 - weight) of the given one and weight of `other`, in x_0 and eps.

    The weight is a number or [B]. For `ShiftedDenoiser` that is G = (1 - w) G(z_1) + w G(z_2), PDAE's trajectory interpolation;
    put `Clipped` around it.
    """

    denoiser: Denoiser
    other: Any
    weight: float | Tensor

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p, q = self.denoiser(x, t, cond), self.denoiser(x, t, self.other)
        w = expand_like(torch.as_tensor(self.weight, dtype=x.dtype, device=x.device).expand(len(x)), x)
        x_0, eps = torch.lerp(p.x_0, q.x_0, w), torch.lerp(p.eps, q.eps, w)
        return Prediction(x_0, eps, p.fraction)


@torch.no_grad()
def stochastic_code(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """DDIM upwards from pictures x, put at times[0], over rising times to pure noise (Preechakul et al. 2022).

    One evaluation for each time; the last state's x is eps at the last time, and its t is T. `ddim` over the same times
    falling, and -1, decodes it, with an error of order 1/N: take 250 or more.
    """
    for state in ddim(denoiser, x, times, cond):
        x = state.x
        yield state
    p = denoiser(x, times_like(x, times[-1]), cond)
    yield State(p.eps, len(denoiser.schedule), p)


def pdae_grid(total: int, steps: int) -> list[int]:
    """PDAE's steps + 1 rising times, from 0 to T - 1 exactly; the level of time 0 stands for clean data.

    Raises ValueError unless 1 <= steps <= total - 1.
    """
    if not 1 <= steps < total:
        raise ValueError(f"cannot walk {total} training times in {steps} of PDAE's steps; expected 1 to {total - 1}")
    stride = (total - 1) / steps
    return [*(int(i * stride) for i in range(steps)), total - 1]


def pdae_encode(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """DDIM upwards over `pdae_grid`'s rising times; the last state is the stochastic code, at time T - 1."""
    yield from ddim(denoiser, x, times, cond)


def pdae_decode(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    stop: float = 0.0,
    frozen: Denoiser | None = None,
) -> Iterator[State]:
    """DDIM down `pdae_grid`'s rising times, walked backwards; the state at time 0 is the picture.

    Args:
        denoiser: `ShiftedDenoiser`, or anything around it.
        x: noise, or a stochastic code, at the last of the times.
        times: rising, as `pdae_grid` gives them.
        cond: as the denoiser takes it.
        stop: share of the steps, the last ones, that are left to `frozen` (0.3 where codes are drawn from a prior).
        frozen: the model without shift, in what stands around the denoiser; needed where `stop` is above 0.

    Raises:
        ValueError: `stop` outside 0..1, or above 0 without `frozen`.
    """
    if not 0 <= stop <= 1:
        raise ValueError(f"stop is {stop}; expected a share of the steps from 0 to 1")
    if stop > 0 and frozen is None:
        raise ValueError(f"stop {stop} leaves the last steps to the frozen model; expected it beside it")
    kept = int(stop * (len(times) - 1))
    for state in ddim(denoiser, x, list(times[kept:])[::-1], cond):
        x = state.x
        yield state
    if frozen is not None:
        yield from ddim(frozen, x, list(times[: kept + 1])[::-1], cond)


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Along the great circle from a to b [B, ...], each pair as one flat vector (Shoemake 1985).

    The weight is a number or [B]: 0 gives a. The straight line where the angle between them has no sine (below 1e-4).
    """
    w = expand_like(torch.as_tensor(weight, dtype=a.dtype, device=a.device).expand(len(a)), a)
    cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = expand_like(cosine.arccos(), a)
    sine = angle.sin()
    straight = sine < 1e-4
    safe = torch.where(straight, 1.0, sine)
    circle = (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / safe
    return torch.where(straight, (1 - w) * a + w * b, circle)


def shift_codes(z: Tensor, direction: Tensor, strength: float | Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Codes z [B, Z] moved along a direction of the normalised space (Preechakul et al. 2022).

    Args:
        z: codes as the encoder gives them.
        direction: [Z] or [B, Z], of any length: a row of a linear classifier's weight.
        strength: how far, in units of sqrt(Z), the length of a typical normalised code: about -0.5 to 0.5; or [B].
        mean: of each dimension over the training set, [Z].
        std: likewise.

    Raises:
        ValueError: a direction of length 0.
    """
    length = direction.square().sum(dim=-1, keepdim=True).sqrt()
    if not bool((length > 0).all()):
        raise ValueError("a direction of length 0 leads nowhere")
    step = torch.as_tensor(strength, dtype=z.dtype, device=z.device).view(-1, 1) * math.sqrt(z.shape[-1])
    return mean + std * ((z - mean) / std + step * direction / length)
