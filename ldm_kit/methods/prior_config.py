"""Config of the diffusion prior over semantic codes."""

from typing import Literal

from pydantic import AliasChoices, Field, model_validator

from conditioning.labels import ClassConfig
from conditioning.none import NoConfig
from ldm_kit.config import Config
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.diffusion.timesteps import TimestepSamplingConfig
from ldm_kit.methods.run_config import ConditionedRun, check_any_density, check_saved, check_shift, check_steps
from ldm_kit.models.prior import TARGET
from ldm_kit.nets.mlp_skip import SkipMLPConfig


class PriorSampleConfig(Config):
    """Settings with which a run samples pictures during training, from fixed seeds."""

    steps: int = Field(default=50, ge=1, description="DDIM steps that sample a code")
    guidance_scale: float = Field(
        default=1.0, ge=0, description="scale of classifier-free guidance of the code; 1: no guidance"
    )
    decode_steps: int = Field(default=20, ge=1, description="DDIM steps that decode a code to a picture")
    stop: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="PDAE: share of the decoding steps, the last, that the frozen model takes alone (such as 0.3)",
    )


class PriorRun(ConditionedRun):
    """Config of a run that trains a diffusion prior over the codes of a trained semantic model (DiffAE or PDAE).

    `net` sets the MLP, `schedule` the noise schedule, and `sample` how samples are drawn during training.
    """

    method: Literal["prior"] = Field(description="a diffusion model of codes")
    model: str = Field(
        min_length=1,
        description="a trained semantic model, or a latent one under a condition of kind image; its folder or run",
    )
    net: SkipMLPConfig = SkipMLPConfig()
    schedule: ScheduleConfig = ScheduleConfig(kind="constant")
    timestep_sampling: TimestepSamplingConfig = Field(
        default=TimestepSamplingConfig(),
        validation_alias=AliasChoices("timestep_sampling", "times"),
        description="density from which training timesteps are drawn",
    )
    prediction_type: Literal["eps", "x0", "v"] | None = Field(
        None,
        description="what the MLP predicts; left out: eps for the codes of a DiffAE or PDAE, as they do, and x0 for "
        "image embeddings, as unCLIP does",
    )
    sample: PriorSampleConfig = PriorSampleConfig()

    @model_validator(mode="after")
    def _check(self) -> "PriorRun":
        check_any_density(self.timestep_sampling)
        check_shift(self.timestep_sampling, self.schedule)
        if self.flip:
            raise ValueError("flip must be false: codes are those of the pictures as they are")
        if isinstance(self.condition, ClassConfig) and self.condition.form != "vector":
            raise ValueError("condition.form must be vector: a prior over codes does not attend to tokens")
        if self.schedule.kind == "flow" or self.schedule.zero_terminal:
            raise ValueError("schedule must be one of betas that does not end in pure noise, such as constant")
        check_saved(self.schedule, self.prediction_type or TARGET)
        check_steps(self.sample.steps, self.schedule)
        if isinstance(self.condition, NoConfig) and self.sample.guidance_scale != 1:
            raise ValueError("sample.guidance_scale needs a condition to guide to; leave it out, or give a condition")
        return self

    @property
    def sample_guidance(self) -> float:
        """Guidance scale with which the run evaluates its samples; 1: no guidance."""
        return self.sample.guidance_scale
