"""Base classes of the methods' configs, and checks that several of these configs share."""

from typing import ClassVar, Self

from pydantic import AliasChoices, Field, model_validator

from conditioning.factory import ConditioningConfig
from conditioning.none import NoConfig
from ldm_kit.config import Config, UserError
from ldm_kit.data.sources import DataConfig
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.diffusion.timesteps import TimestepSamplingConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.log import LogConfig
from ldm_kit.training.loop import TrainConfig
from ldm_kit.training.optim import OptimConfig


class RunConfig(Config):
    """Settings that the config of every method has: run folder, data, optimiser, EMA, training and logging.

    `optim` sets the optimiser, `ema` the averages of the weights, and `log` logging and evaluation. A subclass adds the
    field `method`, a Literal with the method's name as its only value.
    """

    run: str = Field(
        min_length=1, description="the run's own folder: config, checkpoints, logs, pictures, and the finished model/"
    )
    seed: int = Field(default=0, ge=0, description="seed of all random numbers of the run")
    data: DataConfig = Field(description="data set; the key `source` names its kind")
    flip: bool = Field(default=False, description="mirror half of the pictures left to right")
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = Field(description="steps, batch size, checkpoints and precision")
    log: LogConfig = LogConfig()

    masks: ClassVar[bool] = False
    """Whether the method's loss counts pixels by the alpha of pictures (`data.alpha: mask`)."""

    @model_validator(mode="after")
    def _check_alpha(self) -> Self:
        if not self.masks and getattr(self.data, "alpha", None) == "mask":
            raise ValueError(
                f"data.alpha mask weighs the loss of methods autoencoder and latent, not that of {method_name(self)}; "
                "expected flatten"
            )
        return self

    @property
    def needs_captions(self) -> bool:
        """Whether the run uses captions or classes; if not, a picture whose caption cannot be read is used too."""
        return True

    takes_range: ClassVar[bool] = False
    """Whether the method trains on values of a range (`data.range`): of 16 bits or floats, with any channels."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.takes_range and getattr(self.data, "range", None) is not None:
            raise ValueError(
                f"data.range is for methods autoencoder and latent, and {method_name(self)} trains on pictures of 8 "
                "bits; leave it out"
            )
        return self

    takes_buckets: ClassVar[bool] = False
    """Whether the method trains on pictures of several shapes."""

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        buckets = getattr(self.data, "buckets", None)
        if buckets is not None and not self.takes_buckets:
            raise ValueError("data.buckets is for method latent, and other methods train on squares; leave it out")
        if buckets is not None:
            buckets.sizes(self.data.resolution)
        return self

    def cautions(self) -> list[str]:
        """Return a warning for each setting that has no effect in a run of `train.steps` steps.

        Such settings are no errors: a run that is shortened for a trial may keep the warm-up of the full run.
        """
        optimisers = {name: value for name, value in self if isinstance(value, OptimConfig)}
        return [
            f"{name}.warmup is {optim.warmup}, but the run has {self.train.steps} steps: its learning rate never gets "
            f"beyond {self.train.steps / optim.warmup:.0%} of {name}.lr"
            for name, optim in optimisers.items()
            if optim.warmup > self.train.steps
        ]


INIT = Field(
    default=None,
    min_length=1,
    description="trained weights to start from: a run, a saved model, a checkpoint, a diffusers folder, or "
    "owner/name or owner/name@COMMIT on the Hub; null: random weights",
)  # the field `init` of the methods that can start from trained weights


class NoisedRun(RunConfig):
    """Config of a run that diffuses the latents of an autoencoder, or pixels.

    `schedule` sets the noise schedule.
    """

    autoencoder: str | None = Field(default=None, description="folder of a trained autoencoder; null: diffuse pixels")
    latents: str | None = Field(
        default=None,
        description="folder of the latent cache; null: one named by a hash of pictures, autoencoder and `flip`",
    )
    schedule: ScheduleConfig = ScheduleConfig()
    timestep_sampling: TimestepSamplingConfig = Field(
        default=TimestepSamplingConfig(),
        validation_alias=AliasChoices("timestep_sampling", "times"),
        description="density from which training timesteps are drawn",
    )

    @model_validator(mode="after")
    def _check_shift(self) -> Self:
        check_shift(self.timestep_sampling, self.schedule)
        return self


class ConditionedRun(RunConfig):
    """Config of a run that trains a denoiser under a condition (text or class), or without one.

    With a condition, a share of the samples is trained under the null condition, for classifier-free guidance.
    """

    condition: ConditioningConfig = NoConfig()
    condition_dropout: float = Field(
        validation_alias=AliasChoices("condition_dropout", "condition_drop"),
        default=0.1,
        ge=0,
        lt=1,
        description="share of samples trained on the null condition",
    )

    combines: ClassVar[bool] = False
    """Whether the method takes a picture as condition, and several conditions."""

    @model_validator(mode="after")
    def _check_condition(self) -> Self:
        if not self.combines and (self.condition.takes_pictures or len(self.condition.members) > 1):
            raise ValueError(f"condition of kind {self.condition.kind} is for method latent; expected a single one")
        if self.flip and any(each.reads_pictures for each in self.condition.members):
            raise ValueError("flip must be false: the embedding of an image is that of the picture as it is")
        return self

    @property
    def needs_captions(self) -> bool:
        """Whether the condition is made of captions or classes."""
        return bool(self.condition.members)

    @property
    def sample_guidance(self) -> float:
        """Guidance scale with which the run evaluates its samples; 1: no guidance."""
        raise NotImplementedError

    def cautions(self) -> list[str]:
        """Return a warning for each setting without effect, such as guidance with an untrained null condition."""
        scale, warnings = self.sample_guidance, super().cautions()
        if scale != 1 and self.condition_dropout == 0 and self.needs_captions:
            warnings.append(
                f"sample.guidance_scale is {scale:g}, but condition_dropout is 0, so that the null condition is never "
                "trained: the model is sampled without guidance"
            )
        return warnings


def check_shift(sampling: TimestepSamplingConfig, schedule: ScheduleConfig) -> None:
    """Check that training times are shifted under the flow schedule alone, and for a density that follows no losses.

    Raises:
        ValueError: there is a shift, but `schedule` is not flow, or the density is loss_second_moment.
    """
    if sampling.shift != 1 and (schedule.kind != "flow" or sampling.density == "loss_second_moment"):
        raise ValueError(
            f"timestep_sampling.shift is {sampling.shift:g}, which is for schedule.kind flow and a density of times "
            f"alone; got schedule {schedule.kind} and density {sampling.density}"
        )


def check_any_density(sampling: TimestepSamplingConfig) -> None:
    """Check that the timestep density `sampling` needs no variational bound, for methods whose loss has none.

    Raises:
        ValueError: the density is loss_second_moment, which follows the bound's terms at each timestep.
    """
    if sampling.density == "loss_second_moment":
        raise ValueError(
            "timestep_sampling.density loss_second_moment is for a bound; expected uniform or logit_normal"
        )


def check_steps(steps: int, schedule: ScheduleConfig) -> None:
    """Check that a sampler's `steps` are at most as many as the training timesteps of `schedule`.

    Raises:
        ValueError: there are more sampling steps than training timesteps.
    """
    if steps > schedule.num_train_timesteps:
        raise ValueError(
            f"sample asks for {steps} steps, but schedule.num_train_timesteps is only {schedule.num_train_timesteps}"
        )


def check_saved(schedule: ScheduleConfig, prediction_type: PredictionType, variance: VarianceType = "small") -> None:
    """Check before training that the trained model can be saved, by building its scheduler.

    Args:
        schedule: noise schedule of the training.
        prediction_type: what the network predicts.
        variance: variance of the reverse steps.

    Raises:
        ValueError: the schedule does not allow the prediction type, or diffusers cannot express the combination.
    """
    from ldm_kit.solvers.scheduler_config import saved_scheduler  # slow to import

    try:
        saved_scheduler(schedule, prediction_type, variance)
    except UserError as error:
        raise ValueError(f"the model could not be saved: {error}") from None


def method_name(config: RunConfig) -> str:
    """Return the name of the training method that a config is for, its key `method`."""
    return config.model_dump(include={"method"})["method"]
