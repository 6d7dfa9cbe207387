"""Diffusion Autoencoders, in pixels or in latents.

Paper:    Preechakul et al. 2022, "Diffusion Autoencoders: Toward a Meaningful and Decodable Representation"; with
          `code.kind: tokens` Yang et al. 2024, "Diffusion Model with Cross Attention as an Inductive Bias for
          Disentanglement" (EncDiff).
Idea:     encode a picture as a semantic code z = Enc(x_0) and a noise x_T, from which DDIM given z restores it.
Parts:    a semantic encoder, which sees pixels even if latents are noised; a U-Net on noised pixels or latents, with z
          in its adaptive group norms (DiffAE) or with each number of z as a token of its cross-attention (EncDiff).
Run:      accelerate launch train_ldm.py configs/benchmarks/diffae_pixels.yaml
Expected: see the header of that config.
"""

from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKL, VQModel
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor

from conditioning.semantic import SemanticConfig, SemanticEncoderConfig, build_semantic
from ldm_kit.data.images import Split
from ldm_kit.diffusion import loss, schedule
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods.inputs import FirstStage, NoisedBatch
from ldm_kit.methods.run_config import check_any_density, check_saved, check_steps
from ldm_kit.methods.semantic import CodedNetwork, SemanticMethod, SemanticRun, pictured_latents
from ldm_kit.models.codes import Encoder
from ldm_kit.models.decoders import CodeDecoder
from ldm_kit.nets.code_unets import CodeConfig, CodeUNet, VectorCodeConfig, build_code_unet
from ldm_kit.nets.semantic_unet import SemanticUNetConfig


class DiffAERun(SemanticRun):
    """Config of a run that trains a semantic encoder together with the diffusion model that decodes its codes."""

    method: Literal["diffae"] = Field(description="codes and the diffusion model that decodes them (DiffAE)")
    encoder: SemanticConfig = SemanticEncoderConfig()
    code: CodeConfig = VectorCodeConfig()
    unet: SemanticUNetConfig
    schedule: ScheduleConfig = ScheduleConfig(kind="linear")
    prediction_type: Literal["eps", "v"] = Field(
        validation_alias=AliasChoices("prediction_type", "target"),
        default="eps",
        description="what the network predicts; the paper: eps",
    )

    @property
    def needs_captions(self) -> bool:
        """Whether the run uses captions or classes: False, as codes are learned from pictures alone."""
        return False

    @model_validator(mode="after")
    def _check_schedule(self) -> "DiffAERun":
        check_any_density(self.timestep_sampling)
        if self.schedule.kind == "flow":
            raise ValueError(
                "schedule flow goes with prediction_type flow, which a semantic model has not; take linear"
            )
        check_saved(self.schedule, self.prediction_type)
        check_steps(max(self.sample.encode_steps, self.sample.decode_steps), self.schedule)
        return self


class DiffusionAutoencoder(CodedNetwork):
    """Encoder and U-Net as one module, so that one DDP wrapper averages the gradients of both.

    `folder` is the attribute that holds the U-Net, and its folder in a saved model.
    """

    folder: ClassVar[str] = "unet"

    def __init__(self, encoder: Encoder, unet: CodeUNet) -> None:
        super().__init__()
        self.encoder, self.unet = encoder, unet

    def forward(self, x: Tensor, t: Tensor, picture: Tensor) -> Tensor:
        """Return the U-Net's output [B, Z, h, w] for noisy latents x of that shape, timesteps t [B] and clean pictures.

        The clean pictures `picture`, which are encoded to codes, are [B, C, R, R] in [-1, 1].
        """
        return self.unet(x, t, self.encoder(picture))


class DiffAE(SemanticMethod[DiffAERun, DiffusionAutoencoder]):
    """Training method of DiffAE: the loss is the mean squared error of the predicted eps or v.

    All timesteps have the same weight.
    """

    Config = DiffAERun

    vae: AutoencoderKL | VQModel | None = None  # the frozen autoencoder; None: pixels are diffused

    @classmethod
    def build(cls, config: DiffAERun, data: Split, device: torch.device) -> "DiffAE":
        """Open the autoencoder, cache latents of `data`, which it encodes on `device`, and build encoder and U-Net.

        Raises:
            UserError: the training latents have a standard deviation below 0.4 or above 2.5, where 1 is expected; or
                the folder `config.latents` holds latents of other pictures or another autoencoder.
            AutoencoderError: the autoencoder cannot be opened.
        """
        first_stage = FirstStage.open(config, data.train, device)
        inputs, shape = pictured_latents(config, first_stage, data)
        encoder = build_semantic(config.encoder, resolution=data.train.resolution, channels=data.train.channels)
        channels, side, _ = shape
        shapes = {"sample_size": side, "channels": channels, "z_width": config.encoder.z_width}
        unet = build_code_unet(config.unet, config.code, **shapes)
        method = cls(config, DiffusionAutoencoder(encoder, unet), schedule.build(config.schedule), inputs)
        method.vae, method.latent_shape = first_stage.vae, shape
        method.dependencies = first_stage.dependencies
        return method

    def error(self, output: Any, batch: NoisedBatch) -> Tensor:
        """Return the mean squared error [B] of each sample: the U-Net's output against its target, eps or v.

        `output` is what `DiffusionAutoencoder` returned for `batch`.
        """
        x_0, eps, _, t = batch
        return loss.error(output, x_0, eps, t, self.schedule, prediction_type=self.config.prediction_type)

    def decoder(self) -> CodeDecoder:
        """Return the U-Net together with the autoencoder and the noise schedule that decoding needs."""
        return CodeDecoder(self.module.unet, self.vae, self.config.schedule, self.config.prediction_type)
