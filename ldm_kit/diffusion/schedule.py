"""Noise schedules: the signal level a_t and noise level s_t of x_t = a_t x_0 + s_t eps at every timestep.

These two numbers per timestep describe variance-preserving schedules (DDPM, LDM: a^2 + s^2 = 1), rectified flow
(a + s = 1) and variance-exploding schedules (a = 1). In the notation of Ho et al. 2020, a_t is sqrt(alpha_bar_t) and
s_t is sqrt(1 - alpha_bar_t). The tables of a and s are float64 and indexed by integer timesteps.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor

from ldm_kit.config import Config
from ldm_kit.diffusion.float64 import exact, has_float64, move_back
from ldm_kit.diffusion.prediction import expand_like

CONSTANT = 0.008  # the beta of DiffAE's latent prior (Preechakul et al. 2022)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule: tables of a_t and s_t in x_t = a_t x_0 + s_t eps, for t = 0 .. T-1.

    Timestep -1 stands for clean data (a = 1, s = 0). `len(schedule)` is T.

    Args:
        a: signal levels, [T] float64, falling with t.
        s: noise levels (standard deviations of the noise), [T] float64, rising with t.
    """

    a: Tensor
    s: Tensor

    def __len__(self) -> int:
        return len(self.a)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signal levels a_t and the noise levels s_t at the given timesteps.

        Args:
            t: timesteps [B], integers from -1 (clean data) to T-1.

        Returns:
            a_t and s_t, each [B] on the device of `t`, in float64, or in float32 if the device has no float64.
        """
        where = exact(t)
        a, s = self.a.to(where.device), self.s.to(where.device)
        clean, index = where < 0, where.clamp_min(0)
        a, s = torch.where(clean, 1.0, a[index]), torch.where(clean, 0.0, s[index])
        return move_back(a, t), move_back(s, t)

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio a_t^2 / s_t^2 [B] at timesteps t [B]; it is infinite where s_t = 0."""
        a, s = self.alpha_sigma(exact(t))
        return move_back(a.square() / s.square(), t)

    def beta(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the variance of the noise that the forward process adds between a timestep s and a noisier one t.

        It is the variance of q(x_t | x_s), s_t^2 - (a_t / a_s)^2 s_s^2 (Kingma et al. 2021, appendix A). For
        variance-preserving schedules and s = t - 1 it is the beta_t of Ho et al. 2020, eq. 2.

        Args:
            t: the noisier timesteps [B].
            s: the cleaner timesteps [B], -1 for clean data.

        Returns:
            Variances [B], 0 or more; dtype and device as in `alpha_sigma`.
        """
        (a_t, s_t), (a_s, s_s) = self.alpha_sigma(exact(t)), self.alpha_sigma(exact(s))
        return move_back((s_t.square() - (a_t / a_s * s_s).square()).clamp_min(0), t)

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t = a_t x_0 + s_t eps (Ho et al. 2020, eq. 4).

        Args:
            x_0: clean data [B, ...].
            eps: standard normal noise, in the shape of x_0.
            t: timesteps [B].

        Returns:
            Noisy data x_t, in the shape and dtype of x_0.
        """
        a, s = self.alpha_sigma(t)
        return expand_like(a, x_0) * x_0 + expand_like(s, x_0) * eps

    @property
    def variance_preserving(self) -> bool:
        """Whether the schedule is variance-preserving: a^2 + s^2 = 1 at every timestep."""
        return torch.allclose(self.a.square() + self.s.square(), torch.ones_like(self.a))

    @property
    def is_flow(self) -> bool:
        """Whether the schedule is rectified flow's: a + s = 1 at every timestep."""
        return torch.allclose(self.a + self.s, torch.ones_like(self.a))

    def to(self, device: torch.device | str) -> "Schedule":
        """Return the schedule with its tables on a device, or on the CPU if the device has no float64."""
        device = device if has_float64(torch.device(device)) else "cpu"
        return Schedule(self.a.to(device), self.s.to(device))


def from_betas(betas: Tensor) -> Schedule:
    """Return the variance-preserving schedule with the betas [T], each in (0, 1] (Ho et al. 2020, eq. 4)."""
    alpha_bar = torch.cumprod(1.0 - betas.double(), dim=0)
    return Schedule(alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())


def linear(steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Schedule:
    """Return DDPM's schedule of T = `steps` timesteps: beta rises linearly from `start` to `end` (Ho et al. 2020)."""
    return from_betas(torch.linspace(start, end, steps, dtype=torch.float64))


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    """Return LDM's schedule of T = `steps` timesteps, "linear" in the LDM code (Rombach et al. 2022).

    The square root of beta is linear in t, so that beta goes from `start` to `end`.
    """
    return from_betas(torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square())


def constant(steps: int = 1000, start: float = CONSTANT) -> Schedule:
    """Return the variance-preserving schedule whose beta is `start` at each of T = `steps` timesteps."""
    return from_betas(torch.full((steps,), start, dtype=torch.float64))


def cosine(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Schedule:
    """Return the cosine schedule of T = `steps` timesteps (Nichol & Dhariwal 2021, eq. 17).

    `offset` is the paper's constant 0.008, which keeps beta from being too small near t = 0. Betas are clipped to
    `largest`.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(largest))


def flow(steps: int = 1000) -> Schedule:
    """Return rectified flow's schedule of T = `steps` timesteps (Liu et al. 2023).

    s_t = t / T is the noise level and a_t = 1 - s_t the signal level, with t as in diffusers' flow schedulers.
    """
    s = torch.arange(steps, dtype=torch.float64) / steps
    return Schedule(1 - s, s)


def zero_terminal(schedule: Schedule) -> Schedule:
    """Rescale a schedule so that its last timestep is pure noise, a_{T-1} = 0 (Lin et al. 2024, algorithm 1).

    a_0 stays as it is. The schedule must be variance-preserving, and the network must predict v or x_0.
    """
    a = schedule.a
    a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    return Schedule(a, (1 - a.square()).sqrt())


class ScheduleConfig(Config):
    """Config from which a `Schedule` is built: its kind, betas and number of training timesteps."""

    kind: Literal["linear", "scaled_linear", "cosine", "flow", "constant", "given"] = Field(
        default="scaled_linear",
        description="linear: DDPM; scaled_linear: LDM and SD; cosine: iDDPM; flow: rectified flow; "
        "constant: one beta for all timesteps; given: the list in betas",
    )
    num_train_timesteps: int = Field(
        validation_alias=AliasChoices("num_train_timesteps", "steps"),
        default=1000,
        ge=2,
        description="number of training timesteps T",
    )
    start: float | None = Field(
        default=None, gt=0, lt=1, description="first beta; left out: linear 1e-4, scaled_linear 0.00085, constant 0.008"
    )
    end: float | None = Field(
        default=None, gt=0, lt=1, description="last beta; left out: linear 0.02, scaled_linear 0.012"
    )
    betas: tuple[float, ...] | None = Field(default=None, description="kind given: T betas in (0, 1), the last up to 1")
    scale_ends: bool = Field(
        default=False,
        description="linear, scaled_linear: multiply both ends by 1000 / T as guided-diffusion does, so that another T "
        "ends in as much noise; false: the ends are taken as they are for any T, as diffusers does",
    )
    zero_terminal: bool = Field(
        default=False, description="rescale so that the last timestep is pure noise (for prediction_type v or x0)"
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
            _check_betas(self.betas, self.num_train_timesteps)
        if self.kind == "flow" and self.zero_terminal:
            raise ValueError("zero_terminal is for schedules made of betas; flow already ends in noise")
        return self

    def check_target(self, target: str) -> None:
        """Check that this schedule allows networks whose prediction type is `target`.

        Raises:
            ValueError: only one of the schedule and `target` is flow, but they belong together; or `target` is eps and
                the last timestep is pure noise, where eps does not determine x_0 (Lin et al. 2024, section 3.2).
        """
        if (target == "flow") != (self.kind == "flow"):
            raise ValueError(
                f"prediction_type {target!r} does not go with the {self.kind} schedule; prediction_type flow goes with "
                "the flow schedule, and eps, x0 and v with all others"
            )
        if target == "eps" and not (build(self).a.float() > 0).all():  # also where betas leave less than float32 holds
            raise ValueError("prediction_type 'eps' is undefined where the schedule ends in pure noise; take v or x0")

    def ends(self) -> tuple[float, float]:
        """Return the first and the last beta of a linear or scaled_linear schedule, scaled if `scale_ends` is set."""
        first, last = (1e-4, 2e-2) if self.kind == "linear" else (0.00085, 0.012)
        scale = 1000 / self.num_train_timesteps if self.scale_ends else 1.0
        return (self.start or first) * scale, (self.end or last) * scale


def build(config: ScheduleConfig) -> Schedule:
    """Return the noise schedule that a config describes."""
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


def _check_betas(betas: tuple[float, ...], steps: int) -> None:
    if len(betas) != steps:
        raise ValueError(f"betas lists {len(betas)} numbers for {steps} training timesteps; expected as many")
    if not (all(0 < beta < 1 for beta in betas[:-1]) and 0 < betas[-1] <= 1):
        raise ValueError("betas holds a number outside (0, 1), or a 1 before the last; after beta = 1 nothing is left")
