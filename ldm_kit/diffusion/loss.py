"""Losses are pure: time and noise come in, [B] comes out; reduction and weights belong to the caller."""

import torch
from torch import Tensor

from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, from_prediction
from ldm_kit.diffusion.schedule import Schedule


def noised(x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t = a_t x_0 + s_t eps for pictures [B, ...] and times [B]."""
    a, s = schedule.at(t)
    return expand_like(a, x_0) * x_0 + expand_like(s, x_0) * eps


def error(out: Tensor, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule, target: PredictionType) -> Tensor:
    """Mean squared error [B] of a network's output against its target (Ho et al. 2020, eq. 14, for eps)."""
    truth = from_prediction(target, Prediction(x_0, eps), *schedule.at(t))
    return (out.float() - truth.float()).square().flatten(1).mean(1)


def min_snr(t: Tensor, schedule: Schedule, target: PredictionType, gamma: float) -> Tensor:
    """Weights [B] that make every target's loss min(SNR, gamma) times the error of x_0 (Hang et al. 2023, section 3.4).

    The error of x_0 is that of the output times (s/a)^2 for eps, 1 for x_0, s^2 for v and flow.
    """
    a, s = schedule.at(t)
    snr = schedule.snr(t)
    match target:
        case "eps":
            return (gamma / snr).clamp_max(1)
        case "x0":
            return snr.clamp_max(gamma)
        case "v" | "flow":
            return torch.minimum(a.square(), gamma * s.square())
