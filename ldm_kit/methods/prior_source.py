"""The trained model whose codes a prior is trained on: a semantic model, or a decoder of image embeddings (unCLIP)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ldm_kit.config import UserError, cache_dir
from ldm_kit.data import peers, tensor_cache
from ldm_kit.data.images import PictureSet, digest
from ldm_kit.data.latents import weights_digest
from ldm_kit.data.readable import replacements, sources
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.memory import BatchSize
from ldm_kit.methods.image_embeddings import embeddings_of
from ldm_kit.methods.prior_config import PriorRun, PriorSampleConfig
from ldm_kit.models import codes
from ldm_kit.models.base_model import BaseModel
from ldm_kit.models.codes import CodeStatistics
from ldm_kit.models.folder import SEMANTIC, ModelFolder
from ldm_kit.models.image_prior import ImagePrior
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.prior import TARGET, CodePrior
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.models.semantic import SemanticModel

PriorModel = SemanticModel | Pipeline
Prompts = Sequence[str] | None
M = TypeVar("M", SemanticModel, Pipeline)
SMALLEST_SHARE = 0.05  # deviation of a dimension of image embeddings, as a share of that over all dimensions


class CodeSource(ABC, Generic[M]):
    """A trained model that encodes pictures to codes and decodes codes to pictures; it is never changed.

    Attributes:
        model: the model without a prior of this run.
        weights: digest of all that codes depend on beside the pictures.
        digest: digest of the model's weights, the same in any folder.
        prediction_type: what a prior over the codes predicts unless its run says otherwise.
    """

    model: M
    weights: str
    digest: str
    prediction_type: ClassVar[PredictionType] = TARGET

    def statistics(self, z: Tensor) -> CodeStatistics:
        """Return the mean and the deviation by which the training set's codes z [N, D] are normalised."""
        return codes.code_statistics(z)

    @abstractmethod
    def codes(self, pictures: PictureSet, size: BatchSize) -> tuple[Tensor, Tensor]:
        """Return the codes [N, D] of a picture set, and the index [N] of the picture that each was computed from.

        The index differs from 0..N-1 where a broken picture was replaced by another. Both are cached on disk.
        """

    @abstractmethod
    def with_prior(self, prior: CodePrior, statistics: CodeStatistics, saved: SavedSampling) -> PriorModel:
        """Return the model with a prior over its codes, and with options that the prior's run adds to its own."""

    @abstractmethod
    def sample(
        self,
        model: Any,
        seeds: Sequence[int],
        prompts: Sequence[str] | None,
        config: PriorSampleConfig,
        batch: BatchSize,
    ) -> Tensor:
        """Sample a code for each of N seeds and decode it: pictures uint8 [N, C, R, R].

        Args:
            model: what `with_prior` returned.
            seeds: N seeds.
            prompts: N captions or class names; None: the prior has no condition.
            config: numbers of steps; the guidance scale is saved with the model.
            batch: most pictures at once.
        """


@dataclass(eq=False)
class SemanticSource(CodeSource[SemanticModel]):
    """A DiffAE or PDAE, and its encoder on the training device."""

    model: SemanticModel
    encoder: codes.Encoder

    def __post_init__(self) -> None:
        self.weights, self.digest = weights_digest(self.encoder), model_digest(self.model)

    def codes(self, pictures: PictureSet, size: BatchSize) -> tuple[Tensor, Tensor]:
        """Return the codes of a picture set, and the index of the picture that each was computed from."""
        key = tensor_cache.key_of("codes", self.weights, pictures.fingerprint)

        def compute() -> dict[str, Tensor]:
            z = codes.encode_set(self.encoder, pictures, size)
            shares = peers.agreed(peers.everyone(), lambda: dict(replacements(pictures)))
            replaced = {broken: index for share in shares for broken, index in share.items()}
            return {"z": z, "shown": sources(torch.arange(len(z)), replaced)}

        tensors = tensor_cache.cached_by_all(cache_dir() / "codes", key, compute)
        return tensors["z"], tensors.get("shown", torch.arange(len(tensors["z"])))  # older files lack it

    def with_prior(self, prior: CodePrior, statistics: CodeStatistics, saved: SavedSampling) -> SemanticModel:
        """Return the semantic model with a prior."""
        mean, std = statistics
        return replace(self.model, prior=prior, mean=mean, std=std, saved=self.model.saved.joined(saved))

    def sample(
        self,
        model: Any,
        seeds: Sequence[int],
        prompts: Sequence[str] | None,
        config: PriorSampleConfig,
        batch: BatchSize,
    ) -> Tensor:
        """Sample codes and decode them with random x_T."""
        z = model.sample_z(seeds, config.steps, prompts)
        return model.decode(z, None, config.decode_steps, batch, config.stop, seeds=seeds)


@dataclass(eq=False)
class ImageSource(CodeSource[Pipeline]):
    """A latent diffusion model that is conditioned on image embeddings, the decoder of unCLIP."""

    model: Pipeline
    prediction_type: ClassVar[PredictionType] = "x0"  # Ramesh et al. 2022, section 2.2

    def __post_init__(self) -> None:
        conditioner, reader = self.model.conditioner, self.model.conditioner.image_conditioner
        assert reader is not None
        self.weights = reader.frozen_encoder
        networks = {"unet": self.model.unet, "vae": self.model.vae, **conditioner.trainable}
        parts = [f"{name} {weights_digest(network)}" for name, network in networks.items() if network is not None]
        self.digest = digest([self.weights, *parts])

    def statistics(self, z: Tensor) -> CodeStatistics:
        """Return mean and deviation, the latter at least SMALLEST_SHARE of its root mean square over dimensions.

        A dimension that hardly varies in training would otherwise get codes of many deviations, in held-out pictures
        without limit: pooled features of a network with ReLU are almost always 0 in some.
        """
        mean, std = codes.code_statistics(z)
        return CodeStatistics(mean, std.clamp_min(float(std.square().mean().sqrt()) * SMALLEST_SHARE))

    def codes(self, pictures: PictureSet, size: BatchSize) -> tuple[Tensor, Tensor]:
        """Return the image embeddings of a picture set, and the index of the picture that each was computed from."""
        return embeddings_of(self.model.conditioner, pictures)

    def with_prior(self, prior: CodePrior, statistics: CodeStatistics, saved: SavedSampling) -> Pipeline:
        """Return the decoder with a prior."""
        own = self.model.saved.joined(saved)
        return replace(self.model, prior=ImagePrior(prior, statistics, self.weights), saved=own)

    def sample(
        self,
        model: Any,
        seeds: Sequence[int],
        prompts: Sequence[str] | None,
        config: PriorSampleConfig,
        batch: BatchSize,
    ) -> Tensor:
        """Sample embeddings and decode them, with the guidance that is saved with the decoder."""
        options = SamplingOptions(steps=config.decode_steps, prior_steps=config.steps)
        return torch.cat([*model.generate([""] * len(seeds) if prompts is None else prompts, seeds, options, batch)])


def model_digest(model: SemanticModel) -> str:
    """Return a digest of the weights of a semantic model and its base model (if any), the same in any folder."""
    decoder = vars(model.decoder).values()
    networks = [model.encoder, *(value for value in decoder if isinstance(value, nn.Module))]
    bases = [value.sha256 for value in decoder if isinstance(value, BaseModel)]
    return digest([*map(weights_digest, networks), *bases])


def open_source(config: PriorRun, pictures: PictureSet, device: torch.device) -> CodeSource[Any]:
    """Open the model `config.model`, and check that it fits `pictures` and `config.sample`.

    Raises:
        UserError: the model has no codes, or is for pictures of another size or number of channels, or `sample.stop`,
            which is for PDAE, is not 0 although it is another model.
    """
    folder = ModelFolder.open(config.model)
    if folder.class_name == SEMANTIC:
        encoder = codes.open_encoder(folder, device)
        _check_encoder(encoder, pictures, config.model)
        source: CodeSource[Any] = SemanticSource(SemanticModel.load(config.model), encoder)
        stops = source.model.decoder.stops
    else:
        source, stops = ImageSource(_decoder(folder)), False
    model = source.model
    if (model.channels, model.resolution) != (pictures.channels, pictures.resolution):
        raise UserError(
            f"data.resolution is {pictures.resolution}, with {pictures.channels} channels, but {config.model} is for "
            f"pictures of side {model.resolution} and {model.channels} channels"
        )
    if config.sample.stop and not stops:
        kind = "DiffAE" if isinstance(model, SemanticModel) else "decoder of image embeddings"
        raise UserError(f"sample.stop is for a PDAE, and {config.model} is a {kind}; leave it out")
    return source


def _check_encoder(encoder: codes.Encoder, pictures: PictureSet, model: str) -> None:
    """Check that the encoder of the semantic model in the folder `model` takes the pictures; UserError: it does not."""
    config = encoder.config
    side = config.get("resolution", pictures.resolution)
    if (config["channels"], side) != (pictures.channels, pictures.resolution):
        raise UserError(
            f"the encoder of {model} is for pictures of {config['channels']} channels and side {side}, but those of "
            f"data have {pictures.channels} and {pictures.resolution}"
        )


def _decoder(folder: ModelFolder) -> Pipeline:
    """Return the decoder in a folder; raises UserError if it is conditioned on no vector of an image."""
    codes_of = "expected what `method: diffae` or `pdae` trains, or `latent` under a condition of kind image"
    if folder.class_name is not None and folder.class_name.startswith("ldm_kit.Noisy"):
        codes.open_semantic(folder.path)  # which says what it is
    pipeline = Pipeline.load(folder.path)
    reader = pipeline.conditioner.image_conditioner
    if reader is None:
        raise UserError(f"{folder} holds a {folder.class_name}, which has no semantic codes; {codes_of}")
    if len(reader.shape) != 1:
        raise UserError(f"{folder} is conditioned on the tokens of an image, and a prior samples vectors; {codes_of}")
    if len(getattr(pipeline.conditioner, "sources", ())) > 1:
        raise UserError(f"the prompts of {folder} have several parts, and a prior takes one; expected a single one")
    return pipeline
