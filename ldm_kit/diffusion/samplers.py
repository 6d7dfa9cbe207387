"""Samplers as generators, which yield a state after each step.

There are no callbacks: progress bars, previews and editing are code in the caller's `for` loop over the states.
"""

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
"""Function of the sampling step's index and the shape of one sample to standard normal noise [B, *shape]."""


class State(NamedTuple):
    """The state of a sampler after a step.

    Args:
        x: the samples x_t after the step, [B, ...].
        t: timestep of x; -1 is clean data.
        prediction: what the denoiser predicted in this step, from the samples before the step.
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
    """Sample by DDIM (Song et al. 2021, eq. 12) over falling timesteps; encode data to noise over rising timesteps.

    With eta 0, DDIM is Euler's method on the probability-flow ODE d(x/a) = eps d(s/a) (eq. 14 of the paper), where a
    and s are the levels of signal and noise, x_t = a_t x_0 + s_t eps.

    Args:
        denoiser: predicts x_0 and eps.
        x: samples at timestep times[0], [B, ...]: standard normal noise to sample from, or data to encode.
        times: timesteps, falling to sample (-1 is clean data) or rising to encode.
        cond: condition in the form that the denoiser takes.
        eta: standard deviation of the noise added at each step, relative to DDPM's: 0 is deterministic, 1 is DDPM with
            the small variance.
        noise: function of the step's index and the shape of one sample to standard normal noise; needed if eta > 0.

    Yields:
        One state for each step.

    Raises:
        ValueError: `eta` is above 0 but `noise` is None.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} adds noise at every step; expected a noise function beside it")
    variances = [eta**2 * one.variance for one in chain(denoiser.schedule, times)] if eta > 0 else [0.0] * len(times)
    for step, (now, then) in enumerate(pairwise(levels(denoiser.schedule, times))):
        p = denoiser(x, times_like(x, now.t), cond)
        variance = variances[step]  # for eta 1 from pure noise it is exactly s * s: the root below is then exactly 0
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
    """Sample by DDPM's ancestral sampling over any falling timesteps (Ho et al. 2020, eq. 7 and algorithm 2).

    The step to clean data adds no noise.

    Args:
        denoiser: predicts x_0 and, for a learned variance, `Prediction.fraction`.
        x: standard normal noise [B, ...] at timestep times[0].
        times: falling timesteps; -1 is clean data.
        cond: condition in the form that the denoiser takes.
        noise: function of the step's index and the shape of one sample to standard normal noise.
        variance: variance of the reverse step: small (the posterior's), large (beta), learned_range, or auto (learned
            if the denoiser predicts it, else small).
        gradient: for classifier guidance; shifts the mean of each step, the last one too, by the step's variance times
            this gradient (Dhariwal & Nichol 2021, algorithm 1). The small variance of the last step is 0: no shift.

    Yields:
        One state for each step.

    Raises:
        ValueError: `variance` is learned_range but the denoiser predicts no variance; or `gradient` is given with a
            variance other than small, although the only step leads to clean data, where just the small one is defined.
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

    For x_t = a_t x_0 + s_t eps, the SDE is dx = (f x + g^2 eps / s) dt + g dW. The drift and diffusion coefficients of
    the forward SDE are f = d log a / dt and g^2 = ds^2 / dt - 2 f s^2: for variance-preserving schedules g^2 = beta and
    f = -beta / 2 (the VP-SDE); for flow, with t = s, g^2 = 2 s / a and f = -1 / a. For the integrals of g^2 and of -2 f
    over a step, the method takes `Posterior.beta` and 1 - `Posterior.alpha_ratio`^2. These agree with the integrals to
    first order in the step, and are finite even from pure noise. The step to clean data returns the predicted x_0.

    Args:
        denoiser: predicts x_0 and eps.
        x: standard normal noise [B, ...] at timestep times[0].
        times: falling timesteps; -1 is clean data.
        cond: condition in the form that the denoiser takes.
        noise: function of the step's index and the shape of one sample to standard normal noise.

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
    """Sample by Heun's method (Karras et al. 2022, algorithm 1) over falling timesteps; encode over rising timesteps.

    Heun's method solves the probability-flow ODE of x_t = a_t x_0 + s_t eps in the coordinates y = x / (a + s) and
    u = s / (a + s). There the ODE is dy/du = eps - x_0: every schedule becomes rectified flow, with pure noise at
    u = 1. A step evaluates the denoiser twice, the step to clean data once.

    Args:
        denoiser: predicts x_0 and eps.
        x: samples at timestep times[0], [B, ...]: standard normal noise to sample from, or data to encode.
        times: timesteps, falling to sample (-1 is clean data) or rising to encode.
        cond: condition in the form that the denoiser takes.

    Yields:
        One state for each step; its `prediction` is that of the step's first evaluation.
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
    """Protocol of what `run_scheduler` uses of a diffusers scheduler whose `set_timesteps` was called before."""

    timesteps: Tensor  # timesteps that `set_timesteps` chose, in the order of the calls of `step`

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Return the network's input x_t at a timestep from the scheduler's sample, which may be a multiple of x_t."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """Return the next sample, from the network's output `model_output` for `sample` at `timestep`.

        The next sample is the field `prev_sample` of an object or, with `return_dict=False` among `kwargs`, the first
        item of a tuple.
        """
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
    """Sample by a diffusers scheduler from a `Denoiser`, which may contain guidance.

    Args:
        scheduler: scheduler with the denoiser's noise schedule, after `set_timesteps`, with integer timesteps.
        denoiser: predicts x_0 and eps.
        x: standard normal noise [B, ...], already multiplied by the scheduler's `init_noise_sigma`.
        cond: condition in the form that the denoiser takes.
        prediction_type: the prediction type that the scheduler is configured for: eps, x_0, v or flow's velocity.
        step_options: further keyword arguments of the scheduler's `step`, such as `generator`.

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
