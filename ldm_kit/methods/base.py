"""What every training run's config has, whichever method it trains."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import AliasChoices, Field
from torch import Tensor, nn

from autoencoder.codebook import itself
from ldm_kit.config import Config
from ldm_kit.data.sources import DataConfig
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.diffusion.timesteps import TimestepSamplingConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.log import LogConfig
from ldm_kit.training.loop import TrainConfig
from ldm_kit.training.optim import OptimConfig


class RunConfig(Config):
    """Where a run lives, what it sees, and how it is optimised."""

    run: str = Field(
        min_length=1, description="the run's own folder: config, checkpoints, logs, pictures, and the finished model/"
    )
    seed: int = Field(default=0, ge=0, description="addresses every random choice of the run")
    data: DataConfig
    flip: bool = Field(default=False, description="mirror half of the pictures left to right")
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig
    log: LogConfig = LogConfig()


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


@dataclass(frozen=True)
class Collectives:
    """What a task needs of the other processes; by default there are none."""

    average: Callable[[Tensor], Tensor] = itself
    total: Callable[[Tensor], Tensor] = itself
    share: Callable[[Tensor], Tensor] = itself  # what the main process has


@contextlib.contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Within, the modules are in evaluation mode; each returns to the mode it was in."""
    were = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, training in zip(modules, were, strict=True):
            module.train(training)
