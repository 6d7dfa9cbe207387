"""Train denoisers for a given processor time, in processes with one core each, and measure the models' quality."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice, pairwise
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from autoencoder.perceptual import Perceptual
from benchmarks import kit
from benchmarks.claims.drawings import (
    LITE0,
    OPTIONS,
    Drawings,
    choose_prompts,
    judges,
    measure_fidelity,
    reference_features,
)
from benchmarks.claims.recipes import Figures, Job, Recipe, Setting, file_name
from benchmarks.speed import peers
from benchmarks.speed.workspace import Workspace
from ldm_kit.data.images import to_unit
from ldm_kit.metrics.fidelity import embed, frechet
from ldm_kit.training.launch import cores

SAMPLING = kit.SamplingOptions(**OPTIONS)
PILOT = 20  # steps that tell how long one takes
Judge = Callable[[kit.Pipeline], Figures]


def train_missing(jobs: Sequence[Job], setting: Setting) -> None:
    """Train and measure every job whose results are not stored yet, as many at a time as there are cores.

    Autoencoders that the jobs need are trained first. `setting` has the table's autoencoder and number of prompts.
    """
    folder = setting.folder
    folder.mkdir(parents=True, exist_ok=True)
    left = sorted((job for job in dict.fromkeys(jobs) if not job.path(folder).exists()), key=lambda job: job.seed)
    with workers() as pool:
        stages = {setting.first_stage(job.recipe): job.recipe.first_stage for job in left}
        missing = {path: overrides for path, overrides in stages.items() if overrides is not None and not path.is_dir()}
        for stage in [pool.submit(_train_first_stage, path.parent, given) for path, given in missing.items()]:
            stage.result()
        paces: dict[Recipe, Future[float]] = {}
        for job in left:
            if job.recipe.peer_lr is None and job.recipe not in paces:
                paces[job.recipe] = pool.submit(seconds_per_step, job.recipe, setting.first_stage(job.recipe))
        steps = {recipe: pace.result() for recipe, pace in paces.items()}
        waiting = [pool.submit(_train_job, job, setting, steps.get(job.recipe)) for job in left]
        for job in tqdm(waiting, unit="training", disable=not waiting):
            job.result()


def workers() -> ProcessPoolExecutor:
    """Return a pool of as many processes as there are cores, each with one thread on a core of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(cores(), mp_context=get_context("spawn"), initializer=_take_core)


def _take_core() -> None:
    torch.set_num_threads(1)
    free = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {free[(current_process()._identity[0] - 1) % len(free)]})


def _train_first_stage(run: Path, overrides: Sequence[str]) -> None:
    """Train the quick recipe's autoencoder with overrides of it, in the run folder `run`."""
    given = [f"run={run}", "log.tensorboard=false", *overrides]
    subprocess.run([sys.executable, "train_ae.py", str(kit.AE), *given], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def open_recipe(recipe: Recipe, autoencoder: Path, steps: int, seed: int = 0) -> Iterator[kit.Training]:
    """Return a context with a training run of the quick recipe's denoiser with overrides, in a temporary folder.

    Args:
        recipe: overrides of the quick recipe.
        autoencoder: folder of the saved autoencoder.
        steps: steps of the run.
        seed: the run's seed.
    """
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        given = (f"run={folder}/run", f"autoencoder={autoencoder}", f"seed={seed}", f"train.steps={steps}")
        config = kit.read_latent(*given, "log.tensorboard=false", *recipe.overrides)
        with kit.open_training(config, lambda device: kit.open_latent(config, kit.load_openmoji(), device)) as training:
            yield training


def cpu_seconds(training: kit.Training) -> Iterator[float]:
    """Train to the end; after each step yield the seconds of processor time since the start."""
    start = time.process_time()
    for _ in training.steps():
        yield time.process_time() - start


def seconds_per_step(recipe: Recipe, autoencoder: Path) -> float:
    """Return the processor time of a training step of a recipe with ldm_kit, in seconds.

    It is the lower quartile over PILOT steps, as other programs can only make a step longer. `autoencoder` is the
    folder of the saved autoencoder.
    """
    with open_recipe(recipe, autoencoder, steps=10**6) as training:
        times = list(islice(cpu_seconds(training), PILOT))
    return sorted(after - before for before, after in pairwise(times))[PILOT // 4]


def _train_job(job: Job, setting: Setting, step: float | None) -> None:
    judge, autoencoder = make_judge(setting.prompts, setting.autoencoder), setting.first_stage(job.recipe)
    if step is None:
        figures = train_peers(job, autoencoder, judge)
    else:
        steps = max(10, round(job.minutes * 60 / step))
        with open_recipe(job.recipe, autoencoder, steps, job.seed) as training:
            *_, seconds = cpu_seconds(training)
            with training.pipeline() as pipeline:
                figures = {"steps": steps, "seconds": seconds, **judge(pipeline)}
    path = job.path(setting.folder)
    path.with_suffix(".part").write_text(json.dumps(figures), encoding="utf-8")
    path.with_suffix(".part").replace(path)  # whole, or not there


def train_peers(job: Job, autoencoder: Path, judge: Judge) -> Figures:
    """Train with diffusers' script in bf16 until the job's time is spent; return the figures of the averaged weights.

    Args:
        job: the recipe, the time and the seed.
        autoencoder: folder of the saved autoencoder.
        judge: function that returns the figures of a pipeline.
    """
    recipe = job.recipe
    assert recipe.peer_lr is not None
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        (Path(folder) / "ae").symlink_to(autoencoder.resolve())
        space = Workspace(Path(folder), kit.cache_dir(), 10**6)
        torch.manual_seed(job.seed)
        steps, start = peers.train_stage2(space, "bf16", recipe.overrides, recipe.peer_lr), time.process_time()
        for number, module in enumerate(steps, start=1):
            if (seconds := time.process_time() - start) >= job.minutes * 60:
                pipeline = _averaged_pipeline(module, space, recipe)
                return {"steps": number, "seconds": seconds, **judge(pipeline)}
    raise AssertionError("the peers' loop has no end")


def _averaged_pipeline(module: peers.PreparedModule, space: Workspace, recipe: Recipe) -> kit.Pipeline:
    assert module.ema is not None
    module.ema.copy_to(module.net.parameters())
    config = space.stage2(*recipe.overrides)
    return kit.build_pipeline(config, space.autoencoder, module.net.eval(), kit.NATIVE)


def guide_model(setting: Setting, recipe: Recipe, steps: int) -> Path:
    """Return the folder of the guide model for autoguidance, after training it if it does not exist.

    It is a model of `recipe` on the autoencoder of `setting` that was trained for only `steps` steps.
    """
    path = setting.folder / f"guide-{file_name(recipe.words)}-{steps}"
    if not path.is_dir():
        with workers() as pool:
            pool.submit(_train_guide, path, setting.autoencoder, recipe, steps).result()
    return path


def _train_guide(path: Path, autoencoder: Path, recipe: Recipe, steps: int) -> None:
    with open_recipe(recipe, autoencoder, steps) as training:
        deque(training.steps(), maxlen=0)
        with training.pipeline() as pipeline:
            pipeline.save(path)


def make_judge(prompts: int, autoencoder: Path, options: kit.SamplingOptions = SAMPLING) -> Judge:
    """Return a function that generates pictures with a pipeline, and returns their figures by name.

    Figures are prompt fidelity on seen and unseen captions, the Fréchet distance of EfficientNet-Lite0 features to the
    prompts' true pictures, and seconds of processor time a picture.

    Args:
        prompts: most prompts of each kind.
        autoencoder: folder of the autoencoder in whose latents nearest pictures are found, for all pipelines.
        options: sampling options.
    """
    split, vae = kit.load_openmoji(), AutoencoderKL.from_pretrained(autoencoder)
    drawings, lite0 = Drawings.all(split), Perceptual(LITE0)
    sets: dict[str, Any] = {"seen": split.train, "unseen": split.compositional}

    @torch.no_grad()
    def judge(pipeline: kit.Pipeline) -> Figures:
        latents = judges(vae, torch.device("cpu"))["autoencoder latents"]
        references, figures = reference_features(drawings, latents), {}
        for name, pictures in sets.items():
            texts, start = choose_prompts(pictures, prompts, name), time.process_time()
            made = kit.generate(pipeline, texts, range(len(texts)), options)
            seconds = (time.process_time() - start) / len(texts)
            row = measure_fidelity(drawings, references, made, texts, latents)
            figures |= {f"{name} rank1": row.rank1, f"{name} rank5": row.rank5}
            if name == "seen":
                true = drawings.pixels[[drawings.of[text] for text in texts]]
                clouds = [embed(lambda x: lite0.features(to_unit(x)), cloud) for cloud in (made, true)]
                figures |= {"seconds a picture": seconds, "lite0": frechet(*clouds)}
        return figures

    return judge
