"""Diffusion Autoencoders, in pixels or in latents.

Paper:    Preechakul et al. 2022, "Diffusion Autoencoders: Toward a Meaningful and Decodable Representation".
Idea:     a picture is a semantic code z = Enc(x_0) and the noise x_T from which DDIM under z gives it back.
Parts:    a semantic encoder, which always sees the picture; a U-Net on noised pixels or latents, scaled by z.
Run:      accelerate launch train_ldm.py configs/semantic/diffae_pixels32.yaml
Expected: see the header of that config.
"""

from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator
from torch import Tensor, nn

from conditioning.semantic import SemanticConfig, SemanticEncoderConfig
from ldm_kit.diffusion import loss, schedule
from ldm_kit.diffusion.schedule import Schedule, ScheduleConfig
from ldm_kit.methods.base import NoisedRun
from ldm_kit.methods.inputs import NoisedBatch
from ldm_kit.methods.semantic import ReconstructionConfig, SemanticTask, refuse_aware
from ldm_kit.models.codes import Encoder
from ldm_kit.nets.semantic_unet import SemanticUNet, SemanticUNetConfig


class DiffAERun(NoisedRun):
    """A semantic encoder and a diffusion model that decodes its codes, trained together."""

    method: Literal["diffae"] = Field(description="codes and the diffusion model that decodes them (DiffAE)")
    encoder: SemanticConfig = SemanticEncoderConfig()
    unet: SemanticUNetConfig
    schedule: ScheduleConfig = ScheduleConfig(kind="linear")
    prediction_type: Literal["eps", "v"] = Field(
        validation_alias=AliasChoices("prediction_type", "target"),
        default="eps",
        description="what the network predicts; the paper: eps",
    )
    sample: ReconstructionConfig = ReconstructionConfig()

    @model_validator(mode="after")
    def _fits(self) -> "DiffAERun":
        refuse_aware(self.timestep_sampling)
        if self.schedule.kind == "flow":
            raise ValueError(
                "schedule flow goes with prediction_type flow, which a semantic model has not; take linear"
            )
        betas = self.schedule.betas
        if self.prediction_type == "eps" and (self.schedule.zero_terminal or (betas is not None and betas[-1] == 1)):
            raise ValueError("prediction_type 'eps' is undefined where the schedule ends in pure noise; take v")
        if (most := max(self.sample.encode_steps, self.sample.decode_steps)) > self.schedule.num_train_timesteps:
            raise ValueError(
                f"sample asks for {most} steps, but schedule.num_train_timesteps is only {self.schedule.num_train_timesteps}"
            )
        return self


class DiffusionAutoencoder(nn.Module):
    """Encoder and U-Net as one module, so that DDP around it sees every gradient."""

    def __init__(self, encoder: Encoder, unet: SemanticUNet) -> None:
        super().__init__()
        self.encoder, self.unet = encoder, unet

    def forward(self, x: Tensor, t: Tensor, picture: Tensor) -> Tensor:
        """Noisy latents [B, Z, h, w], times [B] and pictures [B, C, R, R] in [-1, 1] to the U-Net's output."""
        return self.unet(x, t, self.encoder(picture))


def diffae_task(config: DiffAERun, encoder: Encoder, unet: SemanticUNet) -> SemanticTask:
    """The training of both: the plain error of the target, at uniform times unless told otherwise."""

    def measure(out: Any, noised: NoisedBatch, table: Schedule) -> Tensor:
        return loss.error(out, noised.x_0, noised.eps, noised.t, table, prediction_type=config.prediction_type)

    parts = {"encoder": encoder, "unet": unet}
    return SemanticTask(config, DiffusionAutoencoder(encoder, unet), parts, schedule.build(config.schedule), measure)
