"""Exponential moving averages of weights, in float32, with a length that suits the run's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_kit.config import Config


class EmaConfig(Config):
    """How long the average remembers."""

    kind: Literal["power", "constant", "none"] = Field(
        default="power", description="power: a fixed share of the run so far; constant: a fixed half-life with warm-up"
    )
    std: float = Field(
        default=0.1, gt=0, lt=0.29, description="power: relative deviation of the profile (0.05 to 0.15)"
    )
    decay: float = Field(
        default=0.9999, gt=0, lt=1, description="constant: decay per step, warmed up as (1 + n) / (10 + n)"
    )


@lru_cache
def power_exponent(std: float) -> float:
    """gamma of a power-function profile with relative deviation `std` (Karras et al. 2024, eq. 127): bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        gamma = (low + high) / 2
        wide = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > std**2
        low, high = (gamma, high) if wide else (low, gamma)
    return (low + high) / 2


def decay_at(config: EmaConfig, step: int) -> float:
    """Decay of the update after optimiser step `step` (1, 2, ...); 0 copies the weights."""
    match config.kind:
        case "none":
            return 0.0
        case "constant":
            return min(config.decay, (1 + step) / (10 + step))
        case "power":
            return (1 - 1 / step) ** (power_exponent(config.std) + 1)


def floating(module: nn.Module) -> dict[str, Tensor]:
    """All floating tensors of a module's state, parameters and buffers, by name."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


class Ema:
    """The averages of several modules, by part name. Every process holds and updates the same."""

    def __init__(self, config: EmaConfig, parts: Mapping[str, nn.Module]) -> None:
        self.config, self.parts = config, dict(parts)
        self.averages = {part: {k: v.float().clone() for k, v in floating(m).items()} for part, m in self.parts.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimiser step `step` (1, 2, ...) in."""
        take = 1 - decay_at(self.config, step)
        for part, module in self.parts.items():
            weights = [v.float() for v in floating(module).values()]
            torch._foreach_lerp_(list(self.averages[part].values()), weights, take)

    def load(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back averages, by part and name, as a checkpoint holds them."""
        for part, average in self.averages.items():
            for name, value in average.items():
                value.copy_(states[part][name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the modules carry the averages; the training weights come back whatever happens."""
        kept = {part: {k: v.clone() for k, v in floating(m).items()} for part, m in self.parts.items()}
        try:
            self._show(self.averages)
            yield
        finally:
            self._show(kept)

    @torch.no_grad()
    def _show(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        for part, module in self.parts.items():
            for name, value in floating(module).items():
                value.copy_(states[part][name])
