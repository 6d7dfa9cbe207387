"""Config of the method `consistency`, with checks for settings that contradict each other or the mode."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from autoencoder.perceptual import PerceptualConfig
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.methods.latent_config import LatentRun, SampleConfig
from ldm_kit.methods.run_config import ConditionedRun, NoisedRun, check_any_density, check_saved, check_steps
from ldm_kit.models.consistency_names import SOLVER
from ldm_kit.models.sampler_options import GuidanceRange, check_scale
from ldm_kit.nets.unet import UNetConfig
from ldm_kit.solvers.table import SamplerName

_OF_BASE = ("autoencoder", "condition", "unet", "prediction_type")  # keys that only mode train has
_OF_MODE: Mapping[str, tuple[str, ...]] = {  # keys that only one mode has
    "tune": ("q", "stages"),
    "distill": ("levels", "teacher_step"),
    "train": ("curriculum", "s_0", "s_1", "log_sigma"),
}
_EARLIER_DEFAULTS: Mapping[str, Any] = {"stages": 8}
_LATENT = (*ConditionedRun.model_fields, *NoisedRun.model_fields, "unet", "prediction_type")  # in both configs


class FewStepConfig(SampleConfig):
    """Settings with which a run samples pictures during training; the saved model samples with them by default."""

    solver: SamplerName = Field(default=SOLVER, description="sampler")
    steps: int = Field(default=2, ge=1, description="sampling steps")
    guidance_scale: float = Field(
        default=1.0,
        ge=0,
        description="guidance at sampling; 1, as guidance is trained in; a scale in `guidance` if that is a range",
    )


class ConsistencyRun(ConditionedRun, NoisedRun):
    """Config of a run that trains a consistency model: by tuning or distilling a trained model, or a new network."""

    method: Literal["consistency"] = Field(description="sampling in one step or a few")
    mode: Literal["tune", "distill", "train"] = Field(
        default="tune",
        description="tune: a trained model by ECT; distill: a trained model with itself as frozen teacher (CD, LCM); "
        "train: a new model by CT or iCT",
    )
    base: str | None = Field(
        default=None,
        min_length=1,
        description="tune, distill: the trained model's folder, its run's, or that of a checkpoint; never changed",
    )
    unet: UNetConfig | None = Field(default=None, description="train: the network")
    prediction_type: PredictionType = Field(default="v", description="train: what the network predicts")
    guidance: float | tuple[float, float] = Field(
        default=1.0,
        description="tune, distill: scale of the guidance that is trained in, 1 or more; LOW and HIGH: scales between "
        "them are drawn, and the network takes the scale as input",
    )
    q: float = Field(default=2.0, gt=1, description="tune: factor by which the gap of levels shrinks with each stage")
    stages: int = Field(
        default=5,
        ge=1,
        description="tune: stages of equal length; the last gap of levels is 1 to 5 times q^-stages of the level, with "
        "q 256 and 1 stage from the first step (ECT's recipe of about 8,000 steps); the gradient of loss huber grows "
        "by q with each stage, so that 8 stages of a short tuning diverge",
    )
    levels: int = Field(default=50, ge=1, description="distill: steps of the teacher from noise to data")
    teacher_step: Literal["ddim", "heun"] = Field(default="ddim", description="distill: solver of the teacher's step")
    curriculum: Literal["ct", "ict"] = Field(default="ict", description="train: how the number of levels grows")
    s_0: int | None = Field(default=None, ge=2, description="train: intervals at the start; ct 2, ict 10")
    s_1: int | None = Field(
        default=None, ge=2, description="train: intervals at the end; ct 150, ict 1280, at most the training timesteps"
    )
    log_sigma: tuple[float, float] = Field(
        default=(-1.1, 2.0), description="ict: mean and deviation of ln sigma, by which levels are drawn"
    )
    loss: Literal["huber", "l1", "l2", "perceptual"] = Field(
        default="huber", description="metric; huber: pseudo-Huber; perceptual: LPIPS or the like, for models of pixels"
    )
    perceptual: PerceptualConfig | None = Field(
        default=None,
        description="perceptual: which network; Song et al. take {spec: lpips, net: vgg, minimum_size: 224}",
    )
    huber_c: float | None = Field(default=None, gt=0, description="huber: its c; null: 0.00054 sqrt(D)")
    weight: Literal["uniform", "inverse_gap"] | None = Field(
        default=None, description="of a sample; null: inverse_gap (of its levels) for tune and ict, else uniform"
    )
    target_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="decay of the target network's average; 0: the network itself; null: 0.95 for distill, mu(k) with "
        "mu_0 0.95 for ct, else 0",
    )
    sample: FewStepConfig = FewStepConfig()

    @property
    def needs_captions(self) -> bool:
        """Whether the run loads captions and classes; always in modes tune and distill, as the base may need them."""
        return self.mode != "train" or super().needs_captions

    @property
    def sample_guidance(self) -> float:
        """Scale of classifier-free guidance when the run samples; 1 (none) if the network takes the scale as input."""
        return 1.0 if isinstance(self.guidance, tuple) else self.sample.guidance_scale

    @property
    def guidance_range(self) -> GuidanceRange:
        """Least and greatest guidance scale that the network learns to apply, from `guidance`."""
        low, high = self.guidance if isinstance(self.guidance, tuple) else (self.guidance, self.guidance)
        return GuidanceRange(max_scale=high, min_scale=low)

    @property
    def intervals(self) -> tuple[int, int]:
        """Numbers of intervals between noise levels at start and end of a training in mode train (s_0, s_1 of CT)."""
        first, last = (2, 150) if self.curriculum == "ct" else (10, 1280)
        most = self.schedule.num_train_timesteps - 1
        first = min(first, most) if self.s_0 is None else self.s_0
        return first, (max(first, min(last, most)) if self.s_1 is None else self.s_1)

    @property
    def decay(self) -> float | None:
        """Decay of the target network, an average of student weights; 0: no average; None: CT's mu(k) at step k."""
        if self.target_decay is None and self.mode == "train" and self.curriculum == "ct":
            return None
        return (0.95 if self.mode == "distill" else 0.0) if self.target_decay is None else self.target_decay

    @property
    def weighted(self) -> bool:
        """Whether a sample's loss weight is 1 / (difference of its two noise levels), as in iCT and ECT, or 1."""
        by_gap = self.mode == "tune" or (self.mode == "train" and self.curriculum == "ict")
        return by_gap if self.weight is None else self.weight == "inverse_gap"

    def latent_run(self) -> LatentRun:
        """Return the config of method `latent` with which mode train builds its data, network and schedule."""
        sample = SampleConfig(prompts=self.sample.prompts, steps=self.sample.steps, guidance_scale=1.0)
        return LatentRun(**{name: getattr(self, name) for name in _LATENT}, sample=sample)

    @property
    def idle_for_codes(self) -> str | None:
        """Name of the first setting that was changed but has no effect if the base is a DiffAE; None: there is none."""
        if not self._is_default("condition_dropout"):
            return "condition_dropout"
        defaults = FewStepConfig()
        given = [name for name, value in self.sample if name != "steps" and value != getattr(defaults, name)]
        return f"sample.{given[0]}" if given else None

    @model_validator(mode="before")
    @classmethod
    def _sample_within_the_range(cls, given: Any) -> Any:
        """Return the raw config; if `guidance` is a range, an absent sampling scale is set to the range's middle."""
        match given:
            case {"guidance": [float() | int() as low, float() | int() as high]}:
                sample = given.get("sample") or {}
                if isinstance(sample, Mapping) and "guidance_scale" not in sample:
                    return {**given, "sample": {**sample, "guidance_scale": (low + high) / 2}}
        return given

    @model_validator(mode="after")
    def _check_mode(self) -> "ConsistencyRun":
        given = self.model_fields_set - {name for name in type(self).model_fields if self._is_default(name)}
        if self.mode == "train":
            if self.base is not None:
                raise ValueError("mode train starts from nothing; leave base out, or take mode tune or distill")
            if self.unet is None:
                raise ValueError("mode train needs unet, the network")
            if self.guidance != 1:
                raise ValueError("guidance is that of a teacher, and mode train has none; leave it out")
        elif self.base is None:
            raise ValueError(f"mode {self.mode} needs base, the trained model" + self._teacher)
        elif idle := [name for name in _OF_BASE if name in given]:
            raise ValueError(f"{idle[0]} is that of the base; leave it out")
        for mode, names in _OF_MODE.items():
            if mode != self.mode and (idle := [name for name in names if name in given]):
                raise ValueError(f"{idle[0]} is for mode {mode}, but mode is {self.mode}; leave it out")
        return self

    def _is_default(self, name: str) -> bool:
        """Return whether a setting has its default, or that of an earlier version, which old runs' configs hold."""
        return getattr(self, name) in (type(self).model_fields[name].default, _EARLIER_DEFAULTS.get(name))

    @property
    def _teacher(self) -> str:
        return " that is its teacher" if self.mode == "distill" else ""

    @model_validator(mode="after")
    def _check_numbers(self) -> "ConsistencyRun":
        check_any_density(self.timestep_sampling)
        high, _, low = self.guidance_range
        if not (1 <= low <= high) or (isinstance(self.guidance, tuple) and low == high):
            raise ValueError(f"guidance is {self.guidance}; expected a scale of 1 or more, or two, LOW below HIGH")
        if isinstance(self.guidance, tuple):
            check_scale(self.sample, self.guidance_range, prefix="sample.")
        if (self.perceptual is None) != (self.loss != "perceptual"):
            raise ValueError(f"loss is {self.loss}; loss perceptual and the section perceptual need each other")
        if self.perceptual is not None and self.perceptual.spec == "none":
            raise ValueError("perceptual.spec is none, with which nothing is compared; expected lpips or timm:NAME")
        if self.huber_c is not None and self.loss != "huber":
            raise ValueError(f"huber_c is for loss huber, but loss is {self.loss}; leave it out")
        if self.mode == "distill" and self.sample.steps > self.levels:
            raise ValueError(f"sample.steps is {self.sample.steps}, more than the {self.levels} levels of the teacher")
        return self

    @model_validator(mode="after")
    def _check_levels(self) -> "ConsistencyRun":
        if self.mode != "train":
            return self
        (first, last), total = self.intervals, self.schedule.num_train_timesteps
        if not first <= last < total:
            raise ValueError(
                f"s_0 {first} and s_1 {last} make up to {last + 1} noise levels out of {total} training timesteps; "
                f"expected s_0 <= s_1 < {total}"
            )
        check_steps(self.sample.steps, self.schedule)
        self.schedule.check_target(self.prediction_type)
        check_saved(self.schedule, self.prediction_type)
        return self
