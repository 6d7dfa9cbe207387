"""The KL-regularised autoencoder (Kingma and Welling 2014; Rombach et al. 2022, section 3.1)."""

from types import MappingProxyType
from typing import Any, Literal

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pydantic import Field, model_validator

from autoencoder.architecture import Architecture, filled, published

KL_PRESETS = MappingProxyType(
    {
        "kl-f4": published(1, 2, 4, latent_channels=3),
        "kl-f8": published(1, 2, 4, 4, latent_channels=4),
        "kl-f16": published(1, 1, 2, 2, 4, latent_channels=16, attention_levels=(4,)),
        "kl-f32": published(1, 1, 2, 2, 4, 4, latent_channels=64, attention_levels=(4, 5)),
        "tiny32-f2": {"resolution": 32, "widths": (32, 64), "latent_channels": 4},
        "tiny32-f4": {"resolution": 32, "widths": (32, 64, 64), "latent_channels": 4},
        "tiny64-f4": {"resolution": 64, "widths": (32, 64, 128), "latent_channels": 4},
        "small64-f8": {"resolution": 64, "widths": (64, 128, 256, 256), "layers_per_block": 2, "latent_channels": 8},
    }
)


class KLConfig(Architecture):
    """Settings of a KL-regularised autoencoder; `preset` is a key of KL_PRESETS or None."""

    kind: Literal["kl"] = Field(default="kl", description="A KL autoencoder.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return filled(given, KL_PRESETS)


def build_kl(config: KLConfig) -> AutoencoderKL:
    """Build a diffusers AutoencoderKL with the 1x1 convolutions quant_conv and post_quant_conv.

    `statistics.fold` later puts the normalisation of the latents into these convolutions.
    """
    return AutoencoderKL(**config.diffusers(), use_quant_conv=True, use_post_quant_conv=True)
