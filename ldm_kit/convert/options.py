"""Options of `ldm-kit convert`: what a checkpoint itself does not say. Every field is a flag.

No torch here, as `--help` must not wait for it.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ldm_kit.config import Config


class GuidedDiffusionOptions(Config):
    """Settings of a model of openai/guided-diffusion that its checkpoint does not hold."""

    kind: Literal["unet", "classifier"] = Field(description="unet: a denoiser; classifier: a noisy classifier")
    image_size: int = Field(ge=1, description="side of the training pictures in pixels")
    schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="noise schedule of the training (cosine for 64 px)"
    )
    head_size: int = Field(default=64, ge=1, description="channels of an attention head")
    heads: int | None = Field(
        default=None, ge=1, description="number of heads of every attention, instead of --head_size"
    )
    new_attention_order: bool = Field(default=False, description="the network was trained with use_new_attention_order")
    classes: Path | None = Field(
        default=None,
        description="a text file of class names, one a line, in the order of the classes; left out: their numbers",
    )


class SingleFileOptions(Config):
    """Settings of a single-file checkpoint of Stable Diffusion, which has weights alone."""

    config: Path = Field(description="a folder in the diffusers layout with the model's settings and tokenizer")


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

    image_size: int | None = Field(
        default=None, ge=8, description="side of the pictures in pixels, if the checkpoint does not tell"
    )
    statistics: Path | None = Field(
        default=None, description="a file with the mean and deviation of the codes: .safetensors, .pt or latent.pkl"
    )
    images: Path | None = Field(
        default=None,
        description="a folder of the training pictures, to compute mean and deviation from, instead of --statistics",
    )
    classifier: Path | None = Field(
        default=None, description="a linear classifier of codes, whose attributes become directions for edit.py"
    )
    attributes: Path | None = Field(
        default=None, description="a text file of the attributes' names, one a line; left out: the 40 of CelebA"
    )
    device: str | None = Field(
        default=None,
        description="device that encodes --images: cpu, cuda, ...; left out: the accelerator if there is one",
    )


class PdaeOptions(SemanticCheckpointOptions):
    """Settings and files that a PDAE autoencoder's checkpoint lacks and a complete PDAE needs."""

    prior: Path | None = Field(
        default=None, description="checkpoint.pt of a prior over codes (in PDAE's code, a latent_denoise_fn)"
    )
    heads: int = Field(default=1, ge=1, description="number of heads of the U-Net's attention")
    encoder_heads: int = Field(default=4, ge=1, description="number of heads of the encoder's attention")
