"""What DiffAE and PDAE share: an encoder that sees the picture, and a decoder that sees its noised latent."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from conditioning.semantic import SemanticConfig
from ldm_kit.config import Config
from ldm_kit.data.batches import spread
from ldm_kit.data.code_batches import PicturedLatents
from ldm_kit.data.images import Split
from ldm_kit.diffusion.prediction import cast_like
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.diffusion.timesteps import sample_timesteps
from ldm_kit.methods.base import Grid, Method, TrainingData, eval_mode, millions
from ldm_kit.methods.inputs import FirstStage, NoisedBatch, noise_batch
from ldm_kit.methods.run_config import NoisedRun
from ldm_kit.models import codes
from ldm_kit.models.codes import Encoder
from ldm_kit.models.decoders import Decoder
from ldm_kit.models.saved_sampling import RECONSTRUCTION, SavedSampling
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.training.precision import autocast
from ldm_kit.training.task import LossTerm
from ldm_kit.viz.grid import columns_for, enlargement, grid

NAME = "semantic"
_RECONSTRUCTION = ("heldout_mse_inferred", "heldout_mse_random")  # by the noise that pictures are decoded from


class ReconstructionConfig(Config):
    """The held-out pictures that a run encodes and decodes while it trains."""

    encode_steps: int = Field(default=100, ge=1, description="DDIM steps from a picture to its noise x_T")
    decode_steps: int = Field(default=20, ge=1, description="DDIM steps back, from inferred or random noise")


class SemanticRun(NoisedRun):
    """A semantic encoder and what decodes its codes."""

    encoder: SemanticConfig
    sample: ReconstructionConfig = ReconstructionConfig()


R = TypeVar("R", bound=SemanticRun)


class CodedNetwork(nn.Module):
    """Encoder and decoding network as one module, so that DDP around it sees every gradient.

    Called with noisy latents [B, Z, h, w], times [B] and pictures [B, C, R, R] in [-1, 1].
    """

    encoder: Encoder
    folder: ClassVar[str]  # of the decoding network in a saved model, and its name here

    @property
    def network(self) -> nn.Module:
        """The network that decodes."""
        return getattr(self, self.folder)


N = TypeVar("N", bound=CodedNetwork)


class SemanticMethod(Method[R], Generic[R, N]):
    """An encoder and a decoder trained together: their error at random times, with one optimiser for both."""

    latent_shape: tuple[int, ...]  # (channels, height, width) of one latent

    def __init__(
        self,
        config: R,
        module: N,
        schedule: Schedule,
        data: TrainingData | None = None,
    ) -> None:
        ema_modules: dict[str, nn.Module] = {"encoder": module.encoder, module.folder: module.network}
        super().__init__(config, data, modules={NAME: module}, ema_modules=ema_modules, schedule=schedule)
        self.module = module

    @abstractmethod
    def decoder(self) -> Decoder:
        """Return the decoder with the current weights, as the saved model has it."""

    @abstractmethod
    def error(self, output: Any, batch: NoisedBatch) -> Tensor:
        """Compute unweighted errors [B] of the module's output."""

    def weight(self, t: Tensor) -> Tensor | None:
        """Compute the loss weights of times [B]; None: all 1."""
        return None

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Yield the weighted error; noise and times belong to the position. Logs the plain error if it is weighted."""
        config, position = self.config, batch["position"]
        size, times = config.train.batch_size, len(self.schedule)
        t = sample_timesteps(config.timestep_sampling, config.seed, position, size, times)
        errors, weight = self.errors(batch, t, config.seed, self.ddp_modules[NAME]), self.weight(t)
        if weight is None:
            yield NAME, errors.mean(), {}
            return
        yield NAME, (errors * cast_like(weight, errors)).mean(), {"error": errors.mean()}

    def errors(self, batch: Mapping[str, Any], t: Tensor, seed: int, module: nn.Module) -> Tensor:
        """Compute unweighted errors [B] at times t [B], with noise addressed by `seed` and the batch's positions."""
        noised = noise_batch(batch, t, seed, self.schedule)
        return self.error(module(noised.x_t, t, batch["picture"]), noised)

    def heldout_losses(self, batch: Mapping[str, Any], t: Tensor, seed: int) -> Tensor:
        """Compute unweighted errors [B] of a held-out batch at times t [B]."""
        return self.errors(batch, t, seed, self.module)

    def model(self) -> SemanticModel:
        """Return the model with the current weights; the statistics of its codes are not measured yet."""
        config, statistics = (
            self.config,
            (torch.zeros(self.config.encoder.z_width), torch.ones(self.config.encoder.z_width)),
        )
        saved = SavedSampling.of(RECONSTRUCTION, config.sample)
        return SemanticModel(self.module.encoder, self.decoder(), *statistics, saved=saved).to(self.device)

    def evaluate(self, step: int, folder: Path) -> dict[str, float]:
        """Measure the held-out loss and the error of some pictures decoded from inferred and from random noise."""
        model, config = self.model(), self.config.sample
        shown = self.data.heldout if len(self.data.heldout) else self.data.train
        pictures = shown.pictures(spread(len(shown), self.config.log.pictures))
        size = self.eval_batch
        with eval_mode(self.module), autocast(self.device, self.precision):
            z = model.encode(pictures, size)
            inferred = model.decode(z, model.invert(pictures, z, config.encode_steps, size), config.decode_steps, size)
            random = model.decode(z, None, config.decode_steps, size)
            self.metrics = self.heldout_metrics()
        if self.metrics:
            errors = [_mse(decoded, pictures) for decoded in (inferred, random)]
            self.metrics |= dict(zip(_RECONSTRUCTION, errors, strict=True))
        rows = torch.stack([pictures, inferred, random], dim=1).flatten(0, 1)
        captions = ["picture", "inferred noise", "random noise"] * len(pictures)
        image = grid(rows, columns_for(len(rows), 6), enlargement(model.resolution), captions)
        self.write_grid(Grid(image, "decoded"), step, folder)
        return self.metrics

    @classmethod
    def figures(cls, config: R, data: Split | None) -> list[str]:
        """Return the names of what `evaluate` measures."""
        return ["heldout_loss", *_RECONSTRUCTION] if data is None or len(data.heldout) else []

    def save(self, folder: Path) -> None:
        """Measure the statistics of the training set's codes, and save the model."""
        model = self.model()
        z = codes.encode_set(self.module.encoder, self.data.train, self.eval_batch)
        model.mean, model.std = codes.code_statistics(z)
        model.save(folder)

    def summary(self, model: Path) -> str:
        """Return what was saved where, and its held-out metrics."""
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()) or "nothing held out"
        return f"semantic model in {model}: {metrics}"

    def describe_data(self) -> str:
        """Return the part of `describe`'s text that is about the training set."""
        return f"{len(self.data.train)} training pictures as latents {self.latent_shape}"

    def describe_model(self) -> str:
        """Return the part of `describe`'s text that is about the networks."""
        name, width = type(self.module.network).__name__, self.config.encoder.z_width
        return f"codes of {width} numbers, encoder and {name} with {millions(self.module)} trained parameters"


def pictured_latents(config: NoisedRun, first_stage: FirstStage, data: Split) -> tuple[TrainingData, tuple[int, ...]]:
    """Cache the latents of a data set, each beside its picture, and return the shape (Z, h, w) of one.

    Raises:
        UserError: a stale cache, or latents that are not normalised.
    """
    latents, heldout = first_stage.latents(data.train, "train"), None
    if len(data.heldout):
        heldout = PicturedLatents(first_stage.latents(data.heldout, "heldout"), data.heldout, config.seed)
    return TrainingData(data, PicturedLatents(latents, data.train, config.seed), heldout), tuple(latents.shape)


def _mse(pictures: Tensor, others: Tensor) -> float:
    """Compute the mean squared error of pictures uint8, as numbers in 0..1."""
    return float(((pictures.double() - others.double()) / 255).square().mean())
