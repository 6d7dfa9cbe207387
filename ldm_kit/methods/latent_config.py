"""Config of latent diffusion, with checks for settings that contradict each other."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from ldm_kit.config import Config
from ldm_kit.diffusion.likelihood import VarianceType
from ldm_kit.diffusion.loss import LossName
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.methods.lora_config import LoraConfig
from ldm_kit.methods.run_config import INIT, ConditionedRun, NoisedRun, check_saved, check_steps
from ldm_kit.models.condition_options import check_level
from ldm_kit.models.flow_shift import SHIFTS
from ldm_kit.models.sampler_options import GuidanceRange, SamplerOptions, check_interval, check_scale
from ldm_kit.models.saved_sampling import GUIDANCE, SavedSampling
from ldm_kit.nets.unet import UNetConfig
from ldm_kit.solvers.table import SamplerName
from ldm_kit.training.muon import MIN_SIDE


class SampleConfig(SamplerOptions):
    """Settings with which a run samples pictures during training; the saved model samples with them by default."""

    prompts: tuple[str, ...] = Field(
        default=(), description="prompts or class names to sample; empty: captions or classes from the data set"
    )
    solver: SamplerName = Field(default="dpm++", description="sampler")


class GuidanceConfig(Config):
    """Settings of a network that takes the guidance scale as input and is trained to predict the guided output."""

    max_scale: float = Field(default=8.0, gt=1, description="greatest guidance scale; the least is 1, no guidance")
    interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="shares of time, LOW and HIGH, between which the training is guided; 0 is clean",
    )
    width: int = Field(
        default=256, ge=4, multiple_of=2, description="sinusoids that embed the scale (diffusers: time_cond_proj_dim)"
    )
    base: str | None = Field(
        default=None,
        min_length=1,
        description="a trained model to start from, its folder or its run's, of the same networks but for the scale; "
        "null: from random weights",
    )
    target: Literal["model", "base"] = Field(
        default="model",
        description="whose guided output is learned: that of model, the network in training itself, or of base, frozen",
    )

    @field_validator("interval")
    @classmethod
    def _rising_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        return check_interval(interval)

    @property
    def saved(self) -> SavedSampling:
        """Guidance scales and times that the network is trained on, in the form that `sampling.json` stores."""
        return SavedSampling({GUIDANCE: self.model_dump(mode="json", include={*GuidanceRange._fields})})


class LatentRun(ConditionedRun, NoisedRun):
    """Config of a run that trains a denoiser of latents or, without an autoencoder, of pixels."""

    combines: ClassVar[bool] = True
    takes_buckets: ClassVar[bool] = True
    masks: ClassVar[bool] = True
    takes_range: ClassVar[bool] = True

    method: Literal["latent"] = Field(default="latent", description="diffusion of latents, or of pixels")
    init: str | None = INIT
    lora: LoraConfig | None = Field(
        default=None,
        description="LoRA: train small matrices beside the frozen weights of init; null: train all weights",
    )
    unet: UNetConfig
    prediction_type: PredictionType = Field(
        validation_alias=AliasChoices("prediction_type", "target"), default="v", description="what the network predicts"
    )
    min_snr: float | None = Field(default=None, gt=0, description="gamma of min-SNR weighting; null: no weighting")
    variance: VarianceType = Field(
        default="small",
        description="variance of the ancestral steps (ddpm): small, the posterior's; large, beta; learned_range, which "
        "the network predicts between the two, in twice the output channels",
    )
    loss: LossName = Field(
        default="simple",
        description="simple: squared error of the prediction; vlb: the variational bound alone; hybrid: both, where "
        "the bound trains the variance alone (the default for learned_range)",
    )
    vb_weight: float = Field(
        default=1e-3,
        gt=0,
        description="hybrid: weight of the whole bound, a sum of T terms; a step draws one of them and multiplies by T",
    )
    guidance: GuidanceConfig | None = Field(
        default=None,
        description="the guidance scale as an input of the network: sampling takes one evaluation a step at any scale; "
        "null: classifier-free guidance, two evaluations",
    )
    size_condition: bool = Field(
        default=False,
        description="the network takes each picture's original size, crop and size, as SDXL does; needs data.buckets",
    )
    sample: SampleConfig = SampleConfig()

    @property
    def sample_guidance(self) -> float:
        """Guidance scale with which the run evaluates its samples; 1: no guidance."""
        return self.sample.guidance_scale

    @model_validator(mode="before")
    @classmethod
    def _default_loss(cls, given: Any) -> Any:
        """Return the raw config `given`; if its variance is learned_range and no loss is set, with loss hybrid."""
        if isinstance(given, Mapping) and given.get("variance") == "learned_range":
            return {"loss": "hybrid", **given}
        return given

    @model_validator(mode="after")
    def _check_schedule(self) -> "LatentRun":
        check_steps(self.sample.steps, self.schedule)
        if self.schedule.kind != "flow" and (shift := self.sample._given(SHIFTS)):
            raise ValueError(f"sample.{shift} is for schedule.kind flow, and it is {self.schedule.kind}")
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
        if self.loss != "simple" and getattr(self.data, "alpha", None) == "mask":
            raise ValueError(
                f"data.alpha mask weighs the squared error, not the bound in loss {self.loss}; expected simple"
            )
        return self

    @model_validator(mode="after")
    def _check_guidance(self) -> "LatentRun":
        if self.guidance is None:
            return self
        if self.init is not None and self.guidance.base is not None:
            raise ValueError("init and guidance.base both name weights to start from; expected one of them")
        if self.guidance.target == "base" and self.guidance.base is None:
            raise ValueError("guidance.target is base, but guidance.base names no trained model")
        if not self.condition.members or self.condition_dropout == 0:
            raise ValueError(
                "guidance steers away from the null condition; expected a condition, and a condition_dropout above 0 "
                "that trains the null condition"
            )
        if self.loss != "simple":
            raise ValueError(f"guidance trains the squared error, but loss is {self.loss}; expected simple")
        check_scale(self.sample, GuidanceRange(self.guidance.max_scale, self.guidance.interval), prefix="sample.")
        return self

    @model_validator(mode="after")
    def _check_sample(self) -> "LatentRun":
        if self.autoencoder is not None and self.sample.clip not in ("auto", "none"):
            raise ValueError(
                f"sample.clip {self.sample.clip} is for pixels, but this run denoises latents, which have no range"
            )
        try:
            check_level(self.sample.noise_level, self.condition.picture)
        except ValueError as error:
            raise ValueError(f"sample.{error}") from None
        return self

    @model_validator(mode="after")
    def _check_lora(self) -> "LatentRun":
        if self.lora is not None and self.init is None:
            raise ValueError("lora tunes a trained model, but init names none; expected init: a run or a model")
        return self

    def cautions(self) -> list[str]:
        """Return a warning for each setting without effect, such as Muon for matrices of LoRA."""
        cautions = super().cautions()
        if self.lora is not None and self.optim.muon is not None and self.lora.rank < MIN_SIDE:
            cautions.append(
                f"optim.muon updates matrices with sides of {MIN_SIDE} or more, and those of lora have a side of "
                f"{self.lora.rank}: AdamW trains them all, at optim.lr {self.optim.lr:g}"
            )
        return cautions

    @model_validator(mode="after")
    def _check_sizes(self) -> "LatentRun":
        if self.size_condition and getattr(self.data, "buckets", None) is None:
            raise ValueError("size_condition needs the sizes of the image files, which only data.buckets reads")
        for name, value in (("init", self.init), ("guidance", self.guidance)):
            if self.size_condition and value is not None:
                raise ValueError(f"size_condition does not go with {name}; leave one of them out")
        return self

    @model_validator(mode="after")
    def _check_values(self) -> "LatentRun":
        if getattr(self.data, "range", None) is None:
            return self
        if self.condition.takes_pictures:
            raise ValueError("data.range does not go with pictures as condition, which have 8 bits; leave one out")
        if self.autoencoder is None and self.loss != "simple":
            raise ValueError(f"loss {self.loss} has the bound of pixels of 8 bits; with data.range expected simple")
        return self

    @model_validator(mode="after")
    def _check_shapes(self) -> "LatentRun":
        if getattr(self.data, "buckets", None) is None:
            return self
        kinds = [each.kind for each in self.condition.members if each.reads_pictures]
        kinds += [] if self.condition.picture is None else [self.condition.picture.kind]
        if kinds:
            raise ValueError(f"condition of kind {kinds[0]} is for square pictures; leave data.buckets out")
        return self

    @model_validator(mode="after")
    def _check_saved(self) -> "LatentRun":
        check_saved(self.schedule, self.prediction_type, self.variance)
        return self
