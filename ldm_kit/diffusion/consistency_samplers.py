"""Sampling from consistency models in one step or a few, as diffusers' LCM and CM schedulers do."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.consistency import SIGMA_MIN, TIMESTEP_SCALING, ConsistencyDenoiser
from ldm_kit.diffusion.denoiser import Denoiser, times_like
from ldm_kit.diffusion.posterior import levels
from ldm_kit.diffusion.samplers import Noise, State


@torch.no_grad()
def consistency(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    noise: Noise,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> Iterator[State]:
    """Sample from a consistency model over falling timesteps (Song et al. 2023, algorithm 1; Luo et al. 2023, 3).

    Each step predicts clean data f(x, t), and adds fresh noise up to the level of the next timestep. diffusers'
    LCMScheduler, and for flow its FlowMatchLCMScheduler, take the same steps.

    Args:
        denoiser: the consistency model's network as a denoiser, perhaps guided or clipped. It must not be a
            `ConsistencyDenoiser` yet: this function wraps it in one.
        x: standard normal noise [B, ...] at timestep times[0].
        times: falling timesteps; -1 is clean data. With T training timesteps, [T - 1, -1] is sampling in one step.
        cond: condition in the form that the denoiser takes.
        noise: function of the step's index and the shape of one sample to standard normal noise.
        timestep_scaling: factor of t in f's coefficients, see `ldm_kit.diffusion.consistency.lcm_scalings`.

    Yields:
        One state for each step.
    """
    function = ConsistencyDenoiser(denoiser, timestep_scaling)
    for step, (now, then) in enumerate(pairwise(levels(denoiser.schedule, times))):
        p = function(x, times_like(x, now.t), cond)
        x = p.x_0
        if then.t >= 0:
            x = then.a * p.x_0 + then.s * noise(step, x.shape[1:]).to(x)
        yield State(x, then.t, p)


@torch.no_grad()
def karras_consistency(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    sigma_min: float = SIGMA_MIN,
    clip: bool = True,
) -> Iterator[Tensor]:
    """Sample from a consistency model over falling noise levels sigma (Song et al. 2023, algorithm 1).

    Each step replaces x by f(x, sigma) + sqrt(sigma_next^2 - sigma_min^2) z, the last one by f(x, sigma). diffusers'
    CMStochasticIterativeScheduler takes the same steps. The noise levels are usually those of `karras_levels`.

    Args:
        function: f(x, sigma), such as a `KarrasConsistency` with its condition bound.
        x: standard normal noise [B, ...], not yet multiplied by sigmas[0].
        sigmas: falling noise levels, each sigma_min or more, one for each step.
        noise: function of the step's index and the shape of one sample to standard normal noise z.
        sigma_min: smallest noise level, at which f is the identity.
        clip: whether f is clipped to [-1, 1], as for pixels.

    Yields:
        The samples after each step; the last ones are clean.
    """
    x = x * sigmas[0]
    for step, (sigma, sigma_next) in enumerate(pairwise([*sigmas, sigma_min])):
        x = function(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device))
        x = x.clamp(-1, 1) if clip else x
        if sigma_next > sigma_min:
            x = x + (sigma_next**2 - sigma_min**2) ** 0.5 * noise(step, x.shape[1:]).to(x)
        yield x
