"""The guidance scale as a network's input: scales drawn in training, and the term that makes the target a guided one.

Model guidance (Tang et al. 2025, "Diffusion Models without Classifier-free Guidance", arXiv 2502.12154), with the scale
as an input as in improved MeanFlow. For the training target v* (eps, x_0, v or flow's velocity) and a scale w, the
target becomes v* + (1 - 1/w) (v_c - v_u). Here v_c is the network's own output under the condition and the scale w, and
v_u its output under the null condition; neither gets a gradient.

The output that minimises the squared error solves v_c = E[v*] + (1 - 1/w) (v_c - v_u), which is
v_c = v_u + w (E[v*] - v_u): classifier-free guidance at the scale w (Ho & Salimans 2022, eq. 6). At a given x_t each of
eps, x_0, v and velocity is an affine function of each other one. The term is a multiple of a difference of two outputs,
in which the constant parts cancel. So the formula holds for every prediction type.
"""

import math

import torch
from torch import Tensor

from ldm_kit.diffusion.prediction import expand_like


def in_interval(t: Tensor, steps: int, interval: tuple[float, float]) -> Tensor:
    """Return whether timesteps lie in an interval of guidance, bool [B] (Kynkaanniemi et al. 2024).

    Args:
        t: timesteps [B].
        steps: number T of training timesteps.
        interval: lower and upper end of t / T, each of which belongs to the interval.
    """
    low, high = interval
    share = t / steps
    return (low <= share) & (share <= high)


def scale_at(scale: float | Tensor, t: Tensor, steps: int, interval: tuple[float, float]) -> Tensor:
    """Return the guidance scales that hold at timesteps t: `scale` in the interval, and 1, no guidance, outside it.

    Args:
        scale: a guidance scale, or one for each sample, [B].
        t: timesteps [B].
        steps: number T of training timesteps.
        interval: lower and upper end of t / T.

    Returns:
        Guidance scales [B].
    """
    return torch.where(in_interval(t, steps, interval), scale, 1.0)


def draw_scale(uniform: Tensor, max_scale: float) -> Tensor:
    """Return guidance scales w = exp(U log w_max) between 1 and w_max, whose logarithms are uniformly distributed.

    Args:
        uniform: random numbers U in [0, 1), [B].
        max_scale: w_max, above 1; 8 in improved MeanFlow.
    """
    return torch.exp(uniform * math.log(max_scale))


def guidance_term(conditional: Tensor, null: Tensor, scale: Tensor) -> Tensor:
    """Return (1 - 1/w) (v_c - v_u), which model guidance adds to the training target; it has no gradient.

    Args:
        conditional: v_c, the network's output under the condition and the scale, [B, ...].
        null: v_u, the network's output under the null condition, in the shape of `conditional`.
        scale: guidance scales w [B], above 0; at 1 the term is 0.

    Returns:
        The term, float32 or better, in the shape of `conditional`.
    """
    difference = conditional.detach() - null.detach()
    difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
    return expand_like(1 - 1 / scale, difference) * difference
