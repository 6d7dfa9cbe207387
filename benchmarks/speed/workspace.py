"""What all timed variants share: OpenMoji at 32 px, the quick recipe, and saved networks with random weights."""

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

ENDLESS = 1_000_000  # steps of a run, more than are ever timed


@dataclass(frozen=True)
class Workspace:
    """Folders that the timed variants share, and the number of training pictures."""

    folder: Path  # folder of runs, models and caches of this measurement
    raster: Path  # the user's cache folder, which has the rasterised OpenMoji pictures
    pictures: int  # most training pictures
    name: str = ""  # name of the model that `with_model` has written; "": none yet

    @classmethod
    def make(cls, folder: Path, pictures: int = 1024) -> "Workspace":
        """Make a workspace in `folder`, and save an autoencoder with random weights there.

        From now on all caches of this process are in `folder`. `pictures` is the largest number of training pictures.
        """
        space = cls(folder, kit.cache_dir(), pictures)
        space.split()  # rasterised where the user keeps it
        os.environ["LDM_KIT_CACHE"] = str(folder / "cache")
        torch.manual_seed(0)
        vae: Any = build_autoencoder(kit.read_autoencoder().autoencoder)
        fold(vae, measure(vae, [to_unit(space.split().train.pictures(range(min(256, pictures))))]))
        vae.save_pretrained(space.autoencoder)
        return space

    def with_model(self, name: str, *overrides: str) -> "Workspace":
        """Save a pipeline with random weights, named `name`; `overrides` change the quick recipe of the denoiser."""
        space = replace(self, name=name)
        kit.build_pipeline(self.stage2(*overrides), self.autoencoder).save(space.model)
        return space

    @property
    def autoencoder(self) -> Path:
        """Folder of the saved autoencoder."""
        return self.folder / "ae"

    @property
    def model(self) -> Path:
        """Folder of the pipeline that `with_model` has saved."""
        return self.folder / "models" / self.name

    @property
    def text_encoder(self) -> Path:
        """Folder of the quick recipe's frozen text encoder, which transformers can load."""
        condition: Any = self.stage2().condition
        return sources.find(condition.model).folder

    def split(self) -> Split:
        """Return the first `pictures` of OpenMoji's training pictures; none are held out."""
        whole = load(OpenMojiConfig(resolution=32, cache=self.raster))
        few = range(min(self.pictures, len(whole.train)))
        return Split(subset(whole.train, few), subset(whole.train, []), None)

    def stage2(self, *overrides: str) -> kit.LatentRun:
        """Read the quick recipe of the denoiser for a new run folder, with overrides.

        Conditions are text tokens alone, without a pooled embedding, as in diffusers' script.
        """
        return kit.read_latent(*self._run(), f"autoencoder={self.autoencoder}", "condition.pool=false", *overrides)

    def stage1(self, *overrides: str) -> kit.AutoencoderRun:
        """Read the quick recipe of the autoencoder for a new run folder, with overrides."""
        return kit.read_autoencoder(*self._run(), *overrides)

    def pixels(self, *overrides: str) -> kit.LatentRun:
        """Read the config of unconditional diffusion of pixels for a new run folder, with overrides."""
        return kit.read_latent(*self._run(), *overrides, config=kit.PIXELS)

    def _run(self) -> tuple[str, str]:
        return f"run={tempfile.mkdtemp(prefix='run-', dir=self.folder)}", f"train.steps={ENDLESS}"


def train_stage2(space: Workspace, overrides: Sequence[str] = (), cached: bool = True) -> Iterator[object]:
    """Train the denoiser with ldm_kit, and yield after each step.

    Args:
        space: folders and pictures that all variants share.
        overrides: overrides of the quick recipe.
        cached: whether latents and text states are encoded before training; else in every step.
    """
    config = space.stage2(*overrides)
    return kit.train_steps(config, lambda device: kit.open_latent(config, space.split(), device, cached))


def train_random(space: Workspace, side: int, count: int, tokens: int, overrides: Sequence[str]) -> Iterator[object]:
    """Train the denoiser with ldm_kit on random latents, and yield after each step.

    Args:
        space: folders that all variants share.
        side: height and width of the latents.
        count: number of latents in the data set.
        tokens: number of random text states of each latent.
        overrides: overrides of the quick recipe.
    """
    config = space.stage2(*overrides)
    return kit.train_steps(config, partial(kit.open_random_latents, config, side, count, tokens))


def train_stage1(space: Workspace, overrides: Sequence[str] = ()) -> Iterator[object]:
    """Train the autoencoder with ldm_kit, and yield after each step; `overrides` change the quick recipe."""
    config = space.stage1(*overrides)
    return kit.train_steps(config, lambda device: kit.open_autoencoder(config, space.split(), device))


def train_pixels(space: Workspace, overrides: Sequence[str]) -> Iterator[object]:
    """Train unconditional diffusion of pixels with ldm_kit; yield after each step. `overrides` change the config."""
    config = space.pixels(*overrides)
    return kit.train_steps(config, lambda device: kit.open_latent(config, space.split(), device))


def generate(
    space: Workspace, options: kit.SamplingOptions, count: int, precision: torch.dtype | None
) -> Iterator[object]:
    """Generate `count` pictures of the workspace's model with ldm_kit in one batch, endlessly; yield each batch.

    `precision` is the dtype of autocast; None: float32.
    """
    pipeline = kit.load_pipeline(space.model, precision)
    prompts = [record.text for record in space.split().train.records[:count]]
    while True:
        yield kit.generate(pipeline, prompts, range(count), options, count)
