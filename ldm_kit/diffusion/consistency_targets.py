"""Steps along the probability-flow ODE to the point at which the target of a consistency or distillation loss is taken.

Steps are batched: every sample has timesteps of its own. x_t = a_t x_0 + s_t eps, and timestep -1 is clean data.
"""

from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule


def ddim_step(p: Prediction, t_next: Tensor, schedule: Schedule) -> Tensor:
    """Return x at timesteps t_next [B] by a DDIM step: a x_0 + s eps (Song et al. 2021, eq. 12 with eta 0).

    It is Euler's step on the probability-flow ODE. a and s are the schedule's signal and noise level at t_next; x_0 and
    eps are those of the prediction p, [B, ...]. If p holds the true x_0 and eps, the result is the second point of
    consistency training (CT); if p is a teacher's prediction, it is that of consistency distillation (CD).
    """
    a, s = schedule.alpha_sigma(t_next)
    return expand_like(a, p.x_0) * p.x_0 + expand_like(s, p.eps) * p.eps


def heun_step(denoiser: Denoiser, x: Tensor, t: Tensor, t_next: Tensor, cond: Any = None) -> Tensor:
    """Return x at timesteps t_next [B] by Heun's step of a teacher's ODE from x [B, ...] at timesteps t [B].

    For x = a x_0 + s eps the ODE is dy/du = eps - x_0 with y = x / (a + s) and u = s / (a + s), as in `samplers.heun`.
    Steps to clean data (-1) are Euler's.

    Args:
        denoiser: the teacher, which predicts x_0 and eps.
        x: noisy data at timesteps t.
        t: timesteps of x.
        t_next: cleaner timesteps; -1 is clean data.
        cond: condition in the form that the denoiser takes.
    """
    (a, s), (a_next, s_next) = (denoiser.schedule.alpha_sigma(time) for time in (t, t_next))
    p = denoiser(x, t, cond)
    euler = ddim_step(p, t_next, denoiser.schedule)
    q = denoiser(euler, t_next.clamp_min(0), cond)
    width = expand_like(s_next / (a_next + s_next) - s / (a + s), x)
    slope = (p.eps - p.x_0 + q.eps - q.x_0) / 2
    heun = expand_like(a_next + s_next, x) * (x / expand_like(a + s, x) + width * slope)
    return torch.where(expand_like(t_next >= 0, x) > 0, heun, euler)


def guided_prediction(conditional: Prediction, null: Prediction, scale: Tensor) -> Prediction:
    """Return a prediction with classifier-free guidance, where each sample has a guidance scale of its own.

    The guided x_0 and eps are conditional + w (conditional - null) with w = scale - 1 (Luo et al. 2023, eq. 13).

    Args:
        conditional: prediction under the condition, [B, ...].
        null: prediction under the null condition, from the same x_t.
        scale: guidance scales [B] as in diffusers; 1 is no guidance.
    """
    return null.lerp(conditional, expand_like(scale, conditional.x_0))


def progressive_distillation_target(
    teacher: Denoiser, x: Tensor, t: Tensor, t_next: tuple[Tensor, Tensor], cond: Any = None
) -> Tensor:
    """Return the x_0 that a student must predict so that one DDIM step of it equals two DDIM steps of its teacher.

    It is the training target of progressive distillation (Salimans & Ho 2022, algorithm 2).

    Args:
        teacher: predicts x_0 and eps.
        x: noisy data [B, ...] at timesteps t.
        t: timesteps [B].
        t_next: the timesteps [B] after the teacher's first and second step; -1 is clean data.
        cond: condition in the form that the teacher takes.

    Returns:
        Target of the student's x_0, [B, ...].
    """
    schedule = teacher.schedule
    middle = ddim_step(teacher(x, t, cond), t_next[0], schedule)
    end = ddim_step(teacher(middle, t_next[0], cond), t_next[1], schedule)
    (a, s), (a_end, s_end) = (schedule.alpha_sigma(exact(time)) for time in (t, t_next[1]))
    ratio = s_end / s
    return (end - expand_like(ratio, x) * x) / expand_like(a_end - ratio * a, x)
