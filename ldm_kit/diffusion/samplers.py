"""Samplers: generators of states. Progress bars, previews and editing are the caller's `for` loop, not callbacks."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, Gradient, times_like
from ldm_kit.diffusion.posterior import Variance, chain, levels, link
from ldm_kit.diffusion.prediction import Prediction, PredictionType, from_prediction

Noise = Callable[[int, Sequence[int]], Tensor]  # (step, shape of one picture) -> [B, *shape]


class State(NamedTuple):
    """Where a sampler stands: the picture x [B, ...] at time t (-1: clean), and the prediction that led there."""

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
    """Falling times generate, rising ones encode (Song et al. 2021, eq. 12); `eta` 1 is DDPM's small variance.

    With eta 0 it is Euler's method on the probability-flow ODE d(x/a) = eps d(s/a) (the same, eq. 14).
    """
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} adds noise at every step; expected a noise function beside it")
    for step, (now, then) in enumerate(pairwise(levels(denoiser.schedule, times))):
        p = denoiser(x, times_like(x, now.t), cond)
        variance = eta**2 * link(now, then).posterior if eta > 0 else 0.0
        x = then.a * p.x_0 + math.sqrt(max(then.s**2 - variance, 0.0)) * p.eps
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
    variance: Variance = "small",
    gradient: Gradient | None = None,
    at_mean: bool = False,
) -> Iterator[State]:
    """Ancestral sampling (Ho et al. 2020, eq. 7 and algorithm 2) over any falling times, respaced as they are given.

    The step to clean data adds no noise.

    Args:
        denoiser: gives x_0 and, for learned variances, the fraction.
        x: start noise [B, ...].
        times: falling, -1 is clean data.
        cond: the condition, as the denoiser takes it.
        noise: (step, shape of one picture) -> [B, ...].
        variance: which one, see `chain.Link.variance`.
        gradient: shifts the mean by variance times gradient (Dhariwal & Nichol 2021, algorithm 1), also in the last
            step, where the small variance is 0.
        at_mean: evaluate the gradient at the mean and the mean's time, as the paper derives it (section 4.1), and not
            at x_t and t, as its algorithm and code do; nearer to the exact posterior where steps are few.

    Raises:
        ValueError: a learned variance that the denoiser does not predict; guidance of a chain of one step, which has no
            variance but the small one.
    """
    for step, one in enumerate(chain(denoiser.schedule, times)):
        time = times_like(x, one.t)
        p = denoiser(x, time, cond)
        mean = one.mean(x, p.x_0)
        if gradient is not None:
            where = (mean, times_like(x, max(one.t_next, 0))) if at_mean else (x, time)
            mean = mean + one.variance(variance, p.fraction) * gradient(*where)
        x = mean
        if one.t_next >= 0:
            x = mean + one.variance(variance, p.fraction) ** 0.5 * noise(step, x.shape[1:]).to(x)
        yield State(x, one.t_next, p)


@torch.no_grad()
def euler_maruyama(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None, *, noise: Noise
) -> Iterator[State]:
    """Euler and Maruyama's method on the reverse-time SDE dx = (f x + g^2 eps / s) dt + g dW (Song et al. 2021, eq. 6).

    f = d log a / dt and g^2 = ds^2 / dt - 2 f s^2 belong to the forward SDE that has our a and s. For preserving
    schedules that is the VP-SDE, g^2 = beta and f = -beta / 2; for flow, whose t is s, g^2 = 2 s / a and f = -1 / a.
    Over a step g^2 dt is `forward` and -2 f dt is 1 - keep^2: their integrals to first order, which stay finite where
    the schedule starts in pure noise. The step to clean data gives the mean x_0.
    """
    for step, one in enumerate(chain(denoiser.schedule, times)):
        p = denoiser(x, times_like(x, one.t), cond)
        if one.t_next < 0 or one.s == 0:
            x = p.x_0
        else:
            x = x + (1 - one.keep**2) / 2 * x - one.forward / one.s * p.eps
            x = x + math.sqrt(one.forward) * noise(step, x.shape[1:]).to(x)
        yield State(x, one.t_next, p)


@torch.no_grad()
def heun(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """Heun's method (Karras et al. 2022, algorithm 1) on y = x / (a + s) over u = s / (a + s), where dy/du = eps - x_0.

    In these coordinates every schedule is rectified flow and pure noise is a finite u = 1. Two evaluations a step, one
    for the step to clean data; rising times encode.
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
    """What we use of a diffusers scheduler whose timesteps are set."""

    timesteps: Tensor

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The solver's own state as the network's input x_t."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """One step of the solver."""
        ...


@torch.no_grad()
def run_scheduler(
    solver: SchedulerLike,
    denoiser: Denoiser,
    x: Tensor,
    cond: Any = None,
    *,
    target: PredictionType,
    **step_options: Any,
) -> Iterator[State]:
    """Any diffusers scheduler, driven by our denoiser, so that guidance works with all of them.

    Args:
        solver: a scheduler after `set_timesteps`, with integer times, built on the denoiser's schedule.
        denoiser: gives x_0 and eps at the solver's times.
        x: start noise [B, ...], already times the solver's `init_noise_sigma`.
        cond: the condition, as the denoiser takes it.
        target: the kind of output that the solver's `prediction_type` expects.
        step_options: for the solver's `step`, such as `generator`.
    """
    for index, t in enumerate(solver.timesteps):
        seen = solver.scale_model_input(x, t)
        time = times_like(x, round(float(t)))
        p = denoiser(seen, time, cond)
        out = from_prediction(target, p, *denoiser.schedule.at(time))
        x = solver.step(out, t, x, return_dict=False, **step_options)[0]
        last = index + 1 == len(solver.timesteps)
        yield State(x, -1 if last else round(float(solver.timesteps[index + 1])), p)
