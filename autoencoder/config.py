"""Config of an autoencoder of either kind, KL or VQ; the field `kind` says which."""

from typing import Annotated

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from pydantic import Field

from autoencoder.kl import KLConfig, build_kl
from autoencoder.vq import VQConfig, build_vq

AutoencoderConfig = Annotated[KLConfig | VQConfig, Field(discriminator="kind")]


def build(config: KLConfig | VQConfig) -> AutoencoderKL | VQModel:
    """Build the diffusers AutoencoderKL or VQModel that a config describes, with random weights."""
    match config:
        case KLConfig():
            return build_kl(config)
        case VQConfig():
            return build_vq(config)
