"""The mathematics of semantic codes: DiffAE's stochastic code, PDAE's shifted denoiser, interpolation and editing.

DiffAE (Preechakul et al. 2022) decodes by DDIM under a code z, `samplers.ddim` over falling timesteps, and encodes by
`stochastic_code` over rising ones. PDAE (Zhang et al. 2022) shifts the eps of a pretrained model, which is not trained
further, by a learned gradient G.
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
"""(x_t [B, ...], t [B], condition) to the pretrained model's prediction and the gradient G, which is like x_0."""


def pdae_weight(t: Tensor, schedule: Schedule, gamma: float = 0.1) -> Tensor:
    """Return PDAE's loss weights SNR^gamma / (1 + SNR) at timesteps t [B], small at both ends (Zhang et al. 2022)."""
    snr = schedule.snr(exact(t))
    return snr.pow(gamma) / (1 + snr)


def pdae_coefficient(t: Tensor, schedule: Schedule) -> Tensor:
    """Return the c_t for which eps + c_t G moves the posterior's mean by its variance times G (Zhang et al. 2022).

    c_t = -(a_t / a_{t-1}) s_{t-1}^2 / s_t, which is 0 at t = 0, is the coefficient of training and of ancestral
    sampling. DDIM takes -s_t (`ShiftedDenoiser`); the two differ by design.

    Args:
        t: timesteps [B].
        schedule: variance-preserving.

    Returns:
        float64 [B], see `exact`.
    """
    (a, s), (a_before, s_before) = (schedule.alpha_sigma(exact(t) - back) for back in (0, 1))
    return -(a / a_before) * s_before.square() / s


def pdae_loss(eps_hat: Tensor, gap: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Return the mean squared error of eps_hat + c_t G against eps, not weighted (Zhang et al. 2022).

    Args:
        eps_hat: noise that the pretrained model predicts, [B, ...].
        gap: the learned gradient G, like `eps_hat`.
        eps: true noise, like `eps_hat`.
        t: timesteps [B].
        schedule: variance-preserving.

    Returns:
        float32 [B].
    """
    shifted = eps_hat.float() + expand_like(pdae_coefficient(t, schedule), gap.float()) * gap.float()
    return (shifted - eps.float()).square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class NetworkEstimator:
    """A network as an estimator of the pretrained model's prediction and the gradient G.

    Args:
        network: (x_t [B, C, ...], t [B], condition) to the pretrained model's output and G.
        schedule: noise schedule of the pretrained model.
        prediction_type: what its output stands for.
        learned_range: whether its output has twice the channels, see `NetworkDenoiser`.
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
    """A pretrained model shifted by a learned gradient, eps - s_t G, as in classifier guidance (Zhang et al. 2022).

    Args:
        estimator: gives the model's prediction and G.
        schedule: noise schedule of the model.
        strength: factor of G; 0 is the model itself.
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
    """A denoiser interpolated between two conditions at every step, in x_0 and eps.

    For `ShiftedDenoiser` that is G = (1 - w) G(z_1) + w G(z_2), PDAE's trajectory interpolation; put `Clipped` around
    it.

    Args:
        denoiser: evaluated under both conditions.
        other: the second condition; the first is the one of the call.
        weight: of the second condition, a number or [B].
    """

    denoiser: Denoiser
    other: Any
    weight: float | Tensor

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p, q = self.denoiser(x, t, cond), self.denoiser(x, t, self.other)
        w = expand_like(torch.as_tensor(self.weight, dtype=x.dtype, device=x.device).expand(len(x)), x)
        return p.lerp(q, w)


@torch.no_grad()
def stochastic_code(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """Encode data into DiffAE's stochastic code, by DDIM over rising timesteps (Preechakul et al. 2022).

    `ddim` over the same timesteps falling, and -1, decodes it, with an error of order 1/N: take 250 or more.

    Args:
        denoiser: predicts x_0 and eps.
        x: data [B, ...], taken for x_t at times[0].
        times: rising timesteps, the last one T-1.
        cond: condition, as the denoiser takes it.

    Yields:
        One state for each timestep; the last state's x is eps at the last timestep, and its t is T.
    """
    for state in ddim(denoiser, x, times, cond):
        x = state.x
        yield state
    p = denoiser(x, times_like(x, times[-1]), cond)
    yield State(p.eps, len(denoiser.schedule), p)


def pdae_grid(total: int, steps: int) -> list[int]:
    """Return PDAE's steps + 1 rising timesteps, from 0, whose noise level stands for clean data, to T-1.

    Args:
        total: number of training timesteps T.
        steps: number of sampling steps, 1 to T-1.

    Raises:
        ValueError: `steps` out of range.
    """
    if not 1 <= steps < total:
        raise ValueError(f"cannot walk {total} training times in {steps} of PDAE's steps; expected 1 to {total - 1}")
    stride = (total - 1) / steps
    return [*(int(i * stride) for i in range(steps)), total - 1]


def pdae_encode(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """Encode data [B, ...] by DDIM over the rising timesteps of `pdae_grid` (Zhang et al. 2022).

    Yields:
        One state for each step; the last one is the stochastic code, at T-1.
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
    """Decode by DDIM over the timesteps of `pdae_grid`, backwards (Zhang et al. 2022).

    Args:
        denoiser: `ShiftedDenoiser`, or anything around it.
        x: noise, or a stochastic code, at the last of the timesteps, [B, ...].
        times: rising timesteps of `pdae_grid`.
        cond: condition, as the denoiser takes it.
        stop: share of the steps, the last ones, that use `frozen` (0.3 where codes are drawn from a prior).
        frozen: the pretrained model without the shift, with the same wrappers; needed where `stop` is above 0.

    Yields:
        One state for each step; the one at timestep 0 is the decoded data.

    Raises:
        ValueError: `stop` outside 0..1, or above 0 without `frozen`.
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
    """Interpolate along the great circle from a to b, each sample as one flat vector (Shoemake 1985).

    Where the sine of the angle between them is below 1e-4, the interpolation is linear.

    Args:
        a: start [B, ...].
        b: end, like a.
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
    """Shift codes along a direction of the normalised code space (Preechakul et al. 2022).

    Args:
        z: codes as the encoder gives them, [B, Z].
        direction: [Z] or [B, Z], of any length: a row of a linear classifier's weight.
        strength: length of the shift in units of sqrt(Z), a typical code's length: about -0.5 to 0.5; number or [B].
        mean: mean of each dimension over the training set, [Z].
        std: standard deviation of each dimension over the training set, [Z].

    Raises:
        ValueError: a direction of length 0.
    """
    length = direction.square().sum(dim=-1, keepdim=True).sqrt()
    if not bool((length > 0).all()):
        raise ValueError("a direction of length 0 leads nowhere")
    step = torch.as_tensor(strength, dtype=z.dtype, device=z.device).view(-1, 1) * math.sqrt(z.shape[-1])
    return mean + std * ((z - mean) / std + step * direction / length)
