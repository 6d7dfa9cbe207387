"""Exponential moving averages (EMA) of weights, in float32, with a constant or a growing half-life."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_kit.config import Config


class EmaConfig(Config):
    """Settings of the EMA: how the weights of past steps are averaged, and over how many steps."""

    kind: Literal["power", "constant", "none"] = Field(
        default="power", description="power: a fixed share of the run so far; constant: a fixed half-life with warm-up"
    )
    std: float = Field(
        default=0.1, gt=0, lt=0.29, description="power: deviation of averaged steps / steps so far (0.05 to 0.15)"
    )
    decay: float = Field(
        default=0.9999, gt=0, lt=1, description="constant: decay per step; at step n at most (1 + n) / (10 + n)"
    )


@lru_cache
def power_exponent(std: float) -> float:
    """Return the exponent gamma of the power-function EMA whose relative width is `std` in (0, 0.29), by bisection.

    This EMA gives the weights of step i = 1..n a share proportional to i^gamma; `std` is the standard deviation of i
    under these shares, divided by n.

    Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", eq. 127.
    """
    low, high = 0.0, 1e4
    for _ in range(100):
        gamma = (low + high) / 2
        too_wide = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > std**2
        low, high = (gamma, high) if too_wide else (low, gamma)
    return (low + high) / 2


def decay_at(config: EmaConfig, step: int) -> float:
    """Return the decay d in [0, 1) of an EMA after step `step` (1, 2, ...): average <- d average + (1 - d) weight."""
    match config.kind:
        case "none":
            return 0.0
        case "constant":
            return min(config.decay, (1 + step) / (10 + step))
        case "power":
            return (1 - 1 / step) ** (power_exponent(config.std) + 1)


def floating(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point tensors of a module's state dict, parameters and buffers, by name."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


class Ema:
    """EMA of the weights and buffers of several modules; every rank holds and updates the same averages.

    Args:
        config: how past weights are averaged, and over how many steps; with kind none, nothing is averaged or stored.
        modules: the modules to average, by name; the averages start at the modules' present weights.
    """

    def __init__(self, config: EmaConfig, modules: Mapping[str, nn.Module]) -> None:
        self.config, self.modules = config, {} if config.kind == "none" else dict(modules)
        self.averages = {n: {k: v.float().clone() for k, v in floating(m).items()} for n, m in self.modules.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the modules' weights after optimiser step `step` (1, 2, ...)."""
        weight = 1 - decay_at(self.config, step)
        for name, module in self.modules.items():
            current = [value.float() for value in floating(module).values()]
            torch._foreach_lerp_(list(self.averages[name].values()), current, weight)

    def load(self, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy a checkpoint's averages, by module name and then tensor name, into this object's averages."""
        for name, tensors in self.averages.items():
            for key, value in tensors.items():
                value.copy_(averages[name][key])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the modules their averaged weights within this context, and the trained weights again after it."""
        trained = {name: {k: v.clone() for k, v in floating(m).items()} for name, m in self.modules.items()}
        try:
            self._copy_to_modules(self.averages)
            yield
        finally:
            self._copy_to_modules(trained)

    @torch.no_grad()
    def _copy_to_modules(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, module in self.modules.items():
            for key, value in floating(module).items():
                value.copy_(tensors[name][key])
