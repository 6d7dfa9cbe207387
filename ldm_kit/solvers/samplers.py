"""Solvers by name, and our schedules in diffusers' words and back.

`ddim`, `ddpm`, `euler-a`, `sde` and `heun` are `ldm_kit.diffusion.samplers`; the multi-step `dpm++` and `unipc` are
diffusers' schedulers, put on the same grid of times; `diffusers:CLASS` is any other, on its own grid.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser, Gradient
from ldm_kit.diffusion.posterior import Variance
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.rng import step_noise
from ldm_kit.diffusion.samplers import Noise, SchedulerLike, State, ddim, ddpm, euler_maruyama, heun, run_scheduler
from ldm_kit.diffusion.schedule import CONSTANT, Schedule, ScheduleConfig
from ldm_kit.solvers.diffusers_solvers import SMALLEST_A, is_flow, run_diffusers_scheduler

SamplerName = Literal["ddpm", "ddpm-large", "ddim", "dpm++", "unipc", "heun", "euler-a", "sde"]
SAMPLER_NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
DIFFUSERS_PREFIX = "diffusers:"  # before the class name of any other diffusers scheduler

_CLASSES: dict[str, type[Any]] = {
    "ddpm": DDPMScheduler,
    "ddpm-large": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}
_TARGETS: dict[PredictionType, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def sample(
    name: str,
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[int],
    cond: Any = None,
    *,
    seeds: Sequence[int] | None = None,
    eta: float = 0.0,
    gradient: Gradient | None = None,
    variance: Variance = "auto",
) -> Iterator[State]:
    """Generate pictures: the solver's states, one for each step of `times`, the last one clean.

    A picture depends on its own noise, condition and seed, never on its batch mates.

    Args:
        name: deterministic: ddim, heun (two evaluations a step), dpm++ (2M), unipc; adding noise at every step: ddpm,
            ddpm-large (its variance is beta), euler-a, which is ddpm of small variance in k-diffusion's coordinates,
            and sde (Euler-Maruyama). Or `diffusers:CLASS`, see `foreign.drive_foreign`.
        denoiser: its schedule decides where the solver walks; guidance is a denoiser around it.
        noise: [B, ...] standard normal, such as `randomness.picture_noise(seeds, shape)`.
        times: falling, the last one -1, such as `schedule.spaced` gives.
        cond: as the denoiser takes it.
        seeds: one for each picture; for the solvers that add noise, which they address.
        eta: of ddim, the share of ddpm's noise.
        gradient: of ddpm and ddpm-large, shifts the mean (Dhariwal & Nichol 2021, algorithm 1).
        variance: of ddpm; "auto" takes what the network learned, or else the small one.

    Raises:
        ValueError: an unknown name, missing seeds, eta or a gradient for a solver that has none.
    """
    if gradient is not None and name not in ("ddpm", "ddpm-large"):
        raise ValueError(
            f"{name} has no variance by which a gradient could shift its mean (algorithm 1); expected ddpm or "
            "ddpm-large, or the gradient in the denoiser (algorithm 2)"
        )
    if name.startswith(DIFFUSERS_PREFIX):
        return run_diffusers_scheduler(
            name.removeprefix(DIFFUSERS_PREFIX), denoiser, noise, times, cond, seeds=seeds, eta=eta
        )
    if eta > 0 and name != "ddim":
        raise ValueError(f"{name} has no eta, got {eta}; expected ddim")
    match name:
        case "ddim":
            return ddim(denoiser, noise, times, cond, eta=eta, noise=_noise(name, seeds, noise) if eta > 0 else None)
        case "heun":
            return heun(denoiser, noise, times, cond)
        case "sde":
            return euler_maruyama(denoiser, noise, times, cond, noise=_noise(name, seeds, noise))
        case "ddpm" | "ddpm-large" | "euler-a":
            kinds: dict[str, Variance] = {"ddpm": variance, "ddpm-large": "large", "euler-a": "small"}
            fresh = _noise(name, seeds, noise)
            return ddpm(denoiser, noise, times, cond, noise=fresh, variance=kinds[name], gradient=gradient)
        case "dpm++" | "unipc":
            return run_scheduler(multistep(name, denoiser.schedule, times), denoiser, noise, cond, target="x0")
        case _:
            raise ValueError(
                f"unknown solver {name!r}; known are {', '.join(SAMPLER_NAMES)} and {DIFFUSERS_PREFIX}CLASS"
            )


def _noise(name: str, seeds: Sequence[int] | None, start: Tensor) -> Noise:
    if seeds is None or len(seeds) != len(start):
        raise ValueError(f"{name} adds noise and needs one seed for each of {len(start)} pictures, got {seeds}")
    return partial(step_noise, seeds)


def multistep(name: Literal["dpm++", "unipc"], schedule: Schedule, times: Sequence[int]) -> SchedulerLike:
    """DPM-Solver++(2M) or UniPC of diffusers on exactly these falling times, the last one -1, for `run_scheduler` with x0.

    Its own grids miss ours by a rounded time or, for flow, by up to 1e-3 in s, and its step count by one now and then.
    """
    flow = is_flow(schedule)
    total, count = len(schedule), len(times) - 1
    solver = _CLASSES[name](num_train_timesteps=total, prediction_type="sample", use_flow_sigmas=flow)
    solver.set_timesteps(count)
    a, s = schedule.at(torch.tensor(times))
    sigmas = s if flow else s / a.clamp_min(SMALLEST_A)
    sigmas[:-1].clamp_min_(1e-6)  # flow at t = 0 is clean already: no logarithm of zero before the last step
    solver.sigmas, solver.timesteps = sigmas.float(), torch.tensor(times[:-1])
    return solver


def scheduler_config(schedule: ScheduleConfig, target: PredictionType, learned_range: bool = False) -> dict[str, Any]:
    """What a diffusers scheduler has to be told to be this schedule and target; sampling on the `trailing` grid.

    With `learned_range`, for networks that predict a variance too, on the `linspace` grid of guided-diffusion.

    Raises:
        UserError: the target, or a learned variance, makes no sense on the schedule.
    """
    _refuse(schedule, target, learned_range)
    common = {
        "num_train_timesteps": schedule.num_train_timesteps,
        "prediction_type": _TARGETS[target],
        "timestep_spacing": "linspace" if learned_range else "trailing",
        "steps_offset": 1,  # unused on this grid; Stable Diffusion's pipeline warns of any other
    }
    if schedule.kind == "flow":
        return {**common, "use_flow_sigmas": True, "flow_shift": 1.0}
    return {
        **common,
        **_betas(schedule),
        **({"variance_type": "learned_range"} if learned_range else {}),
        "rescale_betas_zero_snr": schedule.zero_terminal,
        "clip_sample": False,
        "set_alpha_to_one": True,
    }


def _betas(schedule: ScheduleConfig) -> dict[str, Any]:
    match schedule.kind:
        case "constant" | "given":
            return {
                "trained_betas": list(schedule.betas or [schedule.start or CONSTANT] * schedule.num_train_timesteps)
            }
        case "linear" | "scaled_linear":
            start, end = schedule.ends()
            return {"beta_schedule": schedule.kind, "beta_start": start, "beta_end": end}
        case _:
            return {"beta_schedule": _KINDS[schedule.kind]}


def to_scheduler(
    name: SamplerName, schedule: ScheduleConfig, target: PredictionType, learned_range: bool = False
) -> SchedulerMixin:
    """The diffusers scheduler of that name whose `alphas_cumprod` (or flow sigmas) are ours; for saving and export.

    Raises:
        UserError: diffusers cannot express the combination.
    """
    config = scheduler_config(schedule, target, learned_range)
    if name == "ddpm-large":
        config["variance_type"] = "fixed_large"
    if name not in _CLASSES:
        raise UserError(f"diffusers has no solver {name!r} of ours; expected one of {', '.join(_CLASSES)}")
    if schedule.kind == "flow" and name not in ("dpm++", "unipc"):
        raise UserError(f"diffusers has no {name} that a flow model's pipeline can use; expected dpm++ or unipc")
    if name == "heun" and schedule.zero_terminal:
        raise UserError("diffusers' heun cannot start from pure noise (zero_terminal); expected ddim, dpm++ or unipc")
    if name == "euler-a" and target == "x0":
        raise UserError(
            "diffusers' euler-a takes networks that predict eps or v, got x0; expected ddim, dpm++ or unipc"
        )
    known = inspect.signature(_CLASSES[name].__init__).parameters
    return _CLASSES[name](**{key: value for key, value in config.items() if key in known})


def default_scheduler(schedule: ScheduleConfig, target: PredictionType, learned_range: bool = False) -> SchedulerMixin:
    """What a saved model's folder gets.

    DDIM; DPM-Solver++ for flow, which the old pipelines can run as well; DDPM for a learned variance, as it alone can
    take the network's output.
    """
    if learned_range:
        return to_scheduler("ddpm", schedule, target, learned_range)
    return to_scheduler("dpm++" if schedule.kind == "flow" else "ddim", schedule, target)


def learns_variance(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler_config.json is for a network whose second half of channels is the variance's fraction."""
    return config.get("variance_type") == "learned_range"


def from_scheduler_config(config: Mapping[str, Any]) -> tuple[ScheduleConfig, PredictionType]:
    """Any diffusers scheduler_config.json as our schedule and target, the inverse of `scheduler_config`.

    How it samples (spacing, clipping, flow shift) is the sampler's business and not read; see also `learns_variance`.

    Raises:
        UserError: betas, a prediction or a variance that our schedules cannot express.
    """
    name = config.get("_class_name", "the scheduler")
    steps = config.get("num_train_timesteps", 1000)
    if config.get("use_flow_sigmas") or "FlowMatch" in name:
        return ScheduleConfig(kind="flow", num_train_timesteps=steps), _target(
            name, config.get("prediction_type", "flow_prediction")
        )
    if config.get("variance_type") == "learned":
        raise UserError(f"{name} is for networks that predict a whole variance; expected learned_range or a fixed one")
    target = _target(name, config.get("prediction_type", "epsilon"))
    zero = bool(config.get("rescale_betas_zero_snr"))
    if (betas := config.get("trained_betas")) is not None:
        return _listed(name, tuple(betas), steps, zero), target
    kinds: dict[str, Any] = {words: kind for kind, words in _KINDS.items()}
    if (words := config.get("beta_schedule")) not in kinds:
        raise UserError(f"{name} has beta_schedule {words!r}; expected one of {', '.join(kinds)}")
    ends: dict[str, Any] = (
        {} if kinds[words] == "cosine" else {"start": config.get("beta_start"), "end": config.get("beta_end")}
    )
    return ScheduleConfig(kind=kinds[words], num_train_timesteps=steps, zero_terminal=zero, **ends), target


def _listed(name: str, betas: tuple[float, ...], steps: int, zero: bool) -> ScheduleConfig:
    if len(betas) != steps:
        raise UserError(f"{name} holds {len(betas)} betas (trained_betas) for {steps} training times; expected {steps}")
    if len(set(betas)) == 1:
        return ScheduleConfig(kind="constant", num_train_timesteps=steps, start=betas[0], zero_terminal=zero)
    return ScheduleConfig(kind="given", num_train_timesteps=steps, betas=betas, zero_terminal=zero)


def _target(name: str, words: str) -> PredictionType:
    for target, theirs in _TARGETS.items():
        if theirs == words:
            return target
    raise UserError(f"{name} has prediction_type {words!r}; expected one of {', '.join(_TARGETS.values())}")


def _refuse(schedule: ScheduleConfig, target: PredictionType, learned_range: bool) -> None:
    if (schedule.kind == "flow") != (target == "flow") and target in ("flow", "v"):
        raise UserError(
            f"a network cannot predict {target} on the {schedule.kind} schedule; flow goes with flow, v with others"
        )
    ends_in_noise = schedule.zero_terminal or (schedule.betas is not None and schedule.betas[-1] == 1)
    if ends_in_noise and target == "eps":
        raise UserError("a schedule that ends in pure noise says nothing about x_0 there through eps; expected v or x0")
    if learned_range and schedule.kind == "flow":
        raise UserError(
            "diffusers has no scheduler for a flow model with a learned variance; expected another schedule"
        )
