"""The parts of a diffusion model: its networks, its noise schedule, and what follows from these alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor

from autoencoder.base import reduction
from conditioning.base import Condition, Conditioner, Inputs
from conditioning.pictures import PictureCondition
from ldm_kit.config import UserError
from ldm_kit.data.lists import check_lists
from ldm_kit.data.value_range import ValueRange, pixel_dtype
from ldm_kit.diffusion.finite import FiniteCheck
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig, build
from ldm_kit.models.classifier import NoisyClassifier, first_stage_of
from ldm_kit.models.compatibility import LatentSpace
from ldm_kit.models.decoding import decode_pictures
from ldm_kit.models.image_prior import ImagePrior
from ldm_kit.models.picture_condition import NEEDS_IMAGE, PictureInputs
from ldm_kit.models.saved_sampling import SavedSampling
from ldm_kit.nets.guidance_embedding import takes_guidance_scale
from ldm_kit.nets.size_embedding import takes_sizes
from ldm_kit.nets.unet import takes_level

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline


@dataclass(eq=False)
class PipelineParts:
    """The parts of a `Pipeline`; an argument for each."""

    vae: AutoencoderKL | VQModel | None  # None: a pixel model, whose latents are the pictures in [-1, 1]
    unet: UNet2DConditionModel | UNet2DModel  # maps x_t [B, Z, h, w] and timesteps [B] to `target` [B, Z, h, w]
    conditioner: Conditioner  # encodes prompts or classes
    schedule_config: ScheduleConfig  # settings from which `schedule` is built
    target: PredictionType  # what the U-Net predicts
    precision: torch.dtype | None = None  # dtype of autocast while sampling; None: no autocast
    variance: VarianceType = "small"  # variance of ddpm's steps; learned_range: predicted in Z more channels
    classifier: NoisyClassifier | None = None  # guides sampling by its gradient; set by `with_guides`
    autoguidance_model: "Pipeline | None" = None  # weaker model for autoguidance; set by `with_guides`
    saved: SavedSampling = field(default_factory=SavedSampling)  # this model's own defaults of the sampling options
    picture: PictureCondition | None = None  # what pictures condition the model; None: none do
    prior: ImagePrior | None = None  # samples the embeddings of images from prompts; None: there is none
    value_range: ValueRange | None = None  # what the levels of its pictures stand for; None: they have 8 bits
    schedule: Schedule = field(init=False)
    finite: FiniteCheck = field(init=False, default_factory=FiniteCheck)  # finds NaN and infinity while sampling

    def __post_init__(self) -> None:
        self.schedule = build(self.schedule_config).to(self.device)

    @property
    def device(self) -> torch.device:
        """Device on which the networks are."""
        return next(self.unet.parameters()).device

    @property
    def takes_pictures(self) -> bool:
        """Whether the model is conditioned on pictures: an image that is embedded, or a picture condition."""
        return self.picture is not None or self.conditioner.reads_pictures

    @property
    def takes_scale(self) -> bool:
        """Whether the U-Net takes the guidance scale as input."""
        return takes_guidance_scale(self.unet)

    @property
    def takes_sizes(self) -> bool:
        """Whether the U-Net takes the sizes and the crop of a picture as a condition."""
        return takes_sizes(self.unet, self.conditioner.vector_width) and not takes_level(self.unet)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of a latent, at the size that the U-Net was trained on."""
        config: Any = self.unet.config
        return config.out_channels // (1 + (self.variance == "learned_range")), config.sample_size, config.sample_size

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, at the size that the U-Net was trained on."""
        return self.latent_shape[1] * self.reduction

    @property
    def reduction(self) -> int:
        """Ratio of a picture's side to its latent's; 1 without an autoencoder."""
        return 1 if self.vae is None else reduction(self.vae)

    @property
    def channels(self) -> int:
        """Channels of a picture."""
        return self.latent_shape[0] if self.vae is None else self.vae.config["in_channels"]

    @property
    def space(self) -> LatentSpace:
        """What a guide model must have in common with this one: noise schedule, latent shape and autoencoder."""
        vae = None if self.vae is None else first_stage_of(self.vae)
        return LatentSpace(self.schedule_config, self.latent_shape, vae)

    def embed(self, pictures: Tensor) -> Tensor:
        """Return the embeddings, float32 [N, D] or [N, L, D] on the CPU, by which pictures condition this model.

        Args:
            pictures: uint8 [N, C, r, r] of any side; each vector of the result has a root mean square of 1.

        Raises:
            UserError: the model is conditioned on no image, or the pictures are of another type or shape.
        """
        if (reader := self.conditioner.image_conditioner) is None:
            raise UserError("this model is conditioned on no image, so that it embeds none")
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] not in (1, 3, 4):
            raise UserError(f"got pictures {pictures.dtype} {[*pictures.shape]}; expected uint8 [N, 1 | 3 | 4, r, r]")
        return reader.embed(pictures)

    def condition(self, prompts: Sequence[str | int], pictures: PictureInputs | None = None) -> Condition:
        """Encode B prompts, or classes by name or number ("" for an unconditional model), to a condition.

        `pictures` is what `picture_inputs` made of the B pictures that condition the model; None: there are none.

        Raises:
            UserError: the model is conditioned on a picture, and there is none.
        """
        check_lists(prompts=prompts)
        pictures = pictures or PictureInputs()
        if self.conditioner.reads_pictures and not pictures.encoded:
            raise UserError(NEEDS_IMAGE)
        return self.encoded(self.conditioner.prepare(prompts) | pictures.encoded, pictures.maps)

    def encoded(self, inputs: Inputs, maps: Condition | None = None) -> Condition:
        """Return the condition of what the conditioner prepared, with `maps`; errors are those of `condition`."""
        if self.picture is not None and maps is None:
            needed = self.picture.describe((self.resolution, self.resolution))
            raise UserError(f"this model is conditioned on a picture; expected {needed}")
        if self.takes_sizes and (maps is None or maps.sizes is None):
            raise UserError("this model is conditioned on sizes of pictures, as sample.py samples it; expected another")
        condition = self.conditioner(**{name: value.to(self.device) for name, value in inputs.items()})
        for value in (condition.tokens, condition.vector):
            if value is not None:
                self.finite.note("the encoder of prompts or classes", value)
        return condition if maps is None else condition.joined(maps)

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents [B, Z, h, w] to levels [B, C, H, W] on the CPU, uint8 or, with a `value_range`, uint16.

        Raises:
            NonFiniteError: a value is NaN or infinite.
        """
        return decode_pictures(self.vae, latents, self.precision, pixel_dtype(self))

    def to(self, device: torch.device | str) -> Self:
        """Move all networks, those of the guides too, to a device, in place; return this object."""
        for module in (self.vae, self.unet, self.conditioner, self.classifier, self.autoguidance_model, self.prior):
            if module is not None:
                module.to(device)  # pyright: ignore[reportArgumentType]  (diffusers decorates it)
        self.schedule = self.schedule.to(device)
        return self
