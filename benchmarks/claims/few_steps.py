"""Few evaluations on faces: a trained model with ordinary solvers, and models made of it that need fewer evaluations.

These are consistency models, and a model that takes the guidance scale as input.
`python -m benchmarks.claims.few_steps BASE tune=RUN,RUN,RUN distill=RUN,... guidance=RUN` samples held-out and
never-combined prompts with each, and has the reader of attributes say how often a picture shows what its prompt says.
Several runs of a kind differ in their seed: fewer than five are listed, of more the mean stands with its 95 % interval
over runs (Student's t). The page has each row as soon as it is measured.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from autoencoder.perceptual import Perceptual
from benchmarks.claims.drawings import LITE0
from benchmarks.tables import markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.config import UserError
from ldm_kit.data import sources
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import subset, to_unit
from ldm_kit.demo.measure import choose_prompts, count_right, sample_prompts
from ldm_kit.demo.show import faces_of
from ldm_kit.methods import read_run
from ldm_kit.methods.consistency_config import ConsistencyRun
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.fidelity import embed, frechet
from ldm_kit.metrics.intervals import t_interval
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

SOLVERS = (
    ("dpm++", 15),
    ("dpm++", 8),
    ("dpm++", 4),
    ("dpm++", 2),
    ("unipc", 8),
    ("unipc", 4),
    ("unipc", 2),
    ("ddim", 1),
)
FEW = (4, 2, 1)  # steps of consistency models
LEAST_RUNS = 5  # from which on an interval is printed instead of each run's value
SHOWN = 8  # pictures of a row of the sheet
HEAD = (
    "model",
    "solver",
    "evaluations",
    "prompted values shown, %",
    "all ten shown, %",
    "Lite0 distance",
    "ms a picture",
)


@dataclass(frozen=True)
class Figures:
    """What is measured of the pictures of one model and one way of sampling."""

    mean: float  # % of factors that show what the prompt says, mean over factors
    every: float  # % of pictures in which every factor does
    distance: float  # Fréchet distance of Lite0 features to the pictures that the prompts describe
    milliseconds: float  # processor time a picture


@dataclass(frozen=True, eq=False)
class Judge:
    """Prompts, the pictures that they describe, and what judges generated pictures."""

    prompts: list[str]
    labels: Tensor  # int64 [N, F]: number of each factor's value; -1 where it is hidden
    features: Tensor  # [N, D]: Lite0 features of the pictures described
    reader: FactorReader
    lite0: Perceptual

    @classmethod
    def open(cls, base: Path, count: int) -> "Judge":
        """Choose at most `count` captions each of the held-out and of the never-combined faces of a run's data."""
        data = faces_of(base)
        split = sources.load(data)
        parts = [part for part in (split.heldout, split.compositional) if part is not None and len(part)]
        if not parts:
            raise UserError(f"{base} has no held-out or never-combined faces; expected data.heldout above 0")
        chosen = [known_factors(subset(part, choose_prompts(part, count, "few steps"))) for part in parts]
        prompts = [record.text for part in chosen for record in part.records]
        labels = torch.cat([factor_labels(part) for part in chosen])
        lite0 = Perceptual(LITE0)
        real = torch.cat([part.pictures(range(len(part))) for part in chosen])
        return cls(
            prompts, labels, embed(lambda x: lite0.features(to_unit(x)), real), factor_reader(data, split), lite0
        )

    def measure(self, pipeline: Pipeline, options: SamplingOptions) -> tuple[Figures, Tensor]:
        """Sample a picture for each prompt; return what is measured of them, and the pictures, uint8 [N, C, R, R]."""
        start = time.process_time()
        pictures = sample_prompts(pipeline, self.prompts, options)
        spent = 1000 * (time.process_time() - start) / len(pictures)
        shares = count_right(self.reader, pictures, self.labels)
        distance = frechet(embed(lambda x: self.lite0.features(to_unit(x)), pictures), self.features)
        return Figures(100 * shares.mean, 100 * shares.all.value, distance, spent), pictures


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean of some runs' values with its 95 % interval by Student's t; fewer than five as they are."""
    if len(values) < LEAST_RUNS:
        return ", ".join(f"{value:.{digits}f}" for value in values)
    low, high = t_interval(values)
    return f"{statistics.fmean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def row(name: str, solver: str, evaluations: int, runs: Sequence[Figures]) -> list[str]:
    """Return a row of the table: figures of one way of sampling, by one or more runs that differ in their seed."""
    mean, every, distance, spent = ([*values] for values in zip(*map(astuple, runs), strict=True))
    return [name, solver, str(evaluations), interval(mean), interval(every), interval(distance), interval(spent, 0)]


@dataclass(frozen=True)
class Way:
    """Runs of one kind, which differ in their seed, and how their models are sampled."""

    name: str  # of the kind
    runs: tuple[Path, ...]
    solver: str
    steps: int
    guidance_scale: float

    @property
    def title(self) -> str:
        """Name of the kind, with the number of its runs if there are several."""
        return self.name if len(self.runs) == 1 else f"{self.name}, {len(self.runs)} runs"

    @property
    def sampling(self) -> str:
        """Name of the solver, and the number of its steps."""
        return f"{self.solver}, {self.steps} step{'s' if self.steps > 1 else ''}"

    def evaluations(self, takes_scale: bool) -> int:
        """Return how often the network is evaluated for a picture.

        Args:
            takes_scale: whether the network takes the guidance scale as input; else guidance is a second evaluation.
        """
        return self.steps * (1 if takes_scale or self.guidance_scale == 1 else 2)


def plan(base: Path, kinds: Sequence[str], guidance_scale: float) -> list[Way]:
    """Return what is measured, in the order of the table's rows.

    Args:
        base: run of the base model.
        kinds: models made of it, each as NAME=RUN,RUN,....
        guidance_scale: guidance scale of all but consistency models that were trained at one scale.

    Raises:
        UserError: a kind is not so written, or mixes models that are sampled differently.
    """
    planned = [Way("base", (base,), solver, steps, guidance_scale) for solver, steps in SOLVERS]
    for kind in kinds:
        name, _, listed = kind.partition("=")
        runs = tuple(Path(run) for run in listed.split(",") if run)
        if not runs:
            raise UserError(f"{kind}: 0 runs; expected NAME=RUN,RUN,... with at least 1 run")
        sampled = {run: ways(run, guidance_scale) for run in runs}
        for run in runs:
            if sampled[run] != sampled[runs[0]]:
                raise UserError(f"{name}: {run} is sampled differently from {runs[0]}; expected runs of one config")
        planned += [Way(name, runs, *way) for way in sampled[runs[0]]]
    return planned


def ways(run: Path, guidance_scale: float) -> list[tuple[str, int, float]]:
    """Return how a run's model is sampled: solvers, steps, and guidance scales.

    Guidance at one scale is trained into a consistency model, which is then sampled without any.
    """
    config = read_run(run / "config.yaml")
    if not isinstance(config, ConsistencyRun):
        return [(solver, steps, guidance_scale) for solver, steps in SOLVERS if solver == "dpm++"]
    scale = guidance_scale if isinstance(config.guidance, tuple) else 1.0
    return [("consistency", steps, scale) for steps in FEW]


def evaluations_of(way: Way, pipelines: Sequence[Pipeline]) -> int:
    """Return how often each of the runs' networks is evaluated for a picture; raise UserError if they differ in it."""
    counts = {way.evaluations(pipeline.takes_scale) for pipeline in pipelines}
    if len(counts) > 1:
        raise UserError(f"{way.name}: only some of these models take the guidance scale; expected runs of one config")
    return counts.pop()


def some(pictures: Tensor) -> Tensor:
    """Return at most SHOWN pictures, at equal distances, of pictures [N, C, R, R]."""
    return pictures[:: max(1, len(pictures) // SHOWN)][:SHOWN]


def main(
    base: Annotated[Path, typer.Argument(help="run of the base model, on faces")],
    made: Annotated[list[str] | None, typer.Argument(help="NAME=RUN,RUN,...: models made of it")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="most prompts of each kind")] = 200,
    guidance_scale: Annotated[float, typer.Option(help="of the base model's solvers")] = 2.0,
    page: Annotated[
        bool, typer.Option(help="write the table into docs/results/few-steps.md, and its sheet beside")
    ] = True,
) -> None:
    """Compare few evaluations of a base model's solvers with those of models made of it."""
    path = page_of("few-steps.md") if page else None
    planned = plan(base, made or (), guidance_scale)
    pipelines = {run: Pipeline.load(run / "model") for way in planned for run in way.runs}
    counts = [evaluations_of(way, [pipelines[run] for run in way.runs]) for way in planned]
    judge, rows, shown, names = Judge.open(base, prompts), [], [], []
    for way, evaluations in zip(planned, counts, strict=True):
        options = SamplingOptions(solver=way.solver, steps=way.steps, guidance_scale=way.guidance_scale)
        runs = [judge.measure(pipelines[run], options) for run in way.runs]
        rows.append(row(way.title, way.sampling, evaluations, [figures for figures, _ in runs]))
        shown.append(some(runs[0][1]))
        names.extend([f"{way.title}, {way.sampling}"] * len(shown[-1]))
        typer.echo(rows[-1])
        if path is not None:
            write_section(path, "few steps", markdown(HEAD, rows))
            save_png(grid(torch.cat(shown), len(shown[-1]), 1, names), path.with_suffix(".png"), None)
    typer.echo(markdown(HEAD, rows))


if __name__ == "__main__":
    with cli_errors():
        typer.run(main)
