"""Losses are pure: time and noise come in, [B] comes out; reduction and weights belong to the caller."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm_kit.config import Config
from ldm_kit.diffusion import randomness
from ldm_kit.diffusion.prediction import Prediction, Target, from_prediction, over
from ldm_kit.diffusion.schedule import Schedule


def noised(x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t = a_t x_0 + s_t eps for pictures [B, ...] and times [B]."""
    a, s = schedule.at(t)
    return over(a, x_0) * x_0 + over(s, x_0) * eps


def error(out: Tensor, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule, target: Target) -> Tensor:
    """Mean squared error [B] of a network's output against its target (Ho et al. 2020, eq. 14, for eps)."""
    truth = from_prediction(target, Prediction(x_0, eps), *schedule.at(t))
    return (out.float() - truth.float()).square().flatten(1).mean(1)


def min_snr(t: Tensor, schedule: Schedule, target: Target, gamma: float) -> Tensor:
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


class TimesConfig(Config):
    """How training times are drawn."""

    density: Literal["uniform", "logit_normal"] = Field(default="uniform", description="density of t / T")
    mean: float = Field(default=0.0, description="logit_normal: mean of logit(t / T); below 0 draws less noise")
    std: float = Field(default=1.0, gt=0, description="logit_normal: deviation of logit(t / T)")
    stratified: bool = Field(default=True, description="one stratum of the density for each place in the global batch")


def draw_times(config: TimesConfig, seed: int, positions: Tensor, global_batch: int, total: int) -> Tensor:
    """Integer training times [B] for sample positions [B], the same for any split of the global batch."""
    u = randomness.uniform(seed, "time", positions)
    if config.stratified:
        u = (positions % global_batch + u) / global_batch
    if config.density == "logit_normal":
        u = torch.sigmoid(config.mean + config.std * math.sqrt(2) * torch.erfinv(2 * u - 1))
    return (u * total).long().clamp(0, total - 1)
