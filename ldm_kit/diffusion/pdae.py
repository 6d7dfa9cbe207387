"""Diffusion autoencoders: DiffAE's stochastic code, PDAE's denoiser, interpolation and editing of semantic codes.

DiffAE (Preechakul et al. 2022) decodes a semantic code z by `samplers.ddim` with z as the condition, and encodes a
picture to the noise it decodes from by `stochastic_code`. PDAE (Zhang et al. 2022) keeps a pretrained model and shifts
its eps by a learned gradient G, which stands for grad_x log p(z | x_t). Here x_t = a_t x_0 + s_t eps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, NetworkDenoiser, times_like
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, from_eps
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.diffusion.schedule import Schedule

Estimator = Callable[[Tensor, Tensor, Any], tuple[Prediction, Tensor]]
"""Function of x_t [B, ...], t [B] and condition to the pretrained model's prediction and PDAE's gradient [B, ...]."""


def pdae_weight(t: Tensor, schedule: Schedule, gamma: float = 0.1) -> Tensor:
    """Return PDAE's loss weights SNR^gamma / (1 + SNR) [B] at timesteps t [B]; SNR is `schedule.snr(t)`."""
    snr = schedule.snr(exact(t))
    return snr.pow(gamma) / (1 + snr)


def pdae_coefficient(t: Tensor, schedule: Schedule) -> Tensor:
    """Return PDAE's factor c_t = -(a_t / a_{t-1}) s_{t-1}^2 / s_t of its learned gradient G (Zhang et al. 2022).

    Replacing eps by eps + c_t G shifts the mean of q(x_{t-1} | x_t, x_0) by its variance times G; x_t = a_t x_0 + s_t
    eps. Training uses c_t, which is 0 at t = 0. DDIM sampling (`ShiftedDenoiser`) uses -s_t instead, on purpose.

    Args:
        t: timesteps [B].
        schedule: variance-preserving noise schedule.

    Returns:
        float64 [B], on the CPU if the device of `t` has no float64.
    """
    (a, s), (a_before, s_before) = (schedule.alpha_sigma(exact(t) - back) for back in (0, 1))
    return -(a / a_before) * s_before.square() / s


def pdae_loss(eps_hat: Tensor, gap: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Return the mean squared error between eps_hat + c_t gap and eps, where c_t is `pdae_coefficient`.

    Args:
        eps_hat: noise that the pretrained model predicts, [B, ...].
        gap: PDAE's learned gradient G, in the shape of `eps_hat`.
        eps: true noise, in the shape of `eps_hat`.
        t: timesteps [B].
        schedule: variance-preserving noise schedule.

    Returns:
        Mean squared error of each sample, float32 [B], not multiplied by `pdae_weight`.
    """
    shifted = eps_hat.float() + expand_like(pdae_coefficient(t, schedule), gap.float()) * gap.float()
    return (shifted - eps.float()).square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class NetworkEstimator:
    """A network's estimate of a pretrained model's prediction and of G = grad_x log p(z | x_t) for a semantic code z.

    Args:
        network: function of x_t [B, C, ...], t [B] and condition to the pretrained model's output and G [B, C, ...].
        schedule: noise schedule of the pretrained model.
        prediction_type: what the pretrained model predicts.
        learned_range: whether the pretrained model learns its variance, in 2 C output channels (`NetworkDenoiser`).
    """

    network: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]
    schedule: Schedule
    prediction_type: PredictionType
    learned_range: bool = False

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Prediction, Tensor]:
        out, gap = self.network(x, t, cond)
        base = NetworkDenoiser(lambda _x, _t, _cond: out, self.schedule, self.prediction_type, self.learned_range)
        return base(x, t, cond), gap.to(x.dtype)


@dataclass(frozen=True, eq=False)
class ShiftedDenoiser:
    """PDAE's denoiser: it predicts eps - s_t G, as in classifier guidance (Zhang et al. 2022).

    Args:
        estimator: function of x_t, t, condition to a pretrained model's prediction (x_0, eps) and a learned gradient G.
        schedule: noise schedule of the pretrained model.
        strength: factor of s_t G; 0 is the pretrained model itself. s_t is the schedule's noise level.
    """

    estimator: Estimator
    schedule: Schedule
    strength: float = 1.0

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p, gap = self.estimator(x, t, cond)
        if self.strength == 0:
            return p
        a, s = self.schedule.alpha_sigma(t)
        eps = p.eps - self.strength * expand_like(s, x) * gap
        return from_eps(eps, x, expand_like(a, x), expand_like(s, x))._replace(fraction=p.fraction)


@dataclass(frozen=True, eq=False)
class InterpolatedDenoiser:
    """A denoiser that interpolates linearly between the predictions (x_0 and eps) under two conditions.

    With `ShiftedDenoiser` this interpolates PDAE's gradients of two semantic codes, (1 - w) G(z_1) + w G(z_2). To clip
    x_0, put `Clipped` around this denoiser, not inside it.

    Args:
        denoiser: denoiser that is evaluated under both conditions.
        other: the second condition; the first is the `cond` of the call.
        weight: weight w of the second condition, a number or [B].
    """

    denoiser: Denoiser
    other: Any
    weight: float | Tensor

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p, q = self.denoiser(x, t, cond), self.denoiser(x, t, self.other)
        w = expand_like(torch.as_tensor(self.weight, dtype=x.dtype, device=x.device).expand(len(x)), x)
        return p.lerp(q, w)


@torch.no_grad()
def stochastic_code(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """Encode data into DiffAE's stochastic code, by DDIM over rising timesteps (Preechakul et al. 2022).

    `ddim` over the reversed timesteps, then -1, decodes the code; the error is of order 1/N for N timesteps, so take
    250 or more.

    Args:
        denoiser: predicts x_0 and eps.
        x: data [B, ...], which are used as x_t at timestep times[0].
        times: rising timesteps, the last one T-1.
        cond: condition in the form that the denoiser takes.

    Yields:
        One state for each timestep. The last state's x is the code, the eps predicted at T-1; its t is T.
    """
    for state in ddim(denoiser, x, times, cond):
        x = state.x
        yield state
    p = denoiser(x, times_like(x, times[-1]), cond)
    yield State(p.eps, len(denoiser.schedule), p)


def pdae_grid(total: int, steps: int) -> list[int]:
    """Return PDAE's `steps` + 1 evenly spaced rising timesteps from 0 to T-1; PDAE uses clean data as x_t at t = 0.

    Args:
        total: number of training timesteps T.
        steps: number of sampling steps, 1 to T-1.

    Raises:
        ValueError: `steps` is outside 1 to T-1.
    """
    if not 1 <= steps < total:
        raise ValueError(f"cannot walk {total} training times in {steps} of PDAE's steps; expected 1 to {total - 1}")
    stride = (total - 1) / steps
    return [*(int(i * stride) for i in range(steps)), total - 1]


def pdae_encode(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """Encode data x [B, ...] into a stochastic code by DDIM over `times`, those of `pdae_grid` (Zhang et al. 2022).

    `cond` is the condition for `denoiser`. Yields a state for each step; the last state's x, at T-1, is the code.
    """
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
    """Decode noise or a stochastic code by DDIM over the reversed timesteps of `pdae_grid` (Zhang et al. 2022).

    Args:
        denoiser: `ShiftedDenoiser`, or a wrapper of it.
        x: noise or a stochastic code [B, ...], at timestep T-1.
        times: the rising timesteps of `pdae_grid`.
        cond: condition in the form that the denoiser takes.
        stop: fraction of the steps, at the end, that use `frozen`: 0.3 for semantic codes that a prior sampled.
        frozen: the pretrained model's denoiser without shift, wrapped as `denoiser` is; needed if `stop` > 0.

    Yields:
        One state for each step; the last state's x, at timestep 0, is the decoded data.

    Raises:
        ValueError: `stop` is outside 0 to 1, or is above 0 although `frozen` is None.
    """
    if not 0 <= stop <= 1:
        raise ValueError(f"stop is {stop}; expected a share of the steps from 0 to 1")
    if stop > 0 and frozen is None:
        raise ValueError(f"stop {stop} leaves the last steps to the frozen model; expected it beside it")
    unshifted = int(stop * (len(times) - 1))
    for state in ddim(denoiser, x, list(times[unshifted:])[::-1], cond):
        x = state.x
        yield state
    if frozen is not None:
        yield from ddim(frozen, x, list(times[: unshifted + 1])[::-1], cond)


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Interpolate each sample, flattened to a vector, along the great circle from a to b (Shoemake 1985).

    For samples where the sine of the angle between a and b is below 1e-4, the interpolation is linear.

    Args:
        a: start of the interpolation, [B, ...].
        b: end of the interpolation, in the shape of a.
        weight: 0 gives a, 1 gives b; a number or [B].
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
    """Edit semantic codes: shift them along a direction of the normalised code space (Preechakul et al. 2022).

    Args:
        z: codes [B, Z] of Z dimensions, as the encoder gives them (not normalised).
        direction: [Z] or [B, Z], of any norm, such as an attribute's row in a linear classifier's weight.
        strength: norm of the shift, as a multiple of a typical code's norm sqrt(Z); about -0.5 to 0.5; number or [B].
        mean: mean of the training set's codes, [Z].
        std: standard deviation of the training set's codes in each dimension, [Z].

    Raises:
        ValueError: `direction` has norm 0.
    """
    length = direction.square().sum(dim=-1, keepdim=True).sqrt()
    if not bool((length > 0).all()):
        raise ValueError("a direction of length 0 leads nowhere")
    step = torch.as_tensor(strength, dtype=z.dtype, device=z.device).view(-1, 1) * math.sqrt(z.shape[-1])
    return mean + std * ((z - mean) / std + step * direction / length)
