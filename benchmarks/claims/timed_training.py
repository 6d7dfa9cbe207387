"""Training for so many seconds of one core: the kit's own loop under a config, and the peers' script restated."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

import conditioning.factory as conditioners
from benchmarks.quality.trials import TRIALS
from benchmarks.speed import peers
from benchmarks.speed.world import World
from ldm_kit.config import read
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load
from ldm_kit.methods.base import eval_mode
from ldm_kit.config import cache_dir
from ldm_kit.methods.latent import LatentRun
from ldm_kit.methods.stage import LatentStage
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.session import session

CONFIG = Path("configs/demo/ldm.yaml")
PILOT = 20  # steps that tell how long one takes
Judge = Callable[[Pipeline], dict[str, float]]
Figures = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """What is trained with: overrides of the demo's config; with a `peer_lr`, by the peers' script at that rate.

    `trial` is a changed task of `trials`; `first_stage` trains an autoencoder anew, under overrides of the demo's.
    """

    overrides: tuple[str, ...] = ()
    peer_lr: float | None = None
    trial: str | None = None
    first_stage: tuple[str, ...] | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """All of it in words."""
        of = [f"peer {self.peer_lr}" if self.peer_lr else "ours"]
        of += [f"trial {self.trial}"] if self.trial else []
        return (*self.overrides, *(f"first {word}" for word in self.first_stage or ()), *of)


@dataclass(frozen=True)
class Place:
    """Where a training lives, on which first stage, with which seed."""

    run: Path
    autoencoder: Path
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Running:
    """A run of the kit's loop."""

    stage: LatentStage
    trainer: Any
    log: Any

    def seconds(self) -> Iterator[float]:
        """Processor time so far, after each step."""
        began = time.process_time()
        for step in self.trainer.train(self.stage.batches):
            self.log.step(step)
            yield time.process_time() - began

    @contextmanager
    def ema_modules(self) -> Iterator[Pipeline]:
        """The model with its averaged weights."""
        module, settings = self.stage.task.module, self.stage.settings
        vae: Any = self.stage.vae
        unet: Any = module.unet
        with self.trainer.ema.applied(), eval_mode(module):
            yield Pipeline(vae, unet, module.conditioner, settings.schedule, settings.prediction_type, torch.bfloat16)


@contextmanager
def running(recipe: Recipe, place: Place, steps: int) -> Iterator[Running]:
    """The demo's config with a recipe's overrides, opened in a folder of its own."""
    given = (f"run={place.run}", f"autoencoder={place.autoencoder}", f"seed={place.seed}", f"train.steps={steps}")
    settings = read(LatentRun, CONFIG, [*given, "log.tensorboard=false", *recipe.overrides])
    with session(settings, None) as run:
        stage = LatentStage.open(settings, load(OpenMojiConfig(resolution=32)), run.device)
        if recipe.trial is not None:
            stage.task = TRIALS[recipe.trial](settings, stage.task.module.unet, stage.task.module.conditioner)
        trainer = run.trainer(stage.task)
        yield Running(stage, trainer, run.log(trainer))


def pace(recipe: Recipe, place: Place) -> float:
    """Seconds of processor time a step of ours takes: the lower quartile, as what else runs only ever adds to it."""
    with running(recipe, place, steps=10**6) as run:
        spent = list(islice(run.seconds(), PILOT))
    return sorted(after - before for before, after in pairwise(spent))[PILOT // 4]


def ours(recipe: Recipe, place: Place, steps: int, judge: Judge) -> Figures:
    """The kit's loop to its end, where its learning rate has fallen to nothing."""
    with running(recipe, place, steps) as run:
        *_, seconds = run.seconds()
        with run.ema_modules() as pipeline:
            return {"steps": steps, "seconds": seconds, **judge(pipeline)}


def theirs(recipe: Recipe, place: Place, limit: float, judge: Judge) -> Figures:
    """The peers' script in bf16, until `limit` seconds are spent; its averaged weights."""
    assert recipe.peer_lr is not None
    place.run.mkdir(parents=True)
    (place.run / "ae").symlink_to(place.autoencoder.resolve())
    world = World(place.run, cache_dir(), 10**6)
    torch.manual_seed(place.seed)
    steps, began = peers.stage2(world, "bf16", recipe.overrides, recipe.peer_lr), time.process_time()
    for number, player in enumerate(steps, start=1):
        if (seconds := time.process_time() - began) >= limit:
            return {"steps": number, "seconds": seconds, **judge(_averaged(player, world, recipe))}
    raise AssertionError("their loop has no end")


def _averaged(player: peers.Player, world: World, recipe: Recipe) -> Pipeline:
    assert player.ema is not None
    player.ema.copy_to(player.net.parameters())
    settings = world.stage2(*recipe.overrides)
    conditioner = conditioners.build(settings.condition, captions=[], classes=(), time_width=512)
    vae: Any = AutoencoderKL.from_pretrained(world.autoencoder)
    unet: Any = player.net.eval()
    return Pipeline(vae, unet, conditioner, settings.schedule, settings.prediction_type, torch.bfloat16)
