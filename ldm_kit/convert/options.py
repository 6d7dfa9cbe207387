"""Options of `ldm-kit convert`: what a checkpoint itself does not say. Every field is a flag.

No torch here, as `--help` must not wait for it.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ldm_kit.config import Config


class GuidedDiffusionOptions(Config):
    """Settings of a model of openai/guided-diffusion that its checkpoint does not hold."""

    kind: Literal["unet", "classifier"] = Field(description="unet: the denoiser")
    image_size: int = Field(ge=1, description="side of the pictures it was trained on")
    schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="noise schedule of its training (cosine for 64 px)"
    )
    head_size: int = Field(default=64, ge=1, description="channels of an attention head")
    heads: int | None = Field(default=None, ge=1, description="heads of every attention, instead of --head_size")
    new_attention_order: bool = Field(default=False, description="trained with use_new_attention_order")
    classes: Path | None = Field(
        default=None, description="a text file of class names, one a line, in their order; numbers if left out"
    )


class ConsistencyModelsOptions(Config):
    """Settings of a model of openai/consistency_models that its checkpoint does not hold."""

    levels: int = Field(
        default=40,
        ge=2,
        description="noise levels of its training: 40 for cd_*, 201 for ct_imagenet64, 151 for ct_*256",
    )
    image_size: int | None = Field(
        default=None, ge=1, description="side of its pictures; left out: 8 times what the network reduces it by"
    )
    head_size: int = Field(default=64, ge=1, description="channels of an attention head")
    legacy_attention: bool = Field(default=False, description="trained without flash attention (attention_type legacy)")


class SemanticCheckpointOptions(Config):
    """Settings and files that an autoencoder's checkpoint lacks and a complete semantic model needs.

    `attributes` has the names of the classifier's attributes; `device` encodes the pictures of the folder `images`.
    """

    image_size: int | None = Field(default=None, ge=8, description="side of the pictures, if the file does not hold it")
    statistics: Path | None = Field(
        default=None, description="mean and deviation of codes: .safetensors, .pt or latent.pkl"
    )
    images: Path | None = Field(default=None, description="or the training pictures, a folder, to compute them from")
    classifier: Path | None = Field(
        default=None, description="a classifier of codes; its attributes become directions for edit.py"
    )
    attributes: Path | None = Field(default=None, description="their names, one a line; the 40 of CelebA if left out")
    device: str | None = Field(
        default=None, description="that encodes --images: cpu, cuda, ...; the accelerator if there is one"
    )


class PdaeOptions(SemanticCheckpointOptions):
    """Settings and files that a PDAE autoencoder's checkpoint lacks and a complete PDAE needs."""

    prior: Path | None = Field(default=None, description="a latent_denoise_fn's checkpoint.pt")
    heads: int = Field(default=1, ge=1, description="heads of the U-Net's attention")
    encoder_heads: int = Field(default=4, ge=1, description="heads of the encoder's attention")
