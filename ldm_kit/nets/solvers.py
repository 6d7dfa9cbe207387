"""Solvers by name, and our schedules in diffusers' words and back.

`ddim`, `ddpm`, `euler-a` and `heun` are `ldm_kit.diffusion.samplers`; the multi-step `dpm++` and `unipc` are diffusers'
schedulers, put on the same grid of times.
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
from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import Target
from ldm_kit.diffusion.randomness import step_noise
from ldm_kit.diffusion.samplers import Solver, State, ddim, ddpm, drive, heun
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, trailing

SolverName = Literal["ddpm", "ddim", "dpm++", "unipc", "heun", "euler-a"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)

_CLASSES: dict[str, type[Any]] = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}
_TARGETS: dict[Target, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_BETAS = {"linear": (1e-4, 2e-2), "scaled_linear": (0.00085, 0.012)}  # the defaults of `schedule.linear` and its sister
_SMALLEST_A = 2.0**-12  # diffusers' stand-in for a = 0, where a solver would divide by zero


def solve(
    name: SolverName,
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    cond: Any = None,
    *,
    seeds: Sequence[int] | None = None,
) -> Iterator[State]:
    """Generate pictures: the solver's states, `steps` of them, the last one clean.

    A picture depends on its own noise, condition and seed, never on its batch mates.

    Args:
        name: deterministic: ddim, heun (two evaluations a step), dpm++ (2M), unipc; adding noise at every step: ddpm
            (small variance) and euler-a, which is the same process in k-diffusion's coordinates.
        denoiser: its schedule decides where the solver walks; guidance is a denoiser around it.
        noise: [B, ...] standard normal, such as `randomness.picture_noise(seeds, shape)`.
        steps: at most the schedule's training times, walked on the `trailing` grid.
        cond: as the denoiser takes it.
        seeds: one for each picture; for ddpm and euler-a, whose noise it addresses.

    Raises:
        ValueError: an unknown name, too many steps, or missing seeds.
    """
    times = trailing(len(denoiser.schedule), steps)
    match name:
        case "ddim":
            return ddim(denoiser, noise, times, cond)
        case "heun":
            return heun(denoiser, noise, times, cond)
        case "ddpm" | "euler-a":
            if seeds is None or len(seeds) != len(noise):
                raise ValueError(f"{name} adds noise and needs one seed for each of {len(noise)} pictures, got {seeds}")
            return ddpm(denoiser, noise, times, cond, noise=partial(step_noise, seeds))
        case "dpm++" | "unipc":
            return drive(multistep(name, denoiser.schedule, times), denoiser, noise, cond, target="x0")
        case _:
            raise ValueError(f"unknown solver {name!r}; known are {', '.join(SOLVERS)}")


def multistep(name: Literal["dpm++", "unipc"], schedule: Schedule, times: Sequence[int]) -> Solver:
    """DPM-Solver++(2M) or UniPC of diffusers on exactly these falling times, the last one -1, for `drive` with x0.

    Its own grids miss ours by a rounded time or, for flow, by up to 1e-3 in s, and its step count by one now and then.
    """
    flow = torch.allclose(schedule.a + schedule.s, torch.ones_like(schedule.a))
    total, count = len(schedule), len(times) - 1
    solver = _CLASSES[name](num_train_timesteps=total, prediction_type="sample", use_flow_sigmas=flow)
    solver.set_timesteps(count)
    a, s = schedule.at(torch.tensor(times))
    sigmas = s if flow else s / a.clamp_min(_SMALLEST_A)
    sigmas[:-1].clamp_min_(1e-6)  # flow at t = 0 is clean already: no logarithm of zero before the last step
    solver.sigmas, solver.timesteps = sigmas.float(), torch.tensor(times[:-1])
    return solver


def scheduler_config(schedule: ScheduleConfig, target: Target) -> dict[str, Any]:
    """What a diffusers scheduler has to be told to be this schedule and target; sampling on the `trailing` grid.

    Raises:
        UserError: the target makes no sense on the schedule.
    """
    _refuse(schedule, target)
    common = {
        "num_train_timesteps": schedule.steps,
        "prediction_type": _TARGETS[target],
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # unused on this grid; Stable Diffusion's pipeline warns of any other
    }
    if schedule.kind == "flow":
        return {**common, "use_flow_sigmas": True, "flow_shift": 1.0}
    start, end = _BETAS.get(schedule.kind, (None, None))
    ends = {"beta_start": schedule.start or start, "beta_end": schedule.end or end}
    return {
        **common,
        "beta_schedule": _KINDS[schedule.kind],
        **{key: value for key, value in ends.items() if value is not None},
        "rescale_betas_zero_snr": schedule.zero_terminal,
        "clip_sample": False,
        "set_alpha_to_one": True,
    }


def to_scheduler(name: SolverName, schedule: ScheduleConfig, target: Target) -> SchedulerMixin:
    """The diffusers scheduler of that name whose `alphas_cumprod` (or flow sigmas) are ours; for saving and export.

    Raises:
        UserError: diffusers cannot express the combination.
    """
    config = scheduler_config(schedule, target)
    if name not in _CLASSES:
        raise UserError(f"unknown solver {name!r}; known are {', '.join(SOLVERS)}")
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


def default_scheduler(schedule: ScheduleConfig, target: Target) -> SchedulerMixin:
    """What a saved model's folder gets: DDIM, or DPM-Solver++ for flow, which the old pipelines can run as well."""
    return to_scheduler("dpm++" if schedule.kind == "flow" else "ddim", schedule, target)


def from_scheduler_config(config: Mapping[str, Any]) -> tuple[ScheduleConfig, Target]:
    """Any diffusers scheduler_config.json as our schedule and target, the inverse of `scheduler_config`.

    How it samples (spacing, clipping, flow shift) is the sampler's business and not read.

    Raises:
        UserError: betas, a prediction or a learned variance that our schedules cannot express.
    """
    name = config.get("_class_name", "the scheduler")
    steps = config.get("num_train_timesteps", 1000)
    if config.get("use_flow_sigmas") or "FlowMatch" in name:
        return ScheduleConfig(kind="flow", steps=steps), _target(name, config.get("prediction_type", "flow_prediction"))
    if config.get("trained_betas") is not None:
        raise UserError(f"{name} has its own list of betas (trained_betas); expected a named beta_schedule")
    if str(config.get("variance_type", "")).startswith("learned"):
        raise UserError(f"{name} is for networks that also predict a variance; expected a fixed variance_type")
    kinds: dict[str, Any] = {words: kind for kind, words in _KINDS.items()}
    if (words := config.get("beta_schedule")) not in kinds:
        raise UserError(f"{name} has beta_schedule {words!r}; expected one of {', '.join(kinds)}")
    ends = {} if kinds[words] == "cosine" else {"start": config.get("beta_start"), "end": config.get("beta_end")}
    zero = bool(config.get("rescale_betas_zero_snr"))
    schedule = ScheduleConfig(kind=kinds[words], steps=steps, zero_terminal=zero, **ends)
    return schedule, _target(name, config.get("prediction_type", "epsilon"))


def _target(name: str, words: str) -> Target:
    for target, theirs in _TARGETS.items():
        if theirs == words:
            return target
    raise UserError(f"{name} has prediction_type {words!r}; expected one of {', '.join(_TARGETS.values())}")


def _refuse(schedule: ScheduleConfig, target: Target) -> None:
    if (schedule.kind == "flow") != (target == "flow") and target in ("flow", "v"):
        raise UserError(
            f"a network cannot predict {target} on the {schedule.kind} schedule; flow goes with flow, v with others"
        )
    if schedule.zero_terminal and target == "eps":
        raise UserError("a zero_terminal schedule ends in pure noise, which eps says nothing about; expected v or x0")
