"""Options of sampling without a noisy classifier or a guide model.

A run evaluates its samples with these options, and its saved model stores them.

This module imports no heavy library, so that `--help` answers at once.
"""

import math
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ldm_kit.config import Config
from ldm_kit.models.flow_shift import SHIFTS
from ldm_kit.solvers.table import DIFFUSERS_PREFIX, find_sampler, names_where, sampler_help, sampler_names

MAX_SEED = 2**64 - 1  # greatest seed that torch takes


def check_seed(seed: int) -> int:
    """Return the seed, if torch takes it (0 to `MAX_SEED`); else raise ValueError."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError("expected 0 to 2^64 - 1")
    return seed


Seed = Annotated[int, AfterValidator(check_seed)]
"""Type of a seed field. Where further seeds count up from the seed, `check_seeds` checks the last one as well."""


def check_seeds(seed: int, count: int) -> None:
    """Check that torch takes all of the seeds `seed` to `seed + count - 1`; else raise ValueError."""
    if seed > MAX_SEED - count + 1:
        raise ValueError(f"--seed is {seed}; expected 0 to 2^64 - --count")


OWN: dict[str, Any] = {"own": True}  # marks a field that takes the value saved with the model if its flag is left out
OF_THRESHOLD = ("dynamic_thresholding_ratio", "sample_max_value")  # need clip dynamic; diffusers' names
DEFAULT_LEVEL = 20  # noise level of a picture that is upscaled, as in diffusers' StableDiffusionUpscalePipeline
OF_CONDITION = ("negative_prompt", "guidance_rescale", "guidance_interval")  # need classifier-free guidance
UNTRAINED_NULL = (  # an error's text; the name of the flag that asks for guidance stands before it
    "steers away from the null condition, which this model was never trained on (condition_dropout 0); "
    "expected --guidance_scale 1"
)
_ETA_OF_DIFFUSERS = ("diffusers:DDIMScheduler",)  # diffusers' schedulers that take eta


def check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """Return the interval (LOW, HIGH) of times t / T, if 0 <= LOW < HIGH <= 1; else raise ValueError."""
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError("expected two shares of time, 0 <= LOW < HIGH <= 1")
    return interval


def _split(scales: Any) -> Any:
    """Return guidance scales that are given as text, "7.5,1.5", as a list; others, such as a list, as they are."""
    return scales.split(",") if isinstance(scales, str) else scales


def _check_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    if not scales or min(scales) < 0:
        raise ValueError("expected scales of 0 or more, with commas between them")
    return scales


Scales = Annotated[tuple[float, ...], BeforeValidator(_split), AfterValidator(_check_scales)]
"""Type of a field with several guidance scales."""


class GuidanceRange(NamedTuple):
    """The guidance scales and times on which a U-Net that takes the scale as input was trained."""

    max_scale: float = math.inf  # the greatest scale
    interval: tuple[float, float] = (0.0, 1.0)  # shares of time between which the training was guided
    min_scale: float = 1.0  # the least scale; 1 is no guidance

    def __str__(self) -> str:
        """Return the scales as text, such as "1 to 8"."""
        return f"{self.min_scale:g} " + ("or more" if math.isinf(self.max_scale) else f"to {self.max_scale:g}")


class SamplerOptions(Config):
    """How pictures are sampled, apart from guidance by a noisy classifier or a guide model.

    A training run evaluates its samples with these options, and saves them with its model. `guidance_rescale` is phi of
    Lin et al. 2024, eq. 16; `guidance_interval` are fractions t / T; `spacing` chooses the timesteps, see
    `respaced_timesteps`; `clip` is the treatment of the predicted x_0.
    """

    steps: int = Field(default=20, ge=1, description="sampling steps", json_schema_extra=OWN)
    solver: str = Field(
        default="dpm++",
        description=sampler_help(),
        json_schema_extra=OWN,
    )
    guidance_scale: float = Field(
        default=3.0, ge=0, description="scale of classifier-free guidance; 1: no guidance", json_schema_extra=OWN
    )
    guidance_scales: Scales | None = Field(
        default=None,
        description="in place of guidance_scale, a scale for each condition of a model with several, in the order of "
        "its config and with commas between them: 7.5,1.5",
        json_schema_extra={**OWN, "listed": True},
    )
    negative_prompt: str | None = Field(
        default=None,
        description="prompt to guide away from; left out: the null condition of the training",
        json_schema_extra=OWN,
    )
    guidance_rescale: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how far the guided prediction is rescaled to the contrast of the unguided one; 0: not",
        json_schema_extra=OWN,
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="guide only where LOW <= t / T <= HIGH; t = 0 is clean data",
        json_schema_extra=OWN,
    )
    spacing: str = Field(
        default="trailing",
        description="spacing of the timesteps: trailing, leading, linspace; as in guided-diffusion: ddim25; 90,60,20",
        json_schema_extra=OWN,
    )
    flow_shift: float = Field(
        default=1.0,
        gt=0,
        description="flow models: shift of the times towards noise (SD3: 3); 1: none",
        json_schema_extra=OWN,
    )
    resolution_shift: bool = Field(
        default=False,
        description="flow models: shift times further by sqrt(area / trained area), where --height or --width ask for "
        "another size",
        json_schema_extra=OWN,
    )
    eta: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="noise that each step of ddim adds; 0: none, 1: as much as ddpm",
        json_schema_extra=OWN,
    )
    clip: Literal["auto", "none", "clip", "dynamic", "published"] = Field(
        default="auto",
        description="clipping of the predicted x_0, after guidance: auto clips pixels to -1..1 and leaves latents; "
        "dynamic thresholds pixels (Imagen); published is clip, but not once more after --algorithm 2",
        json_schema_extra=OWN,
    )
    dynamic_thresholding_ratio: float = Field(
        default=0.995,
        gt=0,
        le=1,
        description="for --clip dynamic: quantile of a sample's |x_0| that is its threshold",
        json_schema_extra=OWN,
    )
    sample_max_value: float | None = Field(
        default=None,
        ge=1,
        description="for --clip dynamic: upper limit of the threshold; left out: none",
        json_schema_extra=OWN,
    )
    noise_level: int | None = Field(
        default=None,
        ge=0,
        le=999,
        description=f"noise added to the picture that is upscaled, as in training; left out: {DEFAULT_LEVEL}",
        json_schema_extra=OWN,
    )

    @field_validator("solver")
    @classmethod
    def _known_solver(cls, solver: str) -> str:
        if solver not in sampler_names() and not solver.startswith(DIFFUSERS_PREFIX):
            raise ValueError(f"expected one of {', '.join(sampler_names())}, or {DIFFUSERS_PREFIX}CLASS")
        return solver

    @field_validator("guidance_interval")
    @classmethod
    def _rising_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        return check_interval(interval)

    @model_validator(mode="after")
    def _sampler_agrees(self) -> Self:
        """Raise ValueError for options that exclude each other, whatever the model is."""
        if self.spacing != "trailing" and self.solver.startswith(DIFFUSERS_PREFIX):
            raise ValueError(f"--spacing is for our own solvers; {self.solver} has a time grid of its own")
        if self.solver.startswith(DIFFUSERS_PREFIX) and (shift := self._given(SHIFTS)):
            raise ValueError(f"--{shift} is for our own solvers; {self.solver} has a time grid of its own")
        if self.eta > 0 and not self._takes_eta:
            taken = ", ".join(names_where(lambda sampler: sampler.takes_eta))
            raise ValueError(f"--eta {self.eta:g} is for {taken} alone, but --solver is {self.solver}")
        if self.clip != "dynamic" and (idle := self._given(OF_THRESHOLD)):
            raise ValueError(f"--{idle} is for --clip dynamic, but --clip is {self.clip}")
        if not self.guides and (idle := self._given(OF_CONDITION)):
            raise ValueError(f"--{idle} has no effect at --guidance_scale 1; expected another scale")
        return self

    @property
    def guides(self) -> bool:
        """Whether a scale of classifier-free guidance is other than 1."""
        return any(scale != 1 for scale in self.guidance_scales or (self.guidance_scale,))

    @property
    def _takes_eta(self) -> bool:
        built_in = not self.solver.startswith(DIFFUSERS_PREFIX)
        return find_sampler(self.solver).takes_eta if built_in else self.solver in _ETA_OF_DIFFUSERS

    def _given(self, names: tuple[str, ...]) -> str | None:
        """Return the first of the options called `names` whose value is not its default; None: there is none."""
        defaults = type(self).model_fields
        return next((name for name in names if getattr(self, name) != defaults[name].default), None)


def check_scale(options: SamplerOptions, trained: GuidanceRange, prefix: str = "--") -> None:
    """Check that a U-Net that takes the guidance scale as input was trained on the scale and interval in `options`.

    Args:
        options: the options of sampling.
        trained: scales and times on which the U-Net was trained.
        prefix: what stands before an option's name in a message: "--" of a flag, "sample." of a config.

    Raises:
        ValueError: an option of classifier-free guidance, or a scale or interval on which the U-Net was not trained.
    """
    if idle := options._given(("negative_prompt", "guidance_rescale", "guidance_scales")):
        raise ValueError(
            f"{prefix}{idle} is for classifier-free guidance, but this model's network takes the guidance scale as "
            "input; leave it out"
        )
    scale = options.guidance_scale
    if not trained.min_scale <= scale <= trained.max_scale:
        raise ValueError(f"{prefix}guidance_scale is {scale:g}, but this model's network takes scales of {trained}")
    (low, high), (least, greatest) = options.guidance_interval, trained.interval
    if (low, high) == (0.0, 1.0):
        return
    if trained.min_scale > 1:
        raise ValueError(
            f"{prefix}guidance_interval gives scale 1 to the network outside of {low:g} {high:g}, but this model's "
            f"takes scales of {trained}; leave it out"
        )
    if not least <= low < high <= greatest:
        raise ValueError(
            f"{prefix}guidance_interval is {low:g} {high:g}, but this model was trained with guidance between "
            f"{least:g} and {greatest:g}"
        )
