"""Config of the noisy classifier."""

from typing import Literal

from pydantic import Field, model_validator

from ldm_kit.methods.run_config import NoisedRun, check_any_density, check_saved
from ldm_kit.models.classifier import any_target
from ldm_kit.nets.half_unet import HalfUNetConfig
from ldm_kit.training.ema import EmaConfig


class ClassifierRun(NoisedRun):
    """Config of a run that trains a classifier of noised latents or, without an autoencoder, of noised pixels."""

    method: Literal["classifier"] = Field(description="a classifier of noised latents, or of noised pixels")
    net: HalfUNetConfig = HalfUNetConfig()
    ema: EmaConfig = EmaConfig(kind="none")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of a label's weight that is spread over all classes"
    )
    shift: int = Field(
        default=0,
        ge=0,
        description="shift pictures at random by up to so many pixels each way, edges repeated; for pixels alone",
    )

    @model_validator(mode="after")
    def _check_shift(self) -> "ClassifierRun":
        if self.shift and self.autoencoder is not None:
            raise ValueError("shift moves pixels, but latents are cached as they are; leave it 0, or autoencoder out")
        if self.shift >= self.data.resolution:
            raise ValueError(f"shift {self.shift} moves a picture of {self.data.resolution} pixels out of itself")
        check_any_density(self.timestep_sampling)
        check_saved(self.schedule, any_target(self.schedule))
        return self
