"""What all variants share: OpenMoji at 32 px, the demo's configs, and networks with random weights in a folder."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

import conditioning.factory as conditioners
from autoencoder.config import build as build_autoencoder
from autoencoder.statistics import fold, measure
from conditioning import sources
from ldm_kit.config import read
from ldm_kit.data.images import Split, subset, to_unit
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load
from ldm_kit.methods.autoencoder import AutoencoderRun
from ldm_kit.config import cache_dir
from ldm_kit.methods.latent import LatentRun
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.unet import UNet, build_unet

AE, LDM = Path("configs/demo/ae.yaml"), Path("configs/demo/ldm.yaml")
ENDLESS = 1_000_000  # steps: no variant comes to its end
SIDE, CHANNELS = 8, 4  # of the demo's latents


@dataclass(frozen=True)
class World:
    """Where the shared things lie, and how many pictures there are."""

    folder: Path
    raster: Path
    pictures: int
    name: str = ""  # of the whole model that `drawing` has written

    @classmethod
    def make(cls, folder: Path, pictures: int = 1024) -> "World":
        """Write an autoencoder with random weights; caches go into `folder` from here on."""
        world = cls(folder, cache_dir(), pictures)
        world.split()  # rasterised where the user keeps it
        os.environ["LDM_KIT_CACHE"] = str(folder / "cache")
        torch.manual_seed(0)
        vae: Any = build_autoencoder(read(AutoencoderRun, AE, []).autoencoder)
        fold(vae, measure(vae, [to_unit(world.split().train.pictures(range(min(256, pictures))))]))
        vae.save_pretrained(world.autoencoder)
        return world

    def drawing(self, name: str, *overrides: str) -> "World":
        """The same world, whose whole model has a U-Net under overrides of the demo's config."""
        world, settings = replace(self, name=name), self.stage2(*overrides)
        conditioner = conditioners.build(settings.condition, captions=[], classes=(), time_width=512)
        vae, unet = AutoencoderKL.from_pretrained(self.autoencoder), denoiser(settings, conditioner.width)
        Pipeline(vae, unet, conditioner, settings.schedule, settings.prediction_type).save(world.model)  # pyright: ignore[reportArgumentType]
        return world

    @property
    def autoencoder(self) -> Path:
        """The first stage's folder."""
        return self.folder / "ae"

    @property
    def model(self) -> Path:
        """The folder of a whole model."""
        return self.folder / "models" / self.name

    @property
    def text_encoder(self) -> Path:
        """The folder of the frozen text encoder, for transformers."""
        condition: Any = self.stage2().condition
        return sources.find(condition.model).folder

    def split(self) -> Split:
        """The first pictures of OpenMoji's training part; none are held out."""
        whole = load(OpenMojiConfig(resolution=32, cache=self.raster))
        few = range(min(self.pictures, len(whole.train)))
        return Split(subset(whole.train, few), subset(whole.train, []), None)

    def stage2(self, *overrides: str) -> LatentRun:
        """The demo's config in a run folder of its own, on tokens alone, as the peers' U-Net is."""
        place = (
            f"run={self._run()}",
            f"autoencoder={self.autoencoder}",
            f"train.steps={ENDLESS}",
            "condition.pool=false",
        )
        return read(LatentRun, LDM, [*place, *overrides])

    def stage1(self, *overrides: str) -> AutoencoderRun:
        """The demo's config in a run folder of its own."""
        return read(AutoencoderRun, AE, [f"run={self._run()}", f"train.steps={ENDLESS}", *overrides])

    def _run(self) -> str:
        return tempfile.mkdtemp(prefix="run-", dir=self.folder)


def denoiser(settings: LatentRun, cross_width: int | None, side: int = SIDE) -> UNet:
    """The U-Net that a config describes, for the demo's latents."""
    return build_unet(settings.unet, sample_size=side, channels=CHANNELS, cross_width=cross_width)
