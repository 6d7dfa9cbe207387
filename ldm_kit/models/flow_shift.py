"""The shift of a flow model's sampling times towards noise (Esser et al. 2024, section 5.3.2): options, and timesteps.

No torch at import, as `--help` must not wait for it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm_kit.config import UserError
from ldm_kit.diffusion.respacing import shifted_timesteps

if TYPE_CHECKING:
    from ldm_kit.models.options import SamplingOptions
    from ldm_kit.models.pipeline import Pipeline


SHIFTS = ("flow_shift", "resolution_shift")  # names of the options


def flow_shift_of(options: "SamplingOptions", model: "Pipeline") -> float:
    """Return the shift of a model's sampling times: `flow_shift`, times sqrt(m / n) if `resolution_shift` is set.

    m is the number of pixels that are sampled, n that of the model's own size; shifts one after another multiply.

    Raises:
        UserError: there is a shift, but the model is no flow model, or the solver has times of its own.
    """
    shift = options.flow_shift
    if options.resolution_shift:
        height, width = options.size(model)
        shift *= (height * width) ** 0.5 / model.resolution
    asked = "flow_shift" if options.flow_shift != 1 else "resolution_shift" if options.resolution_shift else None
    if asked is not None and model.schedule_config.kind != "flow":
        raise UserError(
            f"--{asked} is for flow models, and this one has the noise schedule {model.schedule_config.kind}"
        )
    return shift


def shift_times(times: Sequence[int], total: int, shift: float) -> tuple[int, ...]:
    """Return falling timesteps that end in -1, each but the last shifted; see `shifted_timesteps`.

    Raises:
        UserError: two of them fall together.
    """
    try:
        return tuple(shifted_timesteps(times, total, shift))
    except ValueError as error:
        raise UserError(f"--flow_shift {shift:g}: {error}") from None
