"""Config of latent diffusion, with checks for settings that contradict each other."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator

from ldm_kit.diffusion.likelihood import VarianceType
from ldm_kit.diffusion.loss import LossName
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.methods.run_config import ConditionedRun, NoisedRun, check_saved, check_steps
from ldm_kit.models.sampler_options import SamplerOptions
from ldm_kit.nets.unet import UNetConfig
from ldm_kit.solvers.table import SamplerName


class SampleConfig(SamplerOptions):
    """Settings with which a run samples pictures during training; the saved model samples with them by default."""

    prompts: tuple[str, ...] = Field(default=(), description="what to sample; empty: captions or classes of the set")
    solver: SamplerName = Field(default="dpm++", description="sampler")


class LatentRun(ConditionedRun, NoisedRun):
    """Config of a run that trains a denoiser of latents or, without an autoencoder, of pixels."""

    method: Literal["latent"] = Field(default="latent", description="diffusion of latents, or of pixels")
    unet: UNetConfig
    prediction_type: PredictionType = Field(
        validation_alias=AliasChoices("prediction_type", "target"), default="v", description="what the network predicts"
    )
    min_snr: float | None = Field(default=None, gt=0, description="gamma of min-SNR weighting; null: plain")
    variance: VarianceType = Field(
        default="small",
        description="of the ancestral steps (ddpm): small, the posterior's; large, beta; learned_range, where the "
        "network says between the two, with twice the output channels",
    )
    loss: LossName = Field(
        default="simple",
        description="simple: squared error of the target; vlb: the variational bound alone; hybrid: both, the bound "
        "training the variance alone (the default for learned_range)",
    )
    vb_weight: float = Field(
        default=1e-3,
        gt=0,
        description="hybrid: weight of the whole bound, a sum of T terms; a step draws one of them and multiplies by T",
    )
    sample: SampleConfig = SampleConfig()

    @property
    def sample_guidance(self) -> float:
        """Guidance scale with which the run evaluates its samples; 1: no guidance."""
        return self.sample.guidance_scale

    @model_validator(mode="before")
    @classmethod
    def _default_loss(cls, given: Any) -> Any:
        """Return the raw config `given` with loss hybrid, if its variance is learned_range and it sets no loss."""
        if isinstance(given, Mapping) and given.get("variance") == "learned_range":
            return {"loss": "hybrid", **given}
        return given

    @model_validator(mode="after")
    def _check_schedule(self) -> "LatentRun":
        check_steps(self.sample.steps, self.schedule)
        self.schedule.check_target(self.prediction_type)
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> "LatentRun":
        learned = self.variance == "learned_range"
        if self.prediction_type == "flow" and (learned or self.loss != "simple"):
            asked = "variance learned_range" if learned else f"loss {self.loss}"
            raise ValueError(
                f"{asked} needs the variational bound of a variance-preserving schedule; the flow schedule has none"
            )
        if learned and self.loss == "simple":
            raise ValueError("loss simple never trains the variance that learned_range learns; expected hybrid or vlb")
        if self.loss == "hybrid" and not learned:
            raise ValueError(f"loss hybrid trains a learned variance, but variance is {self.variance}, which is fixed")
        if self.loss == "vlb" and self.min_snr is not None:
            raise ValueError("min_snr weighs the squared error, which loss vlb has not; leave it out")
        return self

    @model_validator(mode="after")
    def _check_saved(self) -> "LatentRun":
        check_saved(self.schedule, self.prediction_type, self.variance)
        return self
