"""Samplers on a Gaussian are linear in the start and in every step's noise: their law, without drawing a sample."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.samplers import State


def last(states: Iterator[State]) -> Tensor:
    """The picture that a sampler ends in."""
    *_, state = states
    return state.x


def law(sampler: Callable[..., Iterator[State]], denoiser: Any, times: list[int]) -> tuple[float, float]:
    """Exact mean and deviation of what a noisy sampler makes of standard normal noise, for a denoiser linear in x."""
    steps = len(times) - 1
    start = torch.zeros(steps + 2, 1, dtype=torch.float64)
    start[1] = 1  # beside the response to nothing and to the start, one to the noise of each step

    def noise(step, shape):
        impulse = torch.zeros_like(start)
        impulse[step + 2] = 1
        return impulse

    nothing, *responses = last(sampler(denoiser, start, times, noise=noise))[:, 0]
    return float(nothing), float(sum((response - nothing) ** 2 for response in responses)) ** 0.5
