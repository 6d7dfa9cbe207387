"""Noise schedules: x_t = a_t x_0 + s_t eps, and the grids of times that samplers walk.

One pair of numbers per time covers variance-preserving (DDPM, LDM: a^2 + s^2 = 1), flow (a + s = 1) and
variance-exploding (a = 1) models. Tables are float64 and indexed by integer time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ldm_kit.config import Config


@dataclass(frozen=True, eq=False)
class Schedule:
    """x_t = a_t x_0 + s_t eps for t = 0..T-1; t = -1 is clean data (a = 1, s = 0)."""

    a: Tensor  # [T] float64; preserving: a^2 + s^2 = 1,
    s: Tensor  # [T] float64; flow: a + s = 1; exploding: a = 1

    def __len__(self) -> int:
        return len(self.a)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times [B] (integers, -1 = clean) to a_t and s_t, both [B] float64 on the device of `t`."""
        a, s = self.a.to(t.device), self.s.to(t.device)
        clean, t = t < 0, t.clamp_min(0)
        return torch.where(clean, 1.0, a[t]), torch.where(clean, 0.0, s[t])

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio a_t^2 / s_t^2 at times [B]; infinite where s is 0."""
        a, s = self.at(t)
        return a.square() / s.square()

    def to(self, device: torch.device | str) -> "Schedule":
        """The same tables on another device."""
        return Schedule(self.a.to(device), self.s.to(device))


def from_betas(betas: Tensor) -> Schedule:
    """The variance-preserving schedule of a DDPM with the given betas [T] (Ho et al. 2020, eq. 4)."""
    kept = torch.cumprod(1.0 - betas.double(), dim=0)
    return Schedule(kept.sqrt(), (1.0 - kept).sqrt())


def linear(steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Schedule:
    """Betas linear in t (Ho et al. 2020, section 4)."""
    return from_betas(torch.linspace(start, end, steps, dtype=torch.float64))


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    """Betas linear in their square root, which the LDM code calls "linear" (Rombach et al. 2022)."""
    return from_betas(torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square())


def cosine(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Schedule:
    """Cosine schedule with betas capped at `largest` (Nichol & Dhariwal 2021, eq. 17)."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    kept = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()
    return from_betas((1 - kept[1:] / kept[:-1]).clamp_max(largest))


def flow(steps: int = 1000) -> Schedule:
    """Rectified flow on the grid s_t = t / T, so that index t is the time that diffusers' flow solvers emit."""
    s = torch.arange(steps, dtype=torch.float64) / steps
    return Schedule(1 - s, s)


def zero_terminal(schedule: Schedule) -> Schedule:
    """Shift and scale a_t so that a_{T-1} = 0 and a_0 stays (Lin et al. 2024, algorithm 1).

    Only for variance-preserving schedules, and for models that predict v or x_0.
    """
    a = schedule.a
    a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    return Schedule(a, (1 - a.square()).sqrt())


class ScheduleConfig(Config):
    """Which noise schedule, and over how many training times."""

    kind: Literal["linear", "scaled_linear", "cosine", "flow"] = Field(
        default="scaled_linear",
        description="linear: DDPM; scaled_linear: LDM and SD; cosine: iDDPM; flow: rectified flow",
    )
    steps: int = Field(default=1000, ge=2, description="number of training times T")
    start: float | None = Field(default=None, gt=0, lt=1, description="first beta (linear 1e-4, scaled_linear 0.00085)")
    end: float | None = Field(default=None, gt=0, lt=1, description="last beta (linear 0.02, scaled_linear 0.012)")
    zero_terminal: bool = Field(
        default=False, description="rescale so that the last time is pure noise (v or x0 targets)"
    )

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.kind in ("cosine", "flow") and (self.start or self.end):
            raise ValueError(f"start and end are betas; the {self.kind} schedule has none, leave them out")
        if self.kind == "flow" and self.zero_terminal:
            raise ValueError("zero_terminal is for linear, scaled_linear and cosine; flow already ends in noise")
        return self


def build(config: ScheduleConfig) -> Schedule:
    """The schedule that a config names."""
    ends = {k: v for k, v in (("start", config.start), ("end", config.end)) if v is not None}
    makers: dict[str, Callable[..., Schedule]] = {
        "linear": linear,
        "scaled_linear": scaled_linear,
        "cosine": cosine,
        "flow": flow,
    }
    schedule = makers[config.kind](config.steps, **ends)
    return zero_terminal(schedule) if config.zero_terminal else schedule


def trailing(total: int, steps: int) -> list[int]:
    """Falling times T-1, ..., ending one stride above clean data, then -1 (Lin et al. 2024, table 2)."""
    _refuse(total, steps)
    return [round(total - i * total / steps) - 1 for i in range(steps)] + [-1]


def leading(total: int, steps: int, offset: int = 0) -> list[int]:
    """Falling multiples of T // steps, shifted by `offset` (1 in Stable Diffusion), then -1."""
    _refuse(total, steps)
    return [min(i * (total // steps) + offset, total - 1) for i in reversed(range(steps))] + [-1]


def linspace(total: int, steps: int) -> list[int]:
    """Falling times evenly from T-1 to 0, both ends included, then -1."""
    _refuse(total, steps)
    if steps == 1:
        return [total - 1, -1]
    return [round((total - 1) * i / (steps - 1)) for i in reversed(range(steps))] + [-1]


def _refuse(total: int, steps: int) -> None:
    if not 1 <= steps <= total:
        raise ValueError(f"cannot walk {total} training times in {steps} steps; expected 1 to {total}")
