"""Base class of DiffAE and PDAE: an encoder turns a picture into a code, given which a decoder denoises its latent."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
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
from ldm_kit.methods.base import Grid, Method, TrainingData
from ldm_kit.methods.inputs import FirstStage, NoisedBatch, noise_batch
from ldm_kit.methods.measured import Judged
from ldm_kit.methods.networks import millions
from ldm_kit.methods.run_config import NoisedRun
from ldm_kit.methods.run_summary import pictures_as
from ldm_kit.models import codes
from ldm_kit.models.codes import Encoder
from ldm_kit.models.decoders import Decoder
from ldm_kit.models.saved_sampling import RECONSTRUCTION, SavedSampling
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.training.task import LossTerm
from ldm_kit.viz.grid import columns_for, enlargement, grid

NAME = "semantic"
_RECONSTRUCTION = ("heldout_mse_inferred", "heldout_mse_random")  # decoded from inferred or random x_T


class ReconstructionConfig(Config):
    """Sampling steps of the reconstructions of held-out pictures that a run makes during training."""

    encode_steps: int = Field(default=100, ge=1, description="DDIM steps from a picture to its noise x_T")
    decode_steps: int = Field(default=20, ge=1, description="DDIM steps back, from inferred or random noise")


class SemanticRun(NoisedRun):
    """Settings that the configs of DiffAE and PDAE share: the semantic encoder, and sampling during training.

    `sample` sets the steps in which held-out pictures are encoded and decoded.
    """

    encoder: SemanticConfig
    sample: ReconstructionConfig = ReconstructionConfig()


R = TypeVar("R", bound=SemanticRun)


class CodedNetwork(nn.Module):
    """Encoder and decoding network as one module, so that one DDP wrapper averages the gradients of both.

    Call it with noisy latents [B, Z, h, w], timesteps [B] and the clean pictures [B, C, R, R] in [-1, 1], which are
    encoded to the codes that the decoding network is given.
    """

    encoder: Encoder  # maps pictures to codes z
    folder: ClassVar[str]  # the decoding network's folder in a saved model, and its attribute here

    @property
    def network(self) -> nn.Module:
        """The network that decodes codes, held by the attribute whose name is the text `folder`."""
        return getattr(self, self.folder)


N = TypeVar("N", bound=CodedNetwork)


class SemanticMethod(Method[R], Generic[R, N]):
    """Base class of the methods DiffAE and PDAE: one optimiser trains encoder and decoder on the decoder's error."""

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
        """Return the decoder with the current weights, as the saved model will hold it."""

    @abstractmethod
    def error(self, output: Any, batch: NoisedBatch) -> Tensor:
        """Return the error [B] of each sample's prediction, before it is multiplied by `weight`.

        Args:
            output: what `module` returned for the batch.
            batch: clean and noised latents, noise and timesteps.
        """

    def weight(self, t: Tensor) -> Tensor | None:
        """Return the weights [B] by which errors at timesteps t [B] are multiplied; None: all weights are 1."""
        return None

    def losses(self, batch: Mapping[str, Any], step: int) -> Iterator[LossTerm]:
        """Yield the batch's mean error, weighted by timestep if the method has weights; the unweighted is then logged.

        `batch` is from `PicturedLatents`: mean and logvar of latents, pictures, positions. The run's seed and a
        sample's position (its number among all samples of the run) determine noise and timestep; `step` is not used.
        """
        config, position = self.config, batch["position"]
        size, times = config.train.batch_size, len(self.schedule)
        t = sample_timesteps(config.timestep_sampling, config.seed, position, size, times)
        errors, weight = self.errors(batch, t, config.seed, self.ddp_modules[NAME]), self.weight(t)
        if weight is None:
            yield NAME, errors.mean(), {}
            return
        yield NAME, (errors * cast_like(weight, errors)).mean(), {"error": errors.mean()}

    def errors(self, batch: Mapping[str, Any], t: Tensor, seed: int, module: nn.Module) -> Tensor:
        """Return the error [B] of each sample's prediction, before it is multiplied by `weight`.

        Args:
            batch: a batch from `PicturedLatents`: mean and logvar of latents, pictures, and positions in the run.
            t: timesteps [B] to which the latents are noised.
            seed: seed that, with its position, determines a sample's noise.
            module: the `CodedNetwork`, or its DDP wrapper.
        """
        noised = noise_batch(batch, t, seed, self.schedule)
        return self.error(module(noised.x_t, t, batch["picture"]), noised)

    def heldout_losses(self, batch: Mapping[str, Any], t: Tensor, seed: int) -> Tensor:
        """Return the error [B] of each held-out sample at timesteps t [B], without `weight`.

        `batch` is from `PicturedLatents`: mean and logvar of latents, pictures, positions; `seed` fixes the noise.
        """
        return self.errors(batch, t, seed, self.module)

    def model(self) -> SemanticModel:
        """Return the semantic model with the current weights; mean and deviation of codes are placeholders, 0 and 1."""
        config, statistics = (
            self.config,
            (torch.zeros(self.config.encoder.z_width), torch.ones(self.config.encoder.z_width)),
        )
        saved = SavedSampling.of(RECONSTRUCTION, config.sample)
        return SemanticModel(self.module.encoder, self.decoder(), *statistics, saved=saved).to(self.device)

    def samples(self) -> Grid:
        """Return a grid of pictures with reconstructions from inferred and from random x_T; add errors to `metrics`.

        The errors are mean squared errors of held-out pictures. If nothing is held out, the grid has training pictures
        and no errors are added.

        Raises:
            NonFiniteError: a reconstruction has a NaN or an infinity; `metrics` then gets no errors.
        """
        model, config, size = self.model(), self.config.sample, self.eval_batch
        shown = self.data.heldout if len(self.data.heldout) else self.data.train
        pictures = shown.pictures(spread(len(shown), self.config.log.pictures))
        z = model.encode(pictures, size)
        inferred = model.decode(z, model.invert(pictures, z, config.encode_steps, size), config.decode_steps, size)
        random = model.decode(z, None, config.decode_steps, size)
        if self.metrics:
            errors = [_mse(decoded, pictures) for decoded in (inferred, random)]
            self.metrics |= dict(zip(_RECONSTRUCTION, errors, strict=True))
        rows = torch.stack([pictures, inferred, random], dim=1).flatten(0, 1)
        captions = ["picture", "inferred noise", "random noise"] * len(pictures)
        return Grid(grid(rows, columns_for(len(rows), 6), enlargement(model.resolution), captions), "decoded")

    @classmethod
    def figures(cls, config: R, data: Split | None) -> list[str]:
        """Return the names of the metrics of `evaluate`; if `data` is None (not loaded yet), all possible names."""
        return ["heldout_loss", *_RECONSTRUCTION] if data is None or len(data.heldout) else []

    @classmethod
    def judged(cls, config: R) -> Judged:
        """Return that measures judge reconstructions, from inferred and from random noise x_T."""
        return Judged(reconstructions=True, semantic=True)

    def measured_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Return the held-out pictures `rows`, decoded from inferred noise x_T: uint8 [N, C, R, R]."""
        model, pictures, steps = self.model(), self.data.heldout.pictures(rows), self.config.sample
        z = model.encode(pictures, self.eval_batch)
        x_T = model.invert(pictures, z, steps.encode_steps, self.eval_batch)
        return model.decode(z, x_T, steps.decode_steps, self.eval_batch)

    def random_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Return the held-out pictures `rows`, decoded from random noise x_T: uint8 [N, C, R, R]."""
        model = self.model()
        z = model.encode(self.data.heldout.pictures(rows), self.eval_batch)
        return model.decode(z, None, self.config.sample.decode_steps, self.eval_batch, seeds=seeds)

    def save(self, folder: Path) -> None:
        """Measure mean and deviation of the training set's codes; save the semantic model with them into `folder`."""
        model = self.model()
        model.mean, model.std = self.shared_work.run(self.in_evaluation, "training_statistics")
        model.save(folder)

    def training_statistics(self) -> codes.CodeStatistics:
        """Return mean and deviation of the training pictures' codes by the encoder's current weights."""
        return codes.set_statistics(self.module.encoder, self.data.train, self.eval_batch)

    def summary(self, model: Path) -> str:
        """Return a sentence for the log: the saved model's folder and the held-out metrics."""
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()) or "nothing held out"
        return f"semantic model in {model}: {metrics}"

    def describe_data(self) -> str:
        """Return a phrase on the training set (how many pictures, of what) for `describe`, the log's opening text."""
        return pictures_as(f"{len(self.data.train)} training pictures", self.latent_shape, self.config.autoencoder)

    def describe_model(self) -> str:
        """Return a phrase on the networks (classes, parameters) for `describe`, the log's opening text."""
        name, width = type(self.module.network).__name__, self.config.encoder.z_width
        return f"codes of {width} numbers, encoder and {name} with {millions(self.module)} trained parameters"


def pictured_latents(config: NoisedRun, first_stage: FirstStage, data: Split) -> tuple[TrainingData, tuple[int, ...]]:
    """Return batches that pair latents with their pictures, and a latent's shape (channels, height, width).

    `data` are the run's pictures. Latents that are not cached yet are first encoded by `first_stage`.

    Raises:
        UserError: the training latents have a standard deviation below 0.4 or above 2.5, where 1 is expected; or the
            folder `config.latents` holds latents of other pictures or another autoencoder.
    """
    latents, heldout = first_stage.latents(data.train, "train"), None
    if len(data.heldout):
        heldout = PicturedLatents(first_stage.latents(data.heldout, "heldout"), data.heldout, config.seed)
    return TrainingData(data, PicturedLatents(latents, data.train, config.seed), heldout), tuple(latents.shape)


def _mse(pictures: Tensor, others: Tensor) -> float:
    """Return the mean squared error between two tensors of uint8 pictures of equal shape, scaled to 0..1."""
    return float(((pictures.double() - others.double()) / 255).square().mean())
