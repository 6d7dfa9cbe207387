"""Time to quality on OpenMoji, of whole recipes and of single choices in ours, over several seeds.

python -m benchmarks.quality recipes     ours after 1, 2, 4 minutes of a core beside the peers' script after 10
python -m benchmarks.quality choices     the demo's recipe with one thing changed, each for as many minutes

Every training has a core to itself, one thread, and a budget of that core's processor time, so that what else the
machine does meanwhile changes little. Rows lie in runs/benchmarks/quality, one file a training: a second call goes on.
"""

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from autoencoder.perceptual import Perceptual
from benchmarks.quality.recipes import Figures, Judge, Recipe, ours, pace, theirs
from benchmarks.speed import machine
from benchmarks.speed.page import put, table
from ldm_kit.cli import door, serve
from ldm_kit.config import UserError
from ldm_kit.data.images import to_unit
from ldm_kit.data.openmoji import OpenMojiConfig, load
from ldm_kit.demo.measure import Drawings, chosen, draw, known, measured
from ldm_kit.demo.show import LITE0, WISH, judges
from ldm_kit.evaluation.fidelity import embed, frechet
from ldm_kit.pipeline import Pipeline

FOLDER = Path("runs/benchmarks/quality")
PEERS = {
    "peers' script, bf16, its own lr (1e-4)": Recipe(peer_lr=1e-4),
    "peers' script, bf16, lr 1e-3": Recipe(peer_lr=1e-3),
}
OURS = Recipe()
CHOICES = {
    "the demo's recipe": OURS,
    "AdamW for all, lr 1e-3": Recipe(("optim.muon=null", "optim.lr=1e-3")),
    "Muon on whole weights": Recipe(("optim.muon.block=null",)),
    "captions by attention alone": Recipe(("condition.pool=false",)),
    "time added, not scale and shift": Recipe(("unet.time=add",)),
    "batch 32": Recipe(("train.batch_size=32",)),
    "min-SNR 5": Recipe(("min_snr=5",)),
    "logit-normal times": Recipe(("times.density=logit_normal",)),
    "EMA of deviation 0.15": Recipe(("ema.std=0.15",)),
    "constant learning rate": Recipe(("optim.decay=constant",)),
    "three quarters of the width": Recipe(("unet.widths=[96, 192]",)),
}
FIGURES = {
    "Lite0 distance": "lite0",
    "rank 1": "seen rank1",
    "rank 5": "seen rank5",
    "rank 5, unseen combinations": "unseen rank5",
}


@dataclass(frozen=True)
class Job:
    """One training."""

    recipe: Recipe
    minutes: float
    seed: int

    @property
    def path(self) -> Path:
        """Where its figures are kept."""
        told = [*self.recipe.overrides, f"peer {self.recipe.peer_lr}" if self.recipe.peer_lr else "ours"]
        words = "-".join("".join(c if c.isalnum() else "_" for c in word) for word in told)
        return FOLDER / f"{words}-{self.minutes:g}min-{self.seed}.json"

    def done(self) -> Figures:
        """Its figures."""
        return json.loads(self.path.read_text(encoding="utf-8"))


def main(
    names: Annotated[list[str] | None, typer.Argument(help="recipes, choices; both when left out")] = None,
    autoencoder: Annotated[Path, typer.Option(help="first stage of all")] = Path("runs/demo/ae/model"),
    minutes: Annotated[float, typer.Option(help="of one core, for the peers; choices have a third of it")] = 10,
    seeds: Annotated[int, typer.Option(help="trainings of each row")] = 3,
    prompts: Annotated[int, typer.Option(help="pictures that a figure is taken from")] = 400,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write docs/performance.md")] = True,
) -> None:
    """Train, measure, and write the tables."""
    with door():
        if not autoencoder.is_dir():
            raise UserError(f"no autoencoder in {autoencoder}; `make demo` trains one, or name another: --autoencoder")
        sections: Mapping[str, Callable[[float, int], dict[str, list[Job]]]] = {"recipes": recipes, "choices": choices}
        chosen_names = names or list(sections)
        if unknown := [name for name in chosen_names if name not in sections]:
            raise UserError(f"unknown section {unknown[0]!r}; expected {', '.join(sections)}")
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in chosen_names:
            rows = sections[name](minutes, seeds)
            run([job for jobs in rows.values() for job in jobs], autoencoder, prompts)
            text = f"{TITLES[name]}\n\n{_table(rows)}\n\n{_about(name, seeds, prompts)}"
            typer.echo(f"{text}\n")
            if page:
                put(f"quality {name}", text)


def recipes(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Ours for a twentieth, a tenth, a fifth and two fifths of the peers' time."""
    shares = (0.05, 0.1, 0.2, 0.4)
    rows = {f"ours, {share * minutes:g} min": _jobs(OURS, share * minutes, seeds) for share in shares}
    return rows | {f"{name}, {minutes:g} min": _jobs(recipe, minutes, seeds) for name, recipe in PEERS.items()}


def choices(minutes: float, seeds: int) -> dict[str, list[Job]]:
    """Ours with one thing changed, in as much time."""
    return {name: _jobs(recipe, minutes * 0.4, seeds) for name, recipe in CHOICES.items()}


TITLES = {
    "recipes": "## Time to quality: whole recipes",
    "choices": "## Time to quality: single choices\n\nThe demo's recipe with one thing changed, each for as long:",
}


def _jobs(recipe: Recipe, minutes: float, seeds: int) -> list[Job]:
    return [Job(recipe, minutes, seed) for seed in range(seeds)]


def run(jobs: Sequence[Job], autoencoder: Path, prompts: int) -> None:
    """Every training that has no figures yet, as many at a time as there are cores."""
    left = [job for job in dict.fromkeys(jobs) if not job.path.exists()]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(machine.cores(), mp_context=get_context("spawn"), initializer=_alone) as pool:
        paces: dict[Recipe, Future[float]] = {}
        for job in left:
            if job.recipe.peer_lr is None and job.recipe not in paces:
                paces[job.recipe] = pool.submit(_pace, job.recipe, autoencoder)
        steps = {recipe: found.result() for recipe, found in paces.items()}
        waiting = [pool.submit(_train, job, autoencoder, prompts, steps.get(job.recipe)) for job in left]
        for job in tqdm(waiting, unit="training", disable=not waiting):
            job.result()


def _alone() -> None:
    """One thread, on a core of this worker's own."""
    torch.set_num_threads(1)
    free = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {free[(current_process()._identity[0] - 1) % len(free)]})


def _pace(recipe: Recipe, autoencoder: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        return pace(recipe, Path(folder) / "run", autoencoder)


def _train(job: Job, autoencoder: Path, prompts: int, step: float | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="quality-"))
    try:
        judge = judging(autoencoder, prompts)
        given = (job.recipe, folder / "run", autoencoder, job.seed)
        if step is None:
            found = theirs(*given, job.minutes * 60, judge)
        else:
            found = ours(*given, max(10, round(job.minutes * 60 / step)), judge)
    finally:
        shutil.rmtree(folder)
    job.path.write_text(json.dumps(found), encoding="utf-8")


def judging(autoencoder: Path, prompts: int) -> Judge:
    """Prompt fidelity as the demo has it, and the distance of Lite0 features to the prompts' true pictures."""
    split = load(OpenMojiConfig(resolution=32))
    drawings, lite0 = Drawings.all(split), Perceptual(LITE0)
    parts = {"seen": split.train, "unseen": split.compositional}

    @torch.no_grad()
    def judge(pipeline: Pipeline) -> Figures:
        latents = judges(pipeline, torch.device("cpu"))["autoencoder latents"]
        references, found = known(drawings, latents), {}
        for name, part in parts.items():
            assert part is not None
            texts = chosen(part, prompts, name)
            made = draw(pipeline, texts, WISH)
            row = measured(drawings, references, made, texts, latents)
            found |= {f"{name} rank1": row.rank1, f"{name} rank5": row.rank5}
            if name == "seen":
                true = drawings.pixels[[drawings.of[text] for text in texts]]
                clouds = [embed(lambda x: lite0.features(to_unit(x)), pictures) for pictures in (made, true)]
                found["lite0"] = frechet(*clouds)
        return found

    return judge


def _table(rows: Mapping[str, Sequence[Job]]) -> str:
    lines = []
    for name, jobs in rows.items():
        found = [job.done() for job in jobs]
        shown = [_shown(key, [one[key] for one in found]) for key in FIGURES.values()]
        steps, seconds = (statistics.median(one[key] for one in found) for key in ("steps", "seconds"))
        lines.append((name, f"{seconds:.0f}", f"{steps:.0f}", *shown))
    return table(("", "core seconds", "steps", *FIGURES), lines)


def _shown(key: str, values: Sequence[float]) -> str:
    """Mean, and the range over seeds."""
    scale, unit = (1, "") if key == "lite0" else (100, " %")
    low, mean, high = (scale * value for value in (min(values), statistics.mean(values), max(values)))
    return f"{mean:.0f}{unit} ({low:.0f} to {high:.0f})"


def _about(name: str, seeds: int, prompts: int) -> str:
    return (
        f"`python -m benchmarks.quality {name}` on {machine.described()}, each training on one core with one thread; "
        f"means over {seeds} seeds and their range, {prompts} prompts (at most) a figure."
    )


if __name__ == "__main__":
    serve(main)
