"""Read those keys of a diffusers scheduler_config.json that define the noise schedule, check them and add defaults.

An absent key has the default of the scheduler class's constructor, which differs by class (beta_end: 0.02 or 0.012).
"""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import schedulers
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from pydantic import BaseModel, ConfigDict, Field

from ldm_kit.config import UserError, check

MAX_TIMESTEPS = 1_000_000  # most training timesteps of a schedule read from a file: its tables must fit into memory


class SchedulerFile(BaseModel):
    """The keys of a scheduler_config.json that define the noise schedule; others (sampling settings) are ignored.

    All names and meanings are diffusers', such as `trained_betas`, a list of all betas in place of `beta_schedule`,
    `beta_start` and `beta_end`; None: not set.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    num_train_timesteps: int = Field(ge=2, le=MAX_TIMESTEPS)
    prediction_type: str = "epsilon"  # scheduler classes without this key take networks that predict eps
    beta_schedule: str | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    trained_betas: list[float] | None = None
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = 1.0
    variance_type: str | None = None
    use_flow_sigmas: bool = False


def read_scheduler_file(config: Mapping[str, Any]) -> SchedulerFile:
    """Return the noise schedule's keys of a parsed scheduler_config.json, checked and completed by defaults.

    Args:
        config: the parsed file; absent keys get the defaults of the scheduler class that `_class_name` names.

    Raises:
        UserError: a value has the wrong type or is out of range, or a key is absent and has no default.
    """
    name = scheduler_name(config)
    defaults = _defaults(name)
    needed = ["num_train_timesteps"]
    if config.get("trained_betas") is None and not is_flow(name, config):
        needed += ["prediction_type", "beta_schedule"]
        needed += ["beta_start", "beta_end"] if config.get("beta_schedule") in ("linear", "scaled_linear") else []
    if defaults is None and (absent := [key for key in needed if key not in config]):
        raise UserError(
            f"{name} lacks {', '.join(absent)}, and is no scheduler class of diffusers whose defaults are known"
        )
    return check(SchedulerFile, {**(defaults or {}), **config}, name)


def scheduler_name(config: Mapping[str, Any]) -> str:
    """Return the name of the scheduler class in a parsed scheduler_config.json, or "the scheduler" if it has none.

    Raises:
        UserError: `_class_name` is not a string.
    """
    name = config.get("_class_name", "the scheduler")
    if not isinstance(name, str):
        raise UserError(f"_class_name is {name!r:.80}; expected the name of a scheduler class of diffusers")
    return name


def is_flow(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a parsed scheduler_config.json, of the scheduler class `name`, belongs to a flow model."""
    return config.get("use_flow_sigmas") is True or "FlowMatch" in name


def _defaults(name: str) -> dict[str, Any] | None:
    """Return the defaults of diffusers' scheduler class `name` for the keys of `SchedulerFile`; None: no such class."""
    kind = getattr(schedulers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        return None
    parameters = inspect.signature(kind.__init__).parameters.items()
    defaults = {key: parameter.default for key, parameter in parameters if key in SchedulerFile.model_fields}
    return {key: default for key, default in defaults.items() if default is not inspect.Parameter.empty}
