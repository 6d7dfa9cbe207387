"""What every training run's config has, whichever method it trains."""

from pydantic import Field

from ldm_kit.config import Config
from ldm_kit.data.source import DataConfig
from ldm_kit.training.ema import EmaConfig
from ldm_kit.training.log import LogConfig
from ldm_kit.training.loop import OptimConfig, TrainConfig


class RunConfig(Config):
    """Where a run lives, what it sees, and how it is optimised."""

    run: str = Field(description="the run's own folder: config, checkpoints, logs, pictures, and the finished model/")
    seed: int = Field(0, ge=0, description="addresses every random choice of the run")
    data: DataConfig
    flip: bool = Field(False, description="mirror half of the pictures left to right")
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig
    log: LogConfig = LogConfig()
