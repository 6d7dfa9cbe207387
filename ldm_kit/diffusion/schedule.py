"""Noise schedules: x_t = a_t x_0 + s_t eps, and the grids of times that samplers walk.

One pair of numbers per time covers variance-preserving (DDPM, LDM: a^2 + s^2 = 1), flow (a + s = 1) and
variance-exploding (a = 1) models. Tables are float64 and indexed by integer time.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Literal, get_args

import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor

from ldm_kit.config import Config

Spacing = Literal["trailing", "leading", "linspace"]
CONSTANT = 0.008  # the beta of DiffAE's latent prior (Preechakul et al. 2022)
_RESPACING = re.compile(r"ddim[0-9]+|[0-9]+(,[0-9]+)*")


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


def constant(steps: int = 1000, start: float = CONSTANT) -> Schedule:
    """The same beta at every time."""
    return from_betas(torch.full((steps,), start, dtype=torch.float64))


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

    kind: Literal["linear", "scaled_linear", "cosine", "flow", "constant", "given"] = Field(
        default="scaled_linear",
        description="linear: DDPM; scaled_linear: LDM and SD; cosine: iDDPM; flow: rectified flow; "
        "constant: one beta for all times; given: the list in betas",
    )
    num_train_timesteps: int = Field(
        validation_alias=AliasChoices("num_train_timesteps", "steps"),
        default=1000,
        ge=2,
        description="number of training times T",
    )
    start: float | None = Field(
        default=None, gt=0, lt=1, description="first beta (linear 1e-4, scaled_linear 0.00085), or the constant (0.008)"
    )
    end: float | None = Field(default=None, gt=0, lt=1, description="last beta (linear 0.02, scaled_linear 0.012)")
    betas: tuple[float, ...] | None = Field(default=None, description="given: every beta, in (0, 1]; 1 only the last")
    scale_ends: bool = Field(
        default=False,
        description="linear, scaled_linear: multiply both ends by 1000 / T as guided-diffusion does, so that another T "
        "ends in as much noise; false: the ends are taken as they are for any T, as diffusers does",
    )
    zero_terminal: bool = Field(
        default=False, description="rescale so that the last time is pure noise (v or x0 targets)"
    )

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        ends = self.kind in ("linear", "scaled_linear")
        if not ends and (self.end or (self.start and self.kind != "constant")):
            raise ValueError(f"start and end are betas; the {self.kind} schedule has none such, leave them out")
        if self.scale_ends and not ends:
            raise ValueError(f"scale_ends is for linear and scaled_linear, which have two ends, got {self.kind}")
        if ends and max(self.ends()) >= 1:
            raise ValueError(
                f"scale_ends makes betas {self.ends()} of 1000 / {self.num_train_timesteps}; expected below 1"
            )
        if (self.kind == "given") != (self.betas is not None):
            raise ValueError(f"betas are for kind given, and kind given needs them; got kind {self.kind}")
        if self.betas is not None:
            _refuse_betas(self.betas, self.num_train_timesteps)
        if self.kind == "flow" and self.zero_terminal:
            raise ValueError("zero_terminal is for schedules made of betas; flow already ends in noise")
        return self

    def check_target(self, target: str) -> None:
        """Check that a network can predict `target` at every time.

        Raises:
            ValueError: target eps, and the last time is pure noise, where x_0 cannot be computed from eps (Lin et al.
                2024, section 3.2).
        """
        pure_noise = self.zero_terminal or (self.betas is not None and self.betas[-1] == 1)
        if target == "eps" and pure_noise:
            raise ValueError("prediction_type 'eps' is undefined where the schedule ends in pure noise; take v or x0")

    def ends(self) -> tuple[float, float]:
        """First and last beta of the linear and scaled_linear schedules, scaled where that is wished."""
        first, last = (1e-4, 2e-2) if self.kind == "linear" else (0.00085, 0.012)
        by = 1000 / self.num_train_timesteps if self.scale_ends else 1.0
        return (self.start or first) * by, (self.end or last) * by


def build(config: ScheduleConfig) -> Schedule:
    """The schedule that a config names."""
    match config.kind:
        case "linear":
            schedule = linear(config.num_train_timesteps, *config.ends())
        case "scaled_linear":
            schedule = scaled_linear(config.num_train_timesteps, *config.ends())
        case "cosine":
            schedule = cosine(config.num_train_timesteps)
        case "flow":
            schedule = flow(config.num_train_timesteps)
        case "constant":
            schedule = constant(config.num_train_timesteps, config.start or CONSTANT)
        case "given":
            schedule = from_betas(torch.tensor(config.betas, dtype=torch.float64))
    return zero_terminal(schedule) if config.zero_terminal else schedule


def _refuse_betas(betas: tuple[float, ...], steps: int) -> None:
    if len(betas) != steps:
        raise ValueError(f"betas lists {len(betas)} numbers for {steps} training times; expected steps {len(betas)}")
    if not (all(0 < beta < 1 for beta in betas[:-1]) and 0 < betas[-1] <= 1):
        raise ValueError("betas holds a number outside (0, 1), or a 1 before the last; after beta = 1 nothing is left")


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


def timesteps(total: int, steps: int, spacing: str = "trailing") -> list[int]:
    """Falling times of the named spacing, then -1: trailing, leading or linspace.

    Raises:
        ValueError: another spacing, or steps outside 1 to total.
    """
    match spacing:
        case "trailing":
            return trailing(total, steps)
        case "leading":
            return leading(total, steps)
        case "linspace":
            return linspace(total, steps)
        case _:
            known = ", ".join(get_args(Spacing))
            raise ValueError(
                f"unknown spacing {spacing!r}; expected {known}, ddimN, or sections such as 90,60,60,20,20"
            )


def respacing_sections(total: int, spec: str) -> list[int]:
    """Falling times of guided-diffusion's respacing, then -1.

    "ddimN": every i-th time from 0 on, for the smallest stride i that gives N of them. "n1,n2,...": the training times
    in as many equal sections, those of least noise first, each giving n times from its first to its last.

    Raises:
        ValueError: no integer stride gives N, a section has fewer times than it should give, or the spec is neither.
    """
    if _RESPACING.fullmatch(spec) is None:
        raise ValueError(f"cannot read the respacing {spec!r}; expected ddimN, or sections such as 90,60,60,20,20")
    if spec.startswith("ddim"):
        return [*reversed(_strided(total, int(spec[4:]))), -1]
    counts = [int(count) for count in spec.split(",")]
    size, longer = divmod(total, len(counts))
    times: list[int] = []
    for i, count in enumerate(counts):
        start, length = i * size + min(i, longer), size + (i < longer)
        if not 1 <= count <= length:
            raise ValueError(
                f"section {i + 1} of {spec} has {length} of {total} training times and cannot give {count}"
            )
        stride = (length - 1) / max(count - 1, 1)
        times += [start + round(offset) for offset in accumulate(repeat(stride, count - 1), initial=0.0)]
    return [*reversed(times), -1]


def _strided(total: int, steps: int) -> range:
    strides = {len(range(0, total, stride)): stride for stride in range(total - 1, 0, -1)}
    if steps not in strides:
        near = [max((n for n in strides if n < steps), default=0), min((n for n in strides if n > steps), default=0)]
        names = " and ".join(f"ddim{n}" for n in near if n)
        raise ValueError(f"no integer stride takes {steps} of {total} training times; the nearest that exist: {names}")
    return range(0, total, strides[steps])


def respaced_timesteps(total: int, steps: int, spacing: str) -> list[int]:
    """Falling times, then -1: of `respacing_sections` where the spacing is a respacing, which decides the steps, or of `timesteps`."""
    return (
        timesteps(total, steps, spacing)
        if _RESPACING.fullmatch(spacing) is None
        else respacing_sections(total, spacing)
    )


def respaced_betas(schedule: Schedule, times: Sequence[int]) -> Tensor:
    """Betas 1 - A_i / A_{i-1} of the chain over falling times that end in -1, rising as in a table, float64 [N].

    `from_betas` of them is the variance-preserving schedule at these times.
    """
    kept = schedule.at(torch.tensor(times))[0].square().flip(0)
    return 1 - kept[1:] / kept[:-1]


def _refuse(total: int, steps: int) -> None:
    if not 1 <= steps <= total:
        raise ValueError(f"cannot walk {total} training times in {steps} steps; expected 1 to {total}")
