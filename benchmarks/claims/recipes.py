"""Trainings in workers of their own, a core each, and what their models are judged by."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL
from tqdm import tqdm

from autoencoder.perceptual import Perceptual
from benchmarks.quality.recipes import CONFIG, Figures, Judge, Place, Recipe, ours, pace, running, theirs
from ldm_kit.data.images import to_unit
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load
from ldm_kit.demo.measure import Drawings, chosen, draw, known, measured
from ldm_kit.demo.show import LITE0, WISH, judges
from ldm_kit.metrics.fidelity import embed, frechet
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.training.launch import cores

FOLDER = Path("runs/benchmarks/quality")
FIRST_STAGE = Path("configs/demo/ae.yaml")


def _recipe(config: Path, *, whole: bool) -> str:
    """What a config says of training, without where it goes, what is shown of it, and, unless `whole`, its length."""
    given = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not whole:
        given["train"].pop("steps", None)
    return json.dumps({key: value for key, value in given.items() if key not in ("run", "log", "sample")})


def _words(told: Sequence[str]) -> str:
    """As a file's name."""
    return "-".join("".join(c if c.isalnum() else "_" for c in word) for word in told)


@dataclass(frozen=True)
class Job:
    """One training."""

    recipe: Recipe
    minutes: float
    seed: int

    def path(self, folder: Path) -> Path:
        """Where in a folder its figures are kept."""
        return folder / f"{_words(self.recipe.told)}-{self.minutes:g}min-{self.seed}.json"


@dataclass(frozen=True)
class Setting:
    """What all trainings of a table share."""

    autoencoder: Path
    prompts: int

    @property
    def folder(self) -> Path:
        """Of figures that were got with this recipe, this autoencoder and so many prompts, and no others."""
        found = hashlib.sha256(f"{self.prompts} {_recipe(CONFIG, whole=False)}".encode())
        for path in sorted(self.autoencoder.glob("*.safetensors")):
            found.update(path.read_bytes())
        return FOLDER / found.hexdigest()[:12]

    def first_stage(self, recipe: Recipe) -> Path:
        """The autoencoder that a recipe trains on: that of the table, or one of the recipe's own."""
        if recipe.first_stage is None:
            return self.autoencoder
        of = hashlib.sha256(_recipe(FIRST_STAGE, whole=True).encode()).hexdigest()[:12]
        return FOLDER / "first" / f"{_words(recipe.first_stage)}-{of}" / "model"

    def done(self, job: Job) -> Figures:
        """A job's figures."""
        return json.loads(job.path(self.folder).read_text(encoding="utf-8"))


def run(jobs: Sequence[Job], setting: Setting) -> None:
    """Every training that has no figures yet, as many at a time as there are cores; one seed of all, then the next."""
    folder = setting.folder
    folder.mkdir(parents=True, exist_ok=True)
    left = sorted((job for job in dict.fromkeys(jobs) if not job.path(folder).exists()), key=lambda job: job.seed)
    with workers() as pool:
        first = {setting.first_stage(job.recipe): job.recipe.first_stage for job in left}
        missing = {path: overrides for path, overrides in first.items() if overrides is not None and not path.is_dir()}
        for trained in [pool.submit(_first_stage, path.parent, overrides) for path, overrides in missing.items()]:
            trained.result()
        paces: dict[Recipe, Future[float]] = {}
        for job in left:
            if job.recipe.peer_lr is None and job.recipe not in paces:
                paces[job.recipe] = pool.submit(_pace, job.recipe, setting.first_stage(job.recipe))
        steps = {recipe: found.result() for recipe, found in paces.items()}
        waiting = [pool.submit(_train, job, setting, steps.get(job.recipe)) for job in left]
        for job in tqdm(waiting, unit="training", disable=not waiting):
            job.result()


def workers() -> ProcessPoolExecutor:
    """As many processes as there are cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(cores(), mp_context=get_context("spawn"), initializer=_alone)


def _alone() -> None:
    """One thread, on a core of this worker's own."""
    torch.set_num_threads(1)
    free = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {free[(current_process()._identity[0] - 1) % len(free)]})


def _first_stage(run: Path, overrides: Sequence[str]) -> None:
    """Train the demo's autoencoder under overrides; where this is broken off, no model is left."""
    given = [f"run={run}", "log.tensorboard=false", *overrides]
    subprocess.run([sys.executable, "train_ae.py", str(FIRST_STAGE), *given], check=True, stdout=subprocess.DEVNULL)


def guide(setting: Setting, recipe: Recipe, steps: int) -> Path:
    """A worse model for autoguidance: a recipe ended early."""
    path = setting.folder / f"guide-{_words(recipe.told)}-{steps}"
    if not path.is_dir():
        with workers() as pool:
            pool.submit(_guide, path, setting.autoencoder, recipe, steps).result()
    return path


def _guide(path: Path, autoencoder: Path, recipe: Recipe, steps: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="quality-"))
    try:
        with running(recipe, Place(folder / "run", autoencoder), steps) as run:
            deque(run.seconds(), maxlen=0)
            with run.ema_modules() as pipeline:
                pipeline.save(path)
    finally:
        shutil.rmtree(folder)


def _pace(recipe: Recipe, autoencoder: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        return pace(recipe, Place(Path(folder) / "run", autoencoder))


def _train(job: Job, setting: Setting, step: float | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="quality-"))
    try:
        judge = judging(setting.prompts, setting.autoencoder)
        place = Place(folder / "run", setting.first_stage(job.recipe), job.seed)
        if step is None:
            found = theirs(job.recipe, place, job.minutes * 60, judge)
        else:
            found = ours(job.recipe, place, max(10, round(job.minutes * 60 / step)), judge)
    finally:
        shutil.rmtree(folder)
    path = job.path(setting.folder)
    path.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
    path.with_suffix(".part").replace(path)  # whole, or not there


def judging(prompts: int, autoencoder: Path, wish: SamplingOptions = WISH) -> Judge:
    """Prompt fidelity as the demo has it, Lite0's distance to the prompts' true pictures, and seconds a picture.

    The latents in which the nearest drawing is sought are those of one autoencoder, whichever the pictures are made by.
    """
    split, vae = load(OpenMojiConfig(resolution=32)), AutoencoderKL.from_pretrained(autoencoder)
    drawings, lite0 = Drawings.all(split), Perceptual(LITE0)
    parts = {"seen": split.train, "unseen": split.compositional}

    @torch.no_grad()
    def judge(pipeline: Pipeline) -> Figures:
        latents = judges(vae, torch.device("cpu"))["autoencoder latents"]
        references, found = known(drawings, latents), {}
        for name, part in parts.items():
            assert part is not None
            texts, began = chosen(part, prompts, name), time.process_time()
            made = draw(pipeline, texts, wish)
            spent = (time.process_time() - began) / len(texts)
            row = measured(drawings, references, made, texts, latents)
            found |= {f"{name} rank1": row.rank1, f"{name} rank5": row.rank5}
            if name == "seen":
                found["seconds a picture"] = spent
                true = drawings.pixels[[drawings.of[text] for text in texts]]
                clouds = [embed(lambda x: lite0.features(to_unit(x)), pictures) for pictures in (made, true)]
                found["lite0"] = frechet(*clouds)
        return found

    return judge
