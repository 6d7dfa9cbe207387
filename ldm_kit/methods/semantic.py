"""What DiffAE and PDAE train alike: an encoder that sees the picture, and a decoder that sees its noised latent."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_kit.config import Config
from ldm_kit.data.batches import chunks
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.data.latents import Latents
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.diffusion.timesteps import TimestepSamplingConfig, sample_timesteps
from ldm_kit.methods.base import eval_mode
from ldm_kit.methods.inputs import NoisedBatch, noise_batch
from ldm_kit.training.config import TrainConfig
from ldm_kit.training.optim import OptimConfig
from ldm_kit.training.task import LossTerm

HELDOUT_SEED = 20220420  # fixed, so that held-out losses of different runs compare
PLAYER = "semantic"


class ReconstructionConfig(Config):
    """The held-out pictures that a run encodes and decodes while it trains."""

    encode_steps: int = Field(default=100, ge=1, description="DDIM steps from a picture to its noise x_T")
    decode_steps: int = Field(default=20, ge=1, description="DDIM steps back, from inferred or random noise")


class SemanticSettings(Protocol):
    """What the task needs of a run's config."""

    @property
    def seed(self) -> int: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def timestep_sampling(self) -> TimestepSamplingConfig: ...
    @property
    def optim(self) -> OptimConfig: ...


class Measure(Protocol):
    """How far a module's output is from the truth."""

    def __call__(self, out: Any, noise_batch: NoisedBatch, schedule: Schedule, /) -> Tensor:
        """Unweighted errors [B]."""
        ...


class SemanticTask:
    """The training of encoder and decoder as one player, for the loop.

    The module's forward takes (x_t, t, picture in [-1, 1]); both of its parts are averaged.
    """

    def __init__(
        self,
        config: SemanticSettings,
        module: nn.Module,
        averaged: Mapping[str, nn.Module],
        schedule: Schedule,
        measure: Measure,
        weigh: Callable[[Tensor, Schedule], Tensor] | None = None,
    ) -> None:
        """`averaged` has encoder and decoder by folder; `weigh` gives times [B] their weights, by default 1."""
        self.config, self.module, self.parts = config, module, dict(averaged)
        self.schedule, self.measure, self.weigh = schedule, measure, weigh
        self.wrapped: nn.Module = module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Encoder and decoder share one optimiser."""
        return {PLAYER: self.module}

    @property
    def ema_modules(self) -> dict[str, nn.Module]:
        """By component folder of the saved model."""
        return self.parts

    @property
    def optim(self) -> dict[str, OptimConfig]:
        """The run's."""
        return {PLAYER: self.config.optim}

    def set_ddp_modules(self, wrapped: Mapping[str, nn.Module]) -> None:
        """Take the module that DDP wrapped, and bring the tables to its device."""
        self.wrapped = wrapped[PLAYER]
        self.schedule = self.schedule.to(self._device)

    def state(self) -> dict[str, Tensor]:
        """Nothing beside weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """The weighted error; noise and times belong to the position. Logs the plain error where there are weights."""
        config, position = self.config, batch["position"]
        t = sample_timesteps(
            config.timestep_sampling, config.seed, position, config.train.batch_size, len(self.schedule)
        )
        errors = self.errors(batch, t, config.seed, self.wrapped)
        if self.weigh is None:
            yield PLAYER, errors.mean(), {}
            return
        yield PLAYER, (errors * self.weigh(t, self.schedule).to(errors)).mean(), {"error": errors.mean()}

    def errors(self, batch: Mapping[str, Any], t: Tensor, seed: int, module: nn.Module) -> Tensor:
        """Unweighted errors [B] at times t [B], with noise addressed by `seed` and the batch's positions."""
        given = noise_batch(batch, t, seed, self.schedule)
        return self.measure(module(given.x_t, t, batch["picture"]), given, self.schedule)

    @torch.no_grad()
    def heldout_loss(self, latents: Latents, pictures: PictureSet, batch: int = 64) -> float:
        """Mean unweighted error over held-out latents, each at its own fixed time and noise."""
        found: list[Tensor] = []
        with eval_mode(self.module):
            for part in chunks(pictures, batch):
                place = torch.tensor(part)
                t = ((place + 0.5) / len(pictures) * len(self.schedule)).long()
                given = {
                    "mean": latents.mean[place, 0].float(),
                    "logvar": latents.logvar[place, 0].float(),
                    "position": place,
                    "picture": to_unit(pictures.pictures(part)),
                }
                moved = {name: value.to(self._device) for name, value in given.items()}
                found.append(self.errors(moved, t.to(self._device), HELDOUT_SEED, self.module))
        return float(torch.cat(found).double().mean())

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def refuse_aware(timestep_sampling: TimestepSamplingConfig) -> None:
    """Raise ValueError for a density of times that only a variational bound has a use for."""
    if timestep_sampling.density == "loss_second_moment":
        raise ValueError(
            "timestep_sampling.density loss_second_moment is for a bound; expected uniform or logit_normal"
        )
