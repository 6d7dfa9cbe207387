"""Consistency models: functions f(x_t, t) from any point of a probability-flow ODE's trajectory to its clean end x_0.

Two forms of the function are here. `KarrasConsistency` is that of Song et al. 2023, with noise levels sigma of
x = x_0 + sigma eps. `ConsistencyDenoiser` is that of latent consistency models (Luo et al. 2023), on the integer
timesteps of any `Schedule`; it wraps a `Denoiser` and is one itself. Losses are pure: pairs of points on a trajectory
come in, [B] comes out.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, with_output
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule

ConsistencyFunction = Callable[[Tensor, Tensor], Tensor]
"""Function of noisy data [B, ...] and their times or noise levels [B] to clean data [B, ...]; a condition is bound."""

Metric = Callable[[Tensor, Tensor], Tensor]
"""Distance of two batches [B, ...] of one shape, sample by sample: [B]."""

SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 0.002, 80.0, 0.5  # Karras et al. 2022, for pixels in [-1, 1]
TIMESTEP_SCALING = 10.0  # Luo et al. 2023, and diffusers' LCMScheduler


class Scalings(NamedTuple):
    """Coefficients, [B] each, of a consistency function f(x, t) = c_skip x + c_out F(c_in x, t) of a network F."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def cm_scalings(sigma: Tensor, sigma_min: float = SIGMA_MIN, sigma_data: float = SIGMA_DATA) -> Scalings:
    """Return the coefficients of a consistency model (Song et al. 2023, appendix C).

    c_skip = d^2 / ((sigma - sigma_min)^2 + d^2), c_out = d (sigma - sigma_min) / sqrt(sigma^2 + d^2) and
    c_in = 1 / sqrt(sigma^2 + d^2), where d is `sigma_data`. At sigma_min, c_skip is 1 and c_out is 0, so that
    f(x, sigma_min) = x exactly. With sigma_min = 0 they are those of EDM's denoiser (Karras et al. 2022, table 1).

    Args:
        sigma: noise levels [B] of x = x_0 + sigma eps, sigma_min or more.
        sigma_min: smallest noise level, at which f is the identity.
        sigma_data: standard deviation of the data.
    """
    total, gap = (sigma.square() + sigma_data**2).sqrt(), sigma - sigma_min
    return Scalings(sigma_data**2 / (gap.square() + sigma_data**2), gap * sigma_data / total, 1 / total)


def cm_time(sigma: Tensor) -> Tensor:
    """Return the time 250 ln(sigma) [B] that the network of a consistency model takes at noise levels sigma [B]."""
    return 1000 * 0.25 * (sigma + 1e-44).log()


def lcm_scalings(
    t: Tensor, timestep_scaling: float = TIMESTEP_SCALING, sigma_data: float = SIGMA_DATA
) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out, each [B], of a latent consistency model (Luo et al. 2023, section 4.1).

    With u = `timestep_scaling` t and d = `sigma_data`, c_skip = d^2 / (u^2 + d^2) and c_out = u / sqrt(u^2 + d^2).
    f(x, t) = c_skip x + c_out x_0(x, t), where x_0(x, t) is the network's prediction, is exactly x at t = 0. From t = 1
    on it is nearly the predicted x_0 (by default, c_skip < 0.01).

    Args:
        t: timesteps [B], 0 or more.
        timestep_scaling: factor of the timesteps; the larger, the closer is f to the predicted x_0.
        sigma_data: standard deviation of the data in the formula; 0.5 also for latents.
    """
    u = exact(t).double() * timestep_scaling
    return sigma_data**2 / (u.square() + sigma_data**2), u / (u.square() + sigma_data**2).sqrt()


@dataclass(frozen=True, eq=False)
class KarrasConsistency:
    """The consistency function f(x, sigma) = c_skip x + c_out F(c_in x, 250 ln sigma), where x = x_0 + sigma eps.

    Args:
        network: F, a function of scaled data [B, ...], times [B] and condition to an output in the shape of the data.
        sigma_min: smallest noise level, at which f is the identity; 0 makes it EDM's denoiser.
        sigma_data: standard deviation of the data.
    """

    network: Callable[[Tensor, Tensor, Any], Tensor]
    sigma_min: float = SIGMA_MIN
    sigma_data: float = SIGMA_DATA

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        c_skip, c_out, c_in = (expand_like(c, x) for c in cm_scalings(sigma, self.sigma_min, self.sigma_data))
        return c_skip * x + c_out * self.network(c_in * x, cm_time(sigma), cond).to(x.dtype)


@dataclass(frozen=True, eq=False)
class ConsistencyDenoiser:
    """A denoiser whose x_0 is a latent consistency model's f(x, t) = c_skip x + c_out x_0(x, t), exactly x at t = 0.

    x_0(x, t) is the prediction of the wrapped denoiser. On rectified flow's schedule f is the predicted
    x_0 = x - s u itself (u: velocity, s: noise level), which is x where s = 0 without any scaling.

    Args:
        denoiser: the wrapped denoiser. Clipping of x_0 and guidance are to be applied to it, not to the result.
        timestep_scaling: factor of t in c_skip and c_out, see `lcm_scalings`.
    """

    denoiser: Denoiser
    timestep_scaling: float = TIMESTEP_SCALING

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        if self.schedule.is_flow:
            return p
        c_skip, c_out = (expand_like(c, x) for c in lcm_scalings(t, self.timestep_scaling))
        a, s = self.schedule.alpha_sigma(t)
        return with_output(p, c_skip * x + c_out * p.x_0, x, a, s, prediction_type="x0")


def consistency_function(denoiser: Denoiser, cond: Any = None) -> ConsistencyFunction:
    """Return a consistency function f(x, t) for a fixed condition: the x_0 that a denoiser predicts, and x at t = -1.

    Timestep -1 is clean data.

    Args:
        denoiser: predicts x_0; for a latent consistency model a `ConsistencyDenoiser`.
        cond: condition in the form that the denoiser takes.
    """

    def function(x: Tensor, t: Tensor) -> Tensor:
        x_0 = denoiser(x, t.clamp_min(0), cond).x_0  # at every sample, so that all draw the same dropout masks
        return torch.where(expand_like(t >= 0, x) > 0, x_0, x)

    return function


class Pair(NamedTuple):
    """Two points on each of B trajectories of the probability-flow ODE: x at time t, x_next at a cleaner t_next."""

    x: Tensor  # noisy data [B, ...] at t
    t: Tensor  # timesteps or noise levels [B]
    x_next: Tensor  # noisy data [B, ...] at t_next
    t_next: Tensor  # cleaner timesteps (-1 is clean data) or noise levels [B]


@contextmanager
def repeated_random_state(device: torch.device) -> Generator[None]:
    """Restore the random state of the CPU and of `device` when the context ends.

    Code after the context then draws the same random numbers (dropout masks) as code within it.
    """
    cpu, gpu = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)


def consistency_loss(student: ConsistencyFunction, target: ConsistencyFunction, pair: Pair, metric: Metric) -> Tensor:
    """Return the distance between student(x, t) and target(x_next, t_next) (Song et al. 2023, eq. 7 and 10).

    Both are consistency functions. The loss is that of consistency distillation (CD) if x_next is a step of a teacher's
    ODE from x, and that of consistency training (CT) if x and x_next have the same x_0 and eps. The target is computed
    without gradients, and with the dropout masks of the student (Song & Dhariwal 2024, section 3.2).

    Args:
        student: consistency function of the network that is trained.
        target: consistency function of the target network (an average of the student), or of the student itself.
        pair: x at times t, and x_next at cleaner times t_next.
        metric: distance of two batches [B, ...] as a function to [B], such as `pseudo_huber`.

    Returns:
        Distance of each sample, [B], in float32 or better, not weighted by noise level.
    """
    with torch.no_grad(), repeated_random_state(pair.x.device):
        goal = target(pair.x_next, pair.t_next)
    return metric(_at_least_float32(student(pair.x, pair.t)), _at_least_float32(goal))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean absolute difference between each sample of x and of y [B, ...], [B]."""
    return (x - y).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared difference between each sample of x and of y [B, ...], [B]."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor, c: float | None = None) -> Tensor:
    """Return the pseudo-Huber distance sqrt(|x - y|^2 + c^2) - c of whole samples (Song & Dhariwal 2024, section 3.3).

    Args:
        x: samples of D numbers each, [B, ...].
        y: samples in the shape of x.
        c: distance at which the metric turns from quadratic to linear, above 0; None: the paper's 0.00054 sqrt(D).

    Returns:
        Distances [B].
    """
    squared = (x - y).square().flatten(1)
    c = 0.00054 * math.sqrt(squared.shape[1]) if c is None else c
    if not c > 0:
        raise ValueError(f"the pseudo-Huber metric needs a c above 0, got {c}")
    total = squared.sum(1)
    return total / ((total + c * c).sqrt() + c)  # the same as above, and exactly 0 for equal samples
