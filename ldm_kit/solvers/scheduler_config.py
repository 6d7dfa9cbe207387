"""Conversion of noise schedules to diffusers' schedulers and scheduler_config.json, and back."""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import schedulers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ldm_kit.config import UserError
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import CONSTANT, ScheduleConfig
from ldm_kit.solvers.scheduler_file import is_flow, read_scheduler_file, scheduler_name
from ldm_kit.solvers.table import SAMPLERS, NamedSampler, names_where

_PREDICTION_TYPES: dict[PredictionType, str] = {
    "eps": "epsilon",
    "x0": "sample",
    "v": "v_prediction",
    "flow": "flow_prediction",
}
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def scheduler_config(
    schedule: ScheduleConfig, prediction_type: PredictionType, learned_range: bool = False
) -> dict[str, Any]:
    """Return the settings (scheduler_config.json) of a diffusers scheduler for a noise schedule and a network.

    The timestep spacing is trailing, or linspace for a network that learns its variance, as in guided-diffusion.

    Args:
        schedule: noise schedule that the network was trained on.
        prediction_type: what the network predicts.
        learned_range: whether the network learns its variance, in twice the output channels.

    Raises:
        UserError: the schedule does not allow the prediction type or the learned variance.
    """
    _check_combination(schedule, prediction_type, learned_range)
    common = {
        "num_train_timesteps": schedule.num_train_timesteps,
        "prediction_type": _PREDICTION_TYPES[prediction_type],
        "timestep_spacing": "linspace" if learned_range else "trailing",
        "steps_offset": 1,  # unused with this spacing; Stable Diffusion's pipeline warns of any other
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
            betas = schedule.betas or [schedule.start or CONSTANT] * schedule.num_train_timesteps
            return {"trained_betas": list(betas)}
        case "linear" | "scaled_linear":
            start, end = schedule.ends()
            return {"beta_schedule": schedule.kind, "beta_start": start, "beta_end": end}
        case _:
            return {"beta_schedule": _BETA_SCHEDULES[schedule.kind]}


def _check_combination(schedule: ScheduleConfig, prediction_type: PredictionType, learned_range: bool) -> None:
    try:
        schedule.check_target(prediction_type)
    except ValueError as error:
        raise UserError(str(error)) from None
    if learned_range and schedule.kind == "flow":
        raise UserError(
            "diffusers has no scheduler for a flow model with a learned variance; expected another schedule"
        )


def to_scheduler(
    name: str, schedule: ScheduleConfig, prediction_type: PredictionType, learned_range: bool = False
) -> SchedulerMixin:
    """Return the diffusers scheduler that corresponds to a sampler, for saved and exported models.

    Args:
        name: name of a sampler, such as ddim, that has a diffusers scheduler (`NamedSampler.scheduler`).
        schedule: noise schedule that the network was trained on.
        prediction_type: what the network predicts.
        learned_range: whether the network learns its variance.

    Raises:
        UserError: no scheduler of diffusers supports this sampler, schedule and prediction type together.
    """
    config = scheduler_config(schedule, prediction_type, learned_range)
    record = SAMPLERS.get(name)
    if record is None or record.scheduler is None:
        raise UserError(f"diffusers has no solver {name!r} of ours; expected one of {_names()}")
    if schedule.kind == "flow" and not record.scheduler_takes_flow:
        flow = " or ".join(names_where(lambda one: one.scheduler_takes_flow))
        raise UserError(f"diffusers has no {name} that a flow model's pipeline can use; expected {flow}")
    if schedule.zero_terminal and not record.scheduler_takes_pure_noise:
        raise UserError(f"diffusers' {name} cannot start from pure noise (zero_terminal); expected {_names(name)}")
    if prediction_type == "x0" and not record.scheduler_takes_x0:
        raise UserError(f"diffusers' {name} takes networks that predict eps or v, got x0; expected {_names(name)}")
    return _build(record, config)


def _names(excluded: str = "") -> str:
    return ", ".join(name for name in names_where(lambda one: one.scheduler is not None) if name != excluded)


def _build(record: NamedSampler, config: Mapping[str, Any]) -> SchedulerMixin:
    cls: Any = getattr(schedulers, str(record.scheduler))
    parameters = inspect.signature(cls.__init__).parameters
    settings = {**config, **record.scheduler_options}
    return cls(**{key: value for key, value in settings.items() if key in parameters})


def default_scheduler(
    schedule: ScheduleConfig, prediction_type: PredictionType, learned_range: bool = False
) -> SchedulerMixin:
    """Return the diffusers scheduler that is saved with a model by default.

    For a learned variance this is DDPM, the only scheduler that takes twice the output channels; for flow it is
    DPM-Solver++, which older versions of diffusers' pipelines can run as well; for all other models it is DDIM.

    Args:
        schedule: noise schedule that the network was trained on.
        prediction_type: what the network predicts.
        learned_range: whether the network learns its variance.

    Raises:
        UserError: no scheduler of diffusers supports this schedule and prediction type together.
    """
    name = "ddpm" if learned_range else "dpm++" if schedule.kind == "flow" else "ddim"
    return to_scheduler(name, schedule, prediction_type, learned_range)


def saved_scheduler(
    schedule: ScheduleConfig, prediction_type: PredictionType, variance: VarianceType = "small"
) -> SchedulerMixin:
    """Return the diffusers scheduler that is saved with a model whose reverse step has the given variance.

    Training and opening a model also call this function, to check that there is such a scheduler.

    Args:
        schedule: noise schedule that the network was trained on.
        prediction_type: what the network predicts.
        variance: variance of ddpm's reverse step: small (the posterior's), large (beta) or learned_range.

    Raises:
        UserError: `schedule` does not allow the prediction type, or no scheduler of diffusers supports both together.
    """
    if variance == "large":
        return to_scheduler("ddpm-large", schedule, prediction_type)
    return default_scheduler(schedule, prediction_type, variance == "learned_range")


def learns_variance(config: Mapping[str, Any]) -> bool:
    """Return whether a parsed scheduler_config.json is for a network that also predicts the reverse step's variance.

    Such a network has twice as many output channels.
    """
    return config.get("variance_type") == "learned_range"


def read_variance(config: Mapping[str, Any]) -> VarianceType:
    """Return the variance of ddpm's reverse step (small, large or learned_range) from a parsed scheduler_config.json.

    Raises:
        UserError: `config` has a variance that ldm_kit does not support, such as diffusers' "learned".
    """
    match read_scheduler_file(config).variance_type:
        case None | "fixed_small" | "fixed_small_log":
            return "small"
        case "fixed_large" | "fixed_large_log":
            return "large"
        case "learned_range":
            return "learned_range"
        case "learned":
            what = "is for networks that predict a whole variance"
        case other:
            what = f"has variance_type {other!r:.40}"
    raise UserError(f"{scheduler_name(config)} {what}; expected learned_range or a fixed one")


def from_scheduler_config(config: Mapping[str, Any]) -> tuple[ScheduleConfig, PredictionType]:
    """Return the noise schedule and the prediction type from the scheduler_config.json of any diffusers scheduler.

    This is the inverse of `scheduler_config`. Absent keys have the defaults of the scheduler's class. Sampling settings
    (spacing, clipping, flow shift) are ignored; for the variance see `read_variance`.

    Args:
        config: the parsed file.

    Raises:
        UserError: `config` has betas, a prediction type or a variance that ldm_kit does not support, or a value has the
            wrong type.
    """
    name, file = scheduler_name(config), read_scheduler_file(config)
    steps = file.num_train_timesteps
    if is_flow(name, config):
        prediction_type = _prediction_type(name, config.get("prediction_type", "flow_prediction"))
        return ScheduleConfig(kind="flow", num_train_timesteps=steps), prediction_type
    read_variance(config)
    prediction_type = _prediction_type(name, file.prediction_type)
    if file.snr_shift_scale != 1:
        raise UserError(f"{name} shifts its schedule (snr_shift_scale {file.snr_shift_scale:g}), which ours cannot be")
    zero = file.rescale_betas_zero_snr
    if file.trained_betas is not None:
        return _from_betas(name, tuple(file.trained_betas), steps, zero), prediction_type
    kinds: dict[str, Any] = {beta_schedule: kind for kind, beta_schedule in _BETA_SCHEDULES.items()}
    if file.beta_schedule not in kinds:
        raise UserError(f"{name} has beta_schedule {file.beta_schedule!r:.40}; expected one of {', '.join(kinds)}")
    kind = kinds[file.beta_schedule]
    ends: dict[str, Any] = {} if kind == "cosine" else {"start": file.beta_start, "end": file.beta_end}
    if None in ends.values():
        raise UserError(f"{name} has no number as beta_start or beta_end; expected the first and last of its betas")
    return ScheduleConfig(kind=kind, num_train_timesteps=steps, zero_terminal=zero, **ends), prediction_type


def _from_betas(name: str, betas: tuple[float, ...], steps: int, zero: bool) -> ScheduleConfig:
    if len(betas) != steps:
        raise UserError(f"{name} holds {len(betas)} betas (trained_betas) for {steps} training times; expected {steps}")
    if len(set(betas)) == 1:
        return ScheduleConfig(kind="constant", num_train_timesteps=steps, start=betas[0], zero_terminal=zero)
    return ScheduleConfig(kind="given", num_train_timesteps=steps, betas=betas, zero_terminal=zero)


def _prediction_type(name: str, diffusers_name: object) -> PredictionType:
    for prediction_type, expected in _PREDICTION_TYPES.items():
        if expected == diffusers_name:
            return prediction_type
    names = ", ".join(_PREDICTION_TYPES.values())
    raise UserError(f"{name} has prediction_type {diffusers_name!r:.40}; expected one of {names}")
