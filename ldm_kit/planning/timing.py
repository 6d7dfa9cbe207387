"""Time a recipe on this machine, by short trainings of both stages on some of the folder's pictures."""

import contextlib
import io
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoencoder.base import encode
from ldm_kit.data.images import PictureSet, Split, subset, to_unit
from ldm_kit.data.near_duplicates import find_leaks
from ldm_kit.methods.autoencoder import MOST
from ldm_kit.methods.conditions import Conditions
from ldm_kit.methods.inputs import FirstStage
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.methods.train import resolve_config, train
from ldm_kit.models.folder import device_named
from ldm_kit.planning.recipes import Recipe
from ldm_kit.planning.stages import (
    EVALUATIONS,
    HELDOUT,
    RECONSTRUCTED,
    SAMPLE_STEPS,
    SAMPLED,
    Tree,
    first_stage,
    second_stage,
)
from ldm_kit.training.log import FILE

WARM = 3  # first steps, which are slower and not counted
PICTURES = 64  # pictures of a short training
FORWARD = 1 / 3  # share of a step that a forward pass takes


@dataclass(frozen=True)
class StageTime:
    """What a short training of a stage took and wrote."""

    step: float  # seconds of a step, the median
    fixed: float  # seconds of all besides the steps: opening networks, a small evaluation, saving
    disk: int  # bytes of the run's folder


@dataclass(frozen=True)
class RecipeTime:
    """What both stages of a recipe take on this machine, in seconds, as far as short trainings tell.

    `first` is None without a first stage.
    """

    recipe: Recipe
    pictures: tuple[int, int]  # training and held-out pictures
    opening: float  # reading the folder and looking for near-duplicates, at the start of each stage
    captions: float  # preparing all captions
    encoded: float  # encoding a picture to latents; 0 without a first stage
    first: StageTime | None
    second: StageTime

    def of_steps(self, steps: tuple[int, int]) -> float:
        """Return the seconds of the steps of both stages alone."""
        return (0.0 if self.first is None else self.first.step * steps[0]) + self.second.step * steps[1]

    @property
    def fixed(self) -> float:
        """Seconds of both stages besides their steps."""
        return sum(self.seconds((0, 0)))

    def seconds(self, steps: tuple[int, int]) -> tuple[float, float]:
        """Return the seconds of each stage, for its number of steps."""
        train, heldout = self.pictures
        measured = min(heldout, HELDOUT)
        forward = self.second.step * FORWARD / self.recipe.networks.batches[1]
        samples = SAMPLED * SAMPLE_STEPS * (1 if self.recipe.condition == "none" else 2)
        second = self.opening + self.captions + self.second.fixed + self.second.step * steps[1]
        second += EVALUATIONS * (measured + samples) * forward
        if self.first is None:
            return 0.0, second
        forward = self.first.step * FORWARD / self.recipe.networks.batches[0]  # encoded and decoded
        first = self.opening + self.first.fixed + self.first.step * steps[0] + self.encoded * min(train, MOST)
        first += EVALUATIONS * (measured + RECONSTRUCTED) * forward
        return first, second + self.encoded * (train + heldout) + EVALUATIONS * SAMPLED * forward

    @property
    def disk(self) -> int:
        """Bytes of both runs and of the cached latents."""
        runs = self.second.disk + (0 if self.first is None else self.first.disk)
        return runs if self.first is None else runs + 8 * 4 * self.recipe.latent_side**2 * sum(self.pictures)

    def __str__(self) -> str:
        first = "" if self.first is None else f"{self.first.step:.3g} s a step of stage 1, "
        return f"{first}{self.second.step:.3g} s of stage 2"


def time_recipe(recipe: Recipe, load: Callable[[], Split], section: Tree, steps: int = 12) -> RecipeTime:
    """Train both stages for a few steps, and time them.

    Args:
        recipe: resolution and networks.
        load: loads the folder's pictures at the recipe's resolution.
        section: the configs' section `data`.
        steps: steps of each stage, of which the first 3 are not counted.
    """
    began = time.monotonic()
    data = load()
    find_leaks(data)
    opening = time.monotonic() - began
    few = Split(_few(data.train), _few(data.heldout) if len(data.heldout) else data.heldout, None)
    with tempfile.TemporaryDirectory(prefix="ldm_kit-new-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        ae = None if recipe.in_pixels else str(folder / "ae")
        first = None if ae is None else _time(_short(first_stage(recipe, section, ae, steps)), few)
        tree = _short(second_stage(recipe, section, str(folder / "ldm"), steps, ae))
        tree = {**tree, "latents": str(folder / "latents")}
        second = _time(tree, few)
        config: Any = resolve_config(tree, data=few)
        encoded, captions = _encode_seconds(config, few.train), _caption_seconds(config, few)
    pictures = len(data.train), len(data.heldout)
    return RecipeTime(recipe, pictures, opening, captions * sum(pictures), encoded, first, second)


def _short(tree: Tree) -> Tree:
    """Return a config with a line of metrics for each step, and one small evaluation, which samples one picture."""
    log = {"every": 1, "evaluate_every": 10**6, "pictures": 1, "max_heldout": 1, "tensorboard": False}
    sample = {"sample": {**tree["sample"], "steps": 1}} if "sample" in tree else {}
    return {**tree, **sample, "log": log, "train": {**tree["train"], "checkpoint_every": 10**6}}


def _time(tree: Tree, data: Split) -> StageTime:
    began = time.monotonic()
    with _silent():
        train(tree, data=data)
    whole = time.monotonic() - began
    run = Path(tree["run"])
    lines = [json.loads(line) for line in (run / FILE).read_text(encoding="utf-8").splitlines()]
    spent = [1 / line["steps_per_second"] for line in lines if "steps_per_second" in line]
    disk = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    return StageTime(statistics.median(spent[WARM:] or spent), max(0.0, whole - math.fsum(spent)), disk)


@torch.no_grad()
def _encode_seconds(config: LatentRun, pictures: PictureSet) -> float:
    """Return the seconds that encoding a picture takes, measured with a few; 0 without a first stage."""
    stage = FirstStage.open(config, pictures, device_named(None))
    if stage.vae is None:
        return 0.0
    x = to_unit(pictures.pictures(range(len(pictures)))).to(stage.device)
    encode(stage.vae, x)
    began = time.monotonic()
    encode(stage.vae, x)[0].cpu()  # waits for a GPU
    return (time.monotonic() - began) / len(x)


def _caption_seconds(config: LatentRun, few: Split) -> float:
    """Return the seconds that preparing a caption takes, measured with a few; a first call opens the encoder."""
    conditions = Conditions.open(config.condition, few)
    conditioner = conditions.build(config.unet.time_width)
    with _silent():
        conditioner.prepare(conditions.train[:1])
        began = time.monotonic()
        conditioner.prepare(conditions.train)
    return (time.monotonic() - began) / len(few.train)


def _few(pictures: PictureSet) -> PictureSet:
    return subset(pictures, range(min(PICTURES, len(pictures))))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
