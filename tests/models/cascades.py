"""Tiny models with random weights that make a cascade: 8 px of pixels, 16 px of pixels, 32 px of latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from conditioning.derived import SuperResolution
from conditioning.labels import ClassConditioner, ClassConfig
from conditioning.none import NoCondition
from conditioning.pictures import PictureCondition
from conditioning.text import TextConditioner, TextConfig
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods.latent_config import SampleConfig
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import SAMPLING, SavedSampling
from ldm_kit.nets.unet import UNetConfig, build_unet

NET = UNetConfig(widths=(8, 16), attention_levels=(False, True), heads=2, norm_num_groups=4)
VAE = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
CAPTIONS = ["a red square", "a blue circle"] * 3


def text(layers: int = 1):
    config = TextConfig(width=16, layers=layers, heads=2, vocabulary=520, length=8)
    return TextConditioner.build(config, captions=CAPTIONS).eval()


def classes(*names):
    return ClassConditioner.build(ClassConfig(width=16), classes=names).eval()


def model(
    conditioner, side: int, picture: PictureCondition | None = None, *, seed=0, latents=False, channels=3, **saved
):
    """A model of pictures of `side` pixels; of latents of half that side where `latents` is true."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**VAE, **BLOCKS, scaling_factor=1.0).eval() if latents else None
    outputs = 4 if latents else channels
    level = picture is not None and picture.takes_level
    unet = build_unet(
        NET,
        sample_size=side // 2 if latents else side,
        channels=outputs + (0 if picture is None else picture.channels(channels, 4 if latents else None)),
        out_channels=outputs,
        cross_width=conditioner.width,
        level=level,
    ).eval()
    options = SampleConfig(**{"steps": 2, "solver": "ddim", "guidance_scale": 1.0, **saved})
    own = SavedSampling.of(SAMPLING, options, 0.1)
    return Pipeline(vae, unet, conditioner, ScheduleConfig(kind="cosine"), "v", saved=own, picture=picture)


def stages() -> list[Pipeline]:
    """Captions at 8 px, captions and a picture at 16 px, a picture alone at 32 px, in latents."""
    torch.manual_seed(5)
    return [
        model(text(), 8, seed=1, guidance_scale=2.0),
        model(text(), 16, SuperResolution(factor=2, max_level=400), seed=2),
        model(NoCondition(), 32, SuperResolution(factor=2), seed=3, latents=True),
    ]


def saved(folder: Path, *pipelines: Pipeline) -> list[Path]:
    """Save models to folders m1, m2, ... in `folder`."""
    paths = [folder / f"m{number}" for number in range(1, len(pipelines) + 1)]
    for path, pipeline in zip(paths, pipelines, strict=True):
        pipeline.save(path)
    return paths
