"""Configs that every method's own config extends."""

from pydantic import AliasChoices, Field

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
    """Where a run is written, what it is trained on, and how it is optimised.

    A subclass has a field `method` of one literal, the name under which its method is looked up.
    """

    run: str = Field(
        min_length=1, description="the run's own folder: config, checkpoints, logs, pictures, and the finished model/"
    )
    seed: int = Field(default=0, ge=0, description="addresses every random choice of the run")
    data: DataConfig = Field(description="data set; its key `source` names the kind")
    flip: bool = Field(default=False, description="mirror half of the pictures left to right")
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = Field(description="steps, batch size, checkpoints and precision")
    log: LogConfig = LogConfig()

    def cautions(self) -> list[str]:
        """Return a sentence on each setting that never takes effect in a run of this length; they are no mistakes.

        A run that is shortened for a trial should not be refused for a warm-up that was meant for the whole one.
        """
        optimisers = {name: value for name, value in self if isinstance(value, OptimConfig)}
        return [
            f"{name}.warmup is {optim.warmup}, but the run has {self.train.steps} steps: its learning rate never gets "
            f"beyond {self.train.steps / optim.warmup:.0%} of {name}.lr"
            for name, optim in optimisers.items()
            if optim.warmup > self.train.steps
        ]


class NoisedRun(RunConfig):
    """A run on noised latents, or on noised pixels."""

    autoencoder: str | None = Field(default=None, description="folder of a trained autoencoder; null: diffuse pixels")
    latents: str | None = Field(
        default=None, description="folder of the latent cache; null: chosen by what the latents depend on"
    )
    schedule: ScheduleConfig = ScheduleConfig()
    timestep_sampling: TimestepSamplingConfig = Field(
        default=TimestepSamplingConfig(),
        validation_alias=AliasChoices("timestep_sampling", "times"),
        description="density of training times",
    )


def untrained_null(scale: float, dropout: float, conditional: bool) -> list[str]:
    """Return the caution of a run that is to be sampled with guidance, but never trains its null condition."""
    if not conditional or dropout > 0 or scale == 1:
        return []
    return [
        f"sample.guidance_scale is {scale:g}, but condition_dropout is 0, so that the null condition is never trained: "
        "the model is sampled without guidance"
    ]


def check_any_density(sampling: TimestepSamplingConfig) -> None:
    """Check that a density of training times needs no variational bound, for methods that have none.

    Raises:
        ValueError: density loss_second_moment, which weighs times by the terms of a bound.
    """
    if sampling.density == "loss_second_moment":
        raise ValueError(
            "timestep_sampling.density loss_second_moment is for a bound; expected uniform or logit_normal"
        )


def check_steps(steps: int, schedule: ScheduleConfig) -> None:
    """Check that sampling visits no more times than there are.

    Raises:
        ValueError: more sampling steps than training times.
    """
    if steps > schedule.num_train_timesteps:
        raise ValueError(
            f"sample asks for {steps} steps, but schedule.num_train_timesteps is only {schedule.num_train_timesteps}"
        )


def check_saved(schedule: ScheduleConfig, prediction_type: PredictionType, variance: VarianceType = "small") -> None:
    """Check before training that the trained model can be saved, by building its scheduler.

    Raises:
        ValueError: the network cannot predict this under that schedule, or diffusers cannot express the combination.
    """
    from ldm_kit.solvers.scheduler_config import saved_scheduler  # slow to import

    try:
        saved_scheduler(schedule, prediction_type, variance)
    except UserError as error:
        raise ValueError(f"the model could not be saved: {error}") from None


def method_name(config: RunConfig) -> str:
    """Return the name of the method that a config is for."""
    return config.model_dump(include={"method"})["method"]
