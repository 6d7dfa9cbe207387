"""What all variants share: OpenMoji at 32 px, the demo's configs, and networks with random weights in a folder."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autoencoder.config import build as build_autoencoder
from autoencoder.statistics import fold, measure
from benchmarks import kit
from conditioning import sources
from ldm_kit.data.images import Split, subset, to_unit
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load

ENDLESS = 1_000_000  # steps: no variant comes to its end


@dataclass(frozen=True)
class Workspace:
    """Folders that the variants share, and how many pictures there are."""

    folder: Path
    raster: Path
    pictures: int
    name: str = ""  # of the whole model that `with_model` has written

    @classmethod
    def make(cls, folder: Path, pictures: int = 1024) -> "Workspace":
        """Write an autoencoder with random weights; caches go into `folder` from here on."""
        space = cls(folder, kit.cache_dir(), pictures)
        space.split()  # rasterised where the user keeps it
        os.environ["LDM_KIT_CACHE"] = str(folder / "cache")
        torch.manual_seed(0)
        vae: Any = build_autoencoder(kit.read_autoencoder().autoencoder)
        fold(vae, measure(vae, [to_unit(space.split().train.pictures(range(min(256, pictures))))]))
        vae.save_pretrained(space.autoencoder)
        return space

    def with_model(self, name: str, *overrides: str) -> "Workspace":
        """Write a whole model with a U-Net under overrides of the demo's config."""
        space = replace(self, name=name)
        kit.build_pipeline(self.stage2(*overrides), self.autoencoder).save(space.model)
        return space

    @property
    def autoencoder(self) -> Path:
        """Folder of the first stage."""
        return self.folder / "ae"

    @property
    def model(self) -> Path:
        """Folder of a whole model."""
        return self.folder / "models" / self.name

    @property
    def text_encoder(self) -> Path:
        """Folder of the frozen text encoder, for transformers."""
        condition: Any = self.stage2().condition
        return sources.find(condition.model).folder

    def split(self) -> Split:
        """Return the first pictures of OpenMoji's training part; none are held out."""
        whole = load(OpenMojiConfig(resolution=32, cache=self.raster))
        few = range(min(self.pictures, len(whole.train)))
        return Split(subset(whole.train, few), subset(whole.train, []), None)

    def stage2(self, *overrides: str) -> kit.LatentRun:
        """Read the demo's config for a new run folder, on tokens alone, as the peers' U-Net is."""
        return kit.read_latent(*self._run(), f"autoencoder={self.autoencoder}", "condition.pool=false", *overrides)

    def stage1(self, *overrides: str) -> kit.AutoencoderRun:
        """Read the demo's config for a new run folder."""
        return kit.read_autoencoder(*self._run(), *overrides)

    def pixels(self, *overrides: str) -> kit.LatentRun:
        """Read the config of unconditional diffusion of pixels for a new run folder."""
        return kit.read_latent(*self._run(), *overrides, config=kit.PIXELS)

    def _run(self) -> tuple[str, str]:
        return f"run={tempfile.mkdtemp(prefix='run-', dir=self.folder)}", f"train.steps={ENDLESS}"


def train_stage2(space: Workspace, overrides: Sequence[str] = (), cached: bool = True) -> Iterator[object]:
    """Train stage 2 with the kit, one step at a time."""
    config = space.stage2(*overrides)
    return kit.train_steps(config, lambda device: kit.open_latent(config, space.split(), device, cached))


def train_random(space: Workspace, side: int, count: int, tokens: int, overrides: Sequence[str]) -> Iterator[object]:
    """Train stage 2 with the kit on random latents."""
    config = space.stage2(*overrides)
    return kit.train_steps(config, partial(kit.open_random_latents, config, side, count, tokens))


def train_stage1(space: Workspace, overrides: Sequence[str] = ()) -> Iterator[object]:
    """Train stage 1 with the kit, one step at a time."""
    config = space.stage1(*overrides)
    return kit.train_steps(config, lambda _: kit.open_autoencoder(config, space.split()))


def train_pixels(space: Workspace, overrides: Sequence[str]) -> Iterator[object]:
    """Train unconditional diffusion of pixels with the kit, one step at a time."""
    config = space.pixels(*overrides)
    return kit.train_steps(config, lambda device: kit.open_latent(config, space.split(), device))


def generate(
    space: Workspace, options: kit.SamplingOptions, count: int, precision: torch.dtype | None
) -> Iterator[object]:
    """Generate `count` pictures with the kit in one batch, again and again."""
    pipeline = kit.load_pipeline(space.model, precision)
    prompts = [record.text for record in space.split().train.records[:count]]
    while True:
        yield kit.generate(pipeline, prompts, range(count), options, count)
