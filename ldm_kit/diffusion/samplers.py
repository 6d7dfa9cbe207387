"""Samplers: generators of states. Progress bars, previews and editing are the caller's `for` loop, not callbacks."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, times_like
from ldm_kit.diffusion.prediction import Prediction, Target, from_prediction, over

Noise = Callable[[int, Sequence[int]], Tensor]  # (step, shape of one picture) -> [B, *shape]


class State(NamedTuple):
    """Where a sampler stands: the picture x [B, ...] at time t (-1: clean), and the prediction that led there."""

    x: Tensor
    t: int
    prediction: Prediction


def _levels(denoiser: Denoiser, x: Tensor, *times: int) -> list[Tensor]:
    """a and s at each of the times, alternating, as tensors that multiply x."""
    pairs = (denoiser.schedule.at(torch.tensor([t], device=x.device)) for t in times)
    return [over(c, x) for pair in pairs for c in pair]


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
    """Falling times generate, rising ones encode (Song et al. 2021, eq. 12); `eta` 1 is DDPM's small variance."""
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} adds noise at every step; expected a noise function beside it")
    for step, (t, t_next) in enumerate(pairwise(times)):
        p = denoiser(x, times_like(x, t), cond)
        a_t, s_t, a, s = _levels(denoiser, x, t, t_next)
        if eta == 0 or noise is None:
            x = a * p.x_0 + s * p.eps
        else:
            sigma = eta * _bridge(a_t, s_t, a, s)[0].sqrt()
            fresh = noise(step, x.shape[1:]).to(x)
            x = a * p.x_0 + (s.square() - sigma.square()).clamp_min(0).sqrt() * p.eps + sigma * fresh
        yield State(x, t_next, p)


@torch.no_grad()
def ddpm(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None, *, noise: Noise, large: bool = False
) -> Iterator[State]:
    """Ancestral sampling (Ho et al. 2020, eq. 7 and algorithm 2) over any falling times, respaced as they are given.

    `large` takes beta, else the posterior's variance; the step to clean data adds no noise.
    """
    for step, (t, t_next) in enumerate(pairwise(times)):
        p = denoiser(x, times_like(x, t), cond)
        a_t, s_t, a, s = _levels(denoiser, x, t, t_next)
        small, forward, keep = _bridge(a_t, s_t, a, s)
        if t_next < 0:
            x = p.x_0  # the mean's limit, which would be 0 / 0 at flow's s_0 = 0
        else:
            mean = keep * (s / s_t).square() * x + a * forward / s_t.square() * p.x_0
            x = mean + (forward if large else small).sqrt() * noise(step, x.shape[1:]).to(x)
        yield State(x, t_next, p)


@torch.no_grad()
def heun(denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: Any = None) -> Iterator[State]:
    """Heun's method (Karras et al. 2022, algorithm 1) on y = x / (a + s) over u = s / (a + s), where dy/du = eps - x_0.

    In these coordinates every schedule is rectified flow and pure noise is a finite u = 1. Two evaluations a step, one
    for the step to clean data; rising times encode.
    """
    for t, t_next in pairwise(times):
        p = denoiser(x, times_like(x, t), cond)
        a_t, s_t, a, s = _levels(denoiser, x, t, t_next)
        y, slope, step = x / (a_t + s_t), p.eps - p.x_0, s / (a + s) - s_t / (a_t + s_t)
        x = (a + s) * (y + step * slope)
        if t_next >= 0:
            q = denoiser(x, times_like(x, t_next), cond)
            x = (a + s) * (y + step * (slope + q.eps - q.x_0) / 2)
        yield State(x, t_next, p)


def _bridge(a_t: Tensor, s_t: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of q(x_next | x_t, x_0) and q(x_t | x_next), and the latter's gain (Kingma et al. 2021, appendix A)."""
    keep = a_t / a
    forward = (s_t.square() - (keep * s).square()).clamp_min(0)
    posterior = torch.where(s_t > 0, forward * (s / s_t).square(), 0.0)  # flow has s_0 = 0
    return posterior, forward, keep


class Solver(Protocol):
    """What we use of a diffusers scheduler whose timesteps are set."""

    timesteps: Tensor

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The solver's own state as the network's input x_t."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """One step of the solver."""
        ...


@torch.no_grad()
def drive(
    solver: Solver, denoiser: Denoiser, x: Tensor, cond: Any = None, *, target: Target, **step_options: Any
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
        time = times_like(x, int(t))
        p = denoiser(seen, time, cond)
        out = from_prediction(target, p, *denoiser.schedule.at(time))
        x = solver.step(out, t, x, return_dict=False, **step_options)[0]
        last = index + 1 == len(solver.timesteps)
        yield State(x, -1 if last else int(solver.timesteps[index + 1]), p)
