"""Samplers: generators of states. Progress bars, previews and editing are the caller's `for` loop, not callbacks."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, Gradient, times_like
from ldm_kit.diffusion.posterior import VarianceType, chain, levels
from ldm_kit.diffusion.prediction import Prediction, PredictionType, from_prediction

Noise = Callable[[int, Sequence[int]], Tensor]
"""(sampling step, shape of one sample) to standard normal noise [B, *shape]."""


class State(NamedTuple):
    """The state of a sampler after a step.

    Args:
        x: the sample x_t, [B, ...].
        t: its timestep; -1 is clean data.
        prediction: what the denoiser predicted in the step that led here.
    """

    x: Tensor
    t: int
    prediction: Prediction


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
) -> Iterator[State]:
    """Sample by DDIM (Song et al. 2021, eq. 12); over rising timesteps, encode.

    With eta 0 it is Euler's method on the probability-flow ODE d(x/a) = eps d(s/a) (the same, eq. 14).

    Args:
        denoiser: predicts x_0 and eps.
        x: at times[0], [B, ...]: standard normal noise, or data to encode.
        times: falling timesteps, -1 is clean data; or rising ones.
        cond: condition, as the denoiser takes it.
        eta: share of DDPM's noise; 1 is DDPM with the small variance.
        noise: what is added at each step where eta > 0.

    Yields:
        One state for each step.

    Raises:
        ValueError: eta > 0 without `noise`.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} adds noise at every step; expected a noise function beside it")
    variances = [eta**2 * one.variance for one in chain(denoiser.schedule, times)] if eta > 0 else [0.0] * len(times)
    for step, (now, then) in enumerate(pairwise(levels(denoiser.schedule, times))):
        p = denoiser(x, times_like(x, now.t), cond)
        variance = variances[step]  # eta 1 from pure noise: exactly s * s, leaving no root of a rounding error
        x = then.a * p.x_0 + math.sqrt(max(then.s * then.s - variance, 0.0)) * p.eps
        if noise is not None and variance > 0:
            x = x + math.sqrt(variance) * noise(step, x.shape[1:]).to(x)
        yield State(x, then.t, p)


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    noise: Noise,
    variance: VarianceType | Literal["auto"] = "small",
    gradient: Gradient | None = None,
) -> Iterator[State]:
    """Sample by ancestral sampling (Ho et al. 2020, eq. 7 and algorithm 2), respaced to the given timesteps.

    The step to clean data adds no noise.

    Args:
        denoiser: predicts x_0 and, for a learned variance, its fraction.
        x: standard normal noise [B, ...].
        times: falling timesteps, -1 is clean data.
        cond: condition, as the denoiser takes it.
        noise: what is added at each step.
        variance: of the reverse step, see `Posterior.reverse_variance`.
        gradient: shifts the mean by variance times gradient (Dhariwal & Nichol 2021, algorithm 1), also in the last
            step, where the small variance is 0.

    Yields:
        One state for each step.

    Raises:
        ValueError: a learned variance that the denoiser does not predict; a gradient in a chain of one step, which has
            no variance but the small one.
    """
    for step, one in enumerate(chain(denoiser.schedule, times)):
        time = times_like(x, one.t)
        p = denoiser(x, time, cond)
        mean = one.mean(x, p.x_0)
        if gradient is not None:
            mean = mean + one.reverse_variance(variance, p.fraction) * gradient(x, time)
        x = mean
        if one.t_next >= 0:
            x = mean + one.reverse_variance(variance, p.fraction) ** 0.5 * noise(step, x.shape[1:]).to(x)
        yield State(x, one.t_next, p)


@torch.no_grad()
def euler_maruyama(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None, *, noise: Noise
) -> Iterator[State]:
    """Sample by the Euler-Maruyama method on the reverse-time SDE (Song et al. 2021, "Score-based", eq. 6).

    The SDE is dx = (f x + g^2 eps / s) dt + g dW. f = d log a / dt and g^2 = ds^2 / dt - 2 f s^2 belong to the forward
    SDE with the schedule's a and s: for variance-preserving schedules the VP-SDE, g^2 = beta and f = -beta / 2; for
    flow, whose t is s, g^2 = 2 s / a and f = -1 / a. Over a step, g^2 dt is taken as `Posterior.beta` and -2 f dt as
    1 - alpha_ratio^2: their integrals to first order, which are finite even where the schedule starts in pure noise.
    The step to clean data gives the mean x_0.

    Args:
        denoiser: predicts x_0 and eps.
        x: standard normal noise [B, ...].
        times: falling timesteps, -1 is clean data.
        cond: condition, as the denoiser takes it.
        noise: what is added at each step.

    Yields:
        One state for each step.
    """
    schedule = denoiser.schedule
    for step, (one, now) in enumerate(zip(chain(schedule, times), levels(schedule, times[:-1]), strict=True)):
        p = denoiser(x, times_like(x, one.t), cond)
        if one.t_next < 0 or now.s == 0:
            x = p.x_0
        else:
            x = x + (1 - one.alpha_ratio**2) / 2 * x - one.beta / now.s * p.eps
            x = x + math.sqrt(one.beta) * noise(step, x.shape[1:]).to(x)
        yield State(x, one.t_next, p)


@torch.no_grad()
def heun(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """Sample by Heun's method (Karras et al. 2022, algorithm 1); over rising timesteps, encode.

    The ODE is dy/du = eps - x_0 for y = x / (a + s) over u = s / (a + s): in these coordinates every schedule is
    rectified flow and pure noise is at a finite u = 1. There are two evaluations a step, and one in the step to clean
    data.

    Args:
        denoiser: predicts x_0 and eps.
        x: at times[0], [B, ...]: standard normal noise, or data to encode.
        times: falling timesteps, -1 is clean data; or rising ones.
        cond: condition, as the denoiser takes it.

    Yields:
        One state for each step, with the prediction of its first evaluation.
    """
    for (t, a_t, s_t), (t_next, a, s) in pairwise(levels(denoiser.schedule, times)):
        p = denoiser(x, times_like(x, t), cond)
        y, slope, step = x / (a_t + s_t), p.eps - p.x_0, s / (a + s) - s_t / (a_t + s_t)
        x = (a + s) * (y + step * slope)
        if t_next >= 0:
            q = denoiser(x, times_like(x, t_next), cond)
            x = (a + s) * (y + step * (slope + q.eps - q.x_0) / 2)
        yield State(x, t_next, p)


class SchedulerLike(Protocol):
    """The part of a diffusers scheduler that `run_scheduler` uses; its timesteps are set."""

    timesteps: Tensor

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Return the network's input x_t for the scheduler's own state."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """Take one step."""
        ...


@torch.no_grad()
def run_scheduler(
    scheduler: SchedulerLike,
    denoiser: Denoiser,
    x: Tensor,
    cond: Any = None,
    *,
    prediction_type: PredictionType,
    **step_options: Any,
) -> Iterator[State]:
    """Sample by a diffusers scheduler with our denoiser, so that guidance works with all of them.

    Args:
        scheduler: after `set_timesteps`, with integer timesteps, built on the denoiser's schedule.
        denoiser: predicts x_0 and eps.
        x: standard normal noise [B, ...], already times the scheduler's `init_noise_sigma`.
        cond: condition, as the denoiser takes it.
        prediction_type: the output that the scheduler expects.
        step_options: for the scheduler's `step`, such as `generator`.

    Yields:
        One state for each of the scheduler's timesteps.
    """
    for index, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        time = times_like(x, round(float(t)))
        p = denoiser(scaled, time, cond)
        out = from_prediction(prediction_type, p, *denoiser.schedule.alpha_sigma(time))
        x = scheduler.step(out, t, x, return_dict=False, **step_options)[0]
        last = index + 1 == len(scheduler.timesteps)
        yield State(x, -1 if last else round(float(scheduler.timesteps[index + 1])), p)
