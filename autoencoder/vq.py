"""The vector-quantised autoencoder (van den Oord et al. 2017; Esser et al. 2021; Rombach et al. 2022).

A saved model is a plain diffusers VQModel. What only training needs (beta, moving averages, revival of unused codes) is
in the config and in `codebook.Codebook`. VQModel.encode returns latents *before* quantisation, which LDM's diffusion
model is trained on.
"""

from types import MappingProxyType
from typing import Any, Literal

from diffusers.models.autoencoders.vq_model import VQModel
from pydantic import Field, model_validator

from autoencoder.architecture import Architecture, filled, published

VQ_PRESETS = MappingProxyType(
    {
        "vq-f4": published(1, 2, 4, latent_channels=3, codes=8192),
        "vq-f4-noattn": published(1, 2, 4, latent_channels=3, codes=8192, middle_attention=False),
        "vq-f8": published(1, 2, 2, 4, latent_channels=4, attention_levels=(3,), codes=16384),
        "vq-f8-n256": published(1, 2, 2, 4, latent_channels=4, attention_levels=(3,), codes=256),
        "vq-f16": published(1, 1, 2, 2, 4, latent_channels=8, attention_levels=(4,), codes=16384),
        "tiny32-f2": {"resolution": 32, "widths": (32, 64), "latent_channels": 4, "codes": 512, "ema": True},
        "tiny64-f4": {"resolution": 64, "widths": (32, 64, 128), "latent_channels": 4, "codes": 512, "ema": True},
    }
)


class VQConfig(Architecture):
    """Settings of a VQ autoencoder; `preset` is a key of VQ_PRESETS or None."""

    kind: Literal["vq"] = Field(default="vq", description="A VQ autoencoder.")
    codes: int = Field(default=512, ge=2, description="Size K of the codebook.")
    code_dim: int | None = Field(default=None, ge=1, description="Length of a code; null: latent_channels.")
    beta: float = Field(default=0.25, ge=0, description="Weight of the commitment, which moves the encoder.")
    ema: bool = Field(default=False, description="Move codes by moving averages instead of gradients.")
    decay: float = Field(default=0.99, gt=0, lt=1, description="Decay of the moving averages per step.")
    revive_every: int = Field(default=0, ge=0, description="Steps between revivals of dead codes; 0 for never.")
    revive_below: float = Field(
        default=0.03, ge=0, lt=1, description="A code below this share of the mean count is revived."
    )
    revive_until: int | None = Field(
        default=None, ge=0, description="Last step of revival, such as 80 % of a run; null: no last step."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return filled(given, VQ_PRESETS)


def build_vq(config: VQConfig) -> VQModel:
    """Build a diffusers VQModel whose own loss weighs the commitment term by beta.

    By default, VQModel weighs the other term by beta, the one that moves the codes.
    """
    vae = VQModel(**config.diffusers(), num_vq_embeddings=config.codes, vq_embed_dim=config.code_dim)
    return prepare_vq(vae, config)


def prepare_vq(vae: VQModel, config: VQConfig) -> VQModel:
    """Set how a VQ model is trained, in place: its loss as `build_vq` says, and gradients of codes unless `ema` is set.

    Returns `vae`.
    """
    vae.quantize.legacy, vae.quantize.beta = False, config.beta
    vae.quantize.embedding.weight.requires_grad_(not config.ema)
    return vae
