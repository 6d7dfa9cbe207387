"""Our side: what the doors run, step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import conditioning.factory as conditioners
from autoencoder.base import encode
from benchmarks.speed.world import CHANNELS, ENDLESS, World, denoiser
from conditioning.base import Conditioner, Inputs
from ldm_kit.config import read
from ldm_kit.data.batches import PictureBatches
from ldm_kit.data.images import Split
from ldm_kit.data.latents import LatentBatches, Latents
from ldm_kit.methods.autoencoder import AutoencoderRun, Autoencoding
from ldm_kit.methods.base import Collectives, RunConfig
from ldm_kit.methods.latent import Latent, LatentRun
from ldm_kit.methods.stage import LatentStage
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.execution import set_attention
from ldm_kit.nets.unet import build_unet
from ldm_kit.training.session import session
from ldm_kit.training.task import BatchSource

Opened = tuple[Any, BatchSource]  # a task, and its batches
PIXELS = "configs/pixels/openmoji32_uncond.yaml"


def trained(settings: RunConfig, opened: Callable[[torch.device], Opened]) -> Iterator[object]:
    """One training step at a time, as a door makes them: loop, optimisers, averages and log."""
    with session(settings, None) as run:
        task, batches = opened(run.device)
        trainer = run.trainer(task)
        log = run.log(trainer)
        for step in trainer.train(batches):
            log.step(step)
            yield step


def stage2(world: World, overrides: Sequence[str] = (), cached: bool = True) -> Iterator[object]:
    """Stage 2 as configured; not `cached`: pictures and captions are encoded in every step."""
    settings = world.stage2(*overrides)
    return trained(settings, partial(_stage2, settings, world.split(), cached))


def _stage2(settings: LatentRun, split: Split, cached: bool, device: torch.device) -> Opened:
    stage = LatentStage.open(settings, split, device, Collectives())
    return stage.task, stage.batches if cached else Uncached(stage, stage.task.module.conditioner)


@dataclass(frozen=True, eq=False)
class Uncached:
    """Batches without a cache: posterior and text states of every picture, every time, in the run's precision."""

    stage: LatentStage
    conditioner: Conditioner

    @property
    def fingerprint(self) -> str:
        """Of the cached ones."""
        return self.stage.batches.fingerprint

    def __len__(self) -> int:
        return len(self.stage.batches)

    @torch.no_grad()
    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, object]:
        """As `LatentBatches` gives them."""
        stage = self.stage
        found = PictureBatches(stage.data.train, stage.settings.seed, stage.settings.flip).__getitems__(places)
        assert stage.vae is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=stage.settings.train.precision == "bf16"):
            mean, logvar = encode(stage.vae, found["x"])
            inputs = self.conditioner.prepare([stage.batches.raw[index] for _, index in places])
        return {"mean": mean.float(), "logvar": logvar.float(), "inputs": inputs, "position": found["position"]}


def synthetic(world: World, side: int, count: int, tokens: int, overrides: Sequence[str] = ()) -> Iterator[object]:
    """Stage 2 on `count` random latents of a side, each with `tokens` random text states."""
    settings = world.stage2(*overrides)

    def opened(device: torch.device) -> Opened:
        conditioner = conditioners.build(settings.condition, captions=[], classes=(), time_width=512)
        unet = denoiser(settings, conditioner.width, side)
        set_attention(unet, device)
        mean = torch.randn(count, 1, CHANNELS, side, side).half()
        inputs = _states(count, tokens, conditioner.width or 1)
        batches = LatentBatches(Latents(mean, torch.zeros_like(mean), "random"), inputs, [""] * count, settings.seed)
        return Latent(settings, unet, conditioner), batches

    return trained(settings, opened)


def _states(count: int, tokens: int, width: int) -> Inputs:
    states: Tensor = torch.empty(count, tokens, width, dtype=torch.bfloat16).normal_()
    return {"states": states, "mask": torch.ones(count, tokens, dtype=torch.bool)}


def stage1(world: World, overrides: Sequence[str] = ()) -> Iterator[object]:
    """Stage 1 as configured."""
    settings: AutoencoderRun = world.stage1(*overrides)

    def opened(device: torch.device) -> Opened:
        return Autoencoding(settings), PictureBatches(world.split().train, settings.seed, settings.flip)

    return trained(settings, opened)


def pixels(world: World, overrides: Sequence[str]) -> Iterator[object]:
    """Unconditional diffusion of pixels."""
    settings = _pixels((f"run={world.stage2().run}", f"train.steps={ENDLESS}", *overrides))
    return trained(settings, partial(_stage2, settings, world.split(), True))


def _pixels(overrides: Sequence[str]) -> LatentRun:
    return read(LatentRun, PIXELS, list(overrides))


def pixel_parameters(overrides: Sequence[str]) -> float:
    """Of the U-Net of `pixels`, in millions."""
    unet = build_unet(_pixels(overrides).unet, sample_size=32, channels=3, cross_width=None)
    return sum(p.numel() for p in unet.parameters()) / 1e6


def drawing(world: World, wish: SamplingOptions, count: int, precision: torch.dtype | None) -> Iterator[object]:
    """Pictures from a saved model, `count` at a time in one batch."""
    pipeline = Pipeline.load(world.model, precision=precision)
    prompts = [record.text for record in world.split().train.records[:count]]
    while True:
        yield list(pipeline.draw(prompts, range(count), wish, count))
