"""A package of somebody else's: a method that knows nothing but the public rooms of ldm_kit.

tests/test_extending.py installs it beside a dist-info folder whose entry points name what is below.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_kit.data.batches import PictureBatches
from ldm_kit.data.images import Split, to_bytes
from ldm_kit.diffusion import rng, schedule
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.respacing import timesteps
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods.base import Grid, Method, TrainingData
from ldm_kit.methods.run_config import RunConfig
from ldm_kit.solvers.samplers import sample
from ldm_kit.training.task import LossTerm
from ldm_kit.viz.grid import grid


class ToyRun(RunConfig):
    """A linear denoiser of pixels."""

    method: Literal["toy"] = Field(description="a linear denoiser")
    schedule: ScheduleConfig = ScheduleConfig(kind="cosine", num_train_timesteps=50)
    solver: str = "ddim"


class Toy(Method[ToyRun]):
    """One convolution that predicts x_0 from x_t."""

    Config = ToyRun

    @classmethod
    def build(cls, config: ToyRun, data: Split, device: torch.device) -> "Toy":
        """Build the convolution and the batches of pictures."""
        batches = PictureBatches(data.train, config.seed, config.flip)
        heldout = PictureBatches(data.heldout, config.seed) if len(data.heldout) else None
        networks: dict[str, nn.Module] = {"toy": nn.Conv2d(data.train.channels, data.train.channels, 5, padding=2)}
        table = schedule.build(config.schedule)
        return cls(
            config, TrainingData(data, batches, heldout), modules=networks, ema_modules={**networks}, schedule=table
        )

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Yield the squared error of x_0 at uniform times."""
        u = rng.uniform(self.config.seed, "time", batch["position"])
        yield "toy", self.heldout_losses(batch, (u * len(self.schedule)).long(), self.config.seed).mean(), {}

    def heldout_losses(self, batch: Mapping[str, Any], t: Tensor, seed: int) -> Tensor:
        """Compute the squared error [B] of x_0 at times t [B]."""
        eps = rng.normal(seed, "noise", batch["position"], batch["x"].shape[1:])
        x_0 = self.ddp_modules["toy"](self.schedule.add_noise(batch["x"], eps, t).float())
        return (x_0 - batch["x"]).square().flatten(1).mean(1)

    @torch.no_grad()
    def samples(self) -> Grid:
        """Sample four pictures from seeds 0 to 3."""
        denoiser = NetworkDenoiser(lambda x, t, cond: self.modules["toy"](x.float()), self.schedule, "x0")
        pictures = self.data.train
        start = rng.initial_noise(range(4), (pictures.channels, pictures.resolution, pictures.resolution))
        times = timesteps(len(self.schedule), 5)
        *_, last = sample(self.config.solver, denoiser, start.to(self.device), times, None, seeds=range(4))
        return Grid(grid(to_bytes(last.x).cpu(), 4))

    def save(self, folder: Path) -> None:
        """Save the convolution."""
        save_file(self.modules["toy"].state_dict(), folder / "toy.safetensors")
