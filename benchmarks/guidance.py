"""What guidance and solvers are worth on OpenMoji's groups: class accuracy, Lite0 Fréchet distance and seconds.

python benchmarks/guidance.py          trains what is missing in runs/benchmarks (an hour on 2 CPU cores), measures,
                                       then writes docs/guidance.md and the sheets beside it
python benchmarks/guidance.py pixels   measures one table anew
python benchmarks/guidance.py --seed 1 repeats it from wholly other noise, beside, and leaves the page alone
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from judge import Judge, balanced, labels_of, pixels_of
from PIL.Image import Image
from torch import Tensor

from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError
from ldm_kit.data.images import Split
from ldm_kit.data.openmoji.dataset import ATTRIBUTION, OpenMojiConfig, load
from ldm_kit.metrics.fidelity import frechet, wilson
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

RUNS = Path("runs/benchmarks")
MODELS = {  # run -> door, in the order in which they are needed
    "ae": "train_ae.py",
    "ldm_uncond": "train_ldm.py",
    "ldm_class": "train_ldm.py",
    "classifier": "train_ldm.py",
    "pixel_class": "train_ldm.py",
    "pixel_classifier": "train_ldm.py",
}
STEPS = SamplingOptions(steps=25, solver="ddim", guidance_scale=1.0)
SCALES = (0, 1, 2, 4, 8)
GUIDANCE = 2.0
SOLVERS = (("ddpm", 1000), ("ddim", 10), ("ddim", 20), ("ddim", 50), ("ddim", 100), ("dpm++", 10), ("dpm++", 20))


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    accuracy: float
    distance: float
    seconds: float  # for all of its pictures


class Drawn(NamedTuple):
    """A row, and its first picture of each class."""

    row: Row
    pictures: Tensor


@dataclass(frozen=True, eq=False)
class Bench:
    """The judge, the balanced reference, and what every row draws."""

    judge: Judge
    classes: tuple[str, ...]
    reference: Tensor  # Lite0 features of training pictures, equally many of each class (repeated where they are few)
    count: int  # pictures of each class
    seed: int  # no two share the noise of any picture

    def drawn(self, name: str, pipeline: Pipeline, wish: SamplingOptions) -> Drawn:
        """Draw the same classes from the same noise, and judge them."""
        labels = torch.arange(len(self.classes)).repeat(self.count)
        named = pipeline.conditioner.null is not None or pipeline.classifier is not None
        prompts = [self.classes[k] if named else "" for k in labels]
        began = time.monotonic()
        noise = range(self.seed * len(labels), (self.seed + 1) * len(labels))
        pictures = torch.cat(list(pipeline.generate(prompts, noise, wish, 64)))
        seconds = time.monotonic() - began
        features = self.judge.features(pictures)
        accuracy = balanced(self.judge.guess(features), labels)
        row = Row(name, accuracy, frechet(features, self.reference), seconds)
        typer.echo(f"{name:50} {100 * row.accuracy:5.1f} %  {row.distance:8.2f}  {row.seconds:7.1f} s")
        return Drawn(row, pictures[: len(self.classes)])


def main(
    tables: Annotated[list[str] | None, typer.Argument(help="latents, pixels, solvers; all when left out")] = None,
    count: Annotated[int, typer.Option(help="pictures of each class in a row of guidance")] = 40,
    solver_count: Annotated[int, typer.Option("--solver_count", help="... in a row of solvers")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="of the noise; the page is of 0, others are printed alone")] = 0,
) -> None:
    """Train what is missing, draw, measure, write the tables."""
    with cli_errors():
        for run, script in () if tables else MODELS.items():
            _train(run, script)
        split = load(OpenMojiConfig(resolution=32))
        bench = _bench(split, count, seed)
        for name in tables or list(TABLES):
            chosen = replace(bench, count=solver_count) if name == "solvers" else bench
            _measure(name, chosen)
        if seed == 0:
            _write(_truth(bench, split), len(bench.classes), (count, solver_count))


def _train(run: str, script: str) -> None:
    if (RUNS / run / "model").exists():
        return
    done = subprocess.run([sys.executable, script, f"configs/benchmarks/{run}.yaml"], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _bench(split: Split, count: int, seed: int) -> Bench:
    judge = Judge.trained(split.train)
    labels = labels_of(split.train)
    most = 200
    places = [torch.nonzero(labels == k).flatten() for k in range(len(split.train.classes))]
    chosen = torch.cat([part[torch.arange(most) * len(part) // most] for part in places])
    return Bench(judge, tuple(split.train.classes), judge.features(pixels_of(split.train)[chosen]), count, seed)


def _truth(bench: Bench, split: Split) -> str:
    features = bench.judge.features(pixels_of(split.heldout))
    accuracy = balanced(bench.judge.guess(features), labels_of(split.heldout))
    return (
        f"The judge (logistic regression on Lite0 features of clean training pictures) is right about "
        f"{100 * accuracy:.1f} % of the {len(split.heldout)} held-out pictures, classes weighing the same."
    )


def _opened(run: str, classifier: str | None = None) -> Pipeline:
    pipeline = Pipeline.load(RUNS / run / "model", precision=torch.bfloat16)
    return pipeline if classifier is None else pipeline.with_guides(NoisyClassifier.load(RUNS / classifier))


def _latents(bench: Bench) -> Iterator[Drawn]:
    guided, classes = _opened("ldm_uncond", "classifier"), _opened("ldm_class")
    yield bench.drawn("unconditional", _opened("ldm_uncond"), STEPS)
    for scale in SCALES:
        yield bench.drawn(f"unconditional + classifier {scale}", guided, replace(STEPS, classifier_scale=scale))
    yield bench.drawn("class-conditional", classes, STEPS)
    free = replace(STEPS, guidance_scale=GUIDANCE)
    yield bench.drawn(f"classifier-free {GUIDANCE:g}", classes, free)
    both = _opened("ldm_class", "classifier")
    yield bench.drawn(f"classifier-free {GUIDANCE:g} + classifier 1", both, replace(free, classifier_scale=1.0))


def _pixels(bench: Bench) -> Iterator[Drawn]:
    """One model, whose null condition is the unconditional row."""
    plain, both = _opened("pixel_class"), _opened("pixel_class", "pixel_classifier")
    null, free = replace(STEPS, guidance_scale=0.0), replace(STEPS, guidance_scale=GUIDANCE)
    yield bench.drawn("unconditional (the null class)", plain, null)
    yield bench.drawn("unconditional + classifier 4", both, replace(null, classifier_scale=4.0))
    yield bench.drawn("class-conditional", plain, STEPS)
    yield bench.drawn(f"classifier-free {GUIDANCE:g}", plain, free)
    yield bench.drawn(f"classifier-free {GUIDANCE:g} + classifier 1", both, replace(free, classifier_scale=1.0))


def _solvers(bench: Bench) -> Iterator[Drawn]:
    pipeline = _opened("ldm_class")
    for name, steps in SOLVERS:
        yield bench.drawn(f"{name}, {steps} steps", pipeline, SamplingOptions(steps=steps, solver=name, guidance_scale=1.0))


TABLES: dict[str, Callable[[Bench], Iterator[Drawn]]] = {"latents": _latents, "pixels": _pixels, "solvers": _solvers}


def _measure(name: str, bench: Bench) -> None:
    if name not in TABLES:
        raise UserError(f"unknown table {name!r}; expected {', '.join(TABLES)}")
    drawn = list(TABLES[name](bench))
    folder = RUNS / ("guidance" if bench.seed == 0 else f"guidance-{bench.seed}")
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps([asdict(one.row) for one in drawn], indent=1))
    sheet = (folder if bench.seed else Path("docs")) / f"guidance-{name}.png"
    save_png(_sheet(bench.classes, drawn), sheet, {"attribution": ATTRIBUTION})


def _sheet(classes: tuple[str, ...], drawn: list[Drawn]) -> Image:
    shown = torch.cat([one.pictures for one in drawn])
    return grid(shown, len(classes), scale=2, captions=list(classes) * len(drawn))


def _write(truth: str, classes: int, counts: tuple[int, int]) -> None:
    """docs/guidance.md from what was measured, now or before."""
    titles = {
        "latents": ("Guidance in latent space (DDIM, 25 steps", counts[0]),
        "pixels": ("Guidance in pixels (DDIM, 25 steps", counts[0]),
        "solvers": ("Solvers (latents, class-conditional", counts[1]),
    }
    lines = ["# What guidance and solvers are worth", "", INTRODUCTION.format(truth=truth, count=classes), ""]
    for name, (title, count) in titles.items():
        if (file := RUNS / "guidance" / f"{name}.json").exists():
            rows = [Row(**row) for row in json.loads(file.read_text())]
            lines += [f"## {title}, {count} pictures of each class)", "", HEAD]
            lines += [_line(row, classes * count) for row in rows]
            lines += ["", f"![a row of pictures for each line of the table](guidance-{name}.png)", ""]
    Path("docs/guidance.md").write_text("\n".join(lines), encoding="utf-8")
    typer.echo("written: docs/guidance.md")


def _line(row: Row, count: int) -> str:
    """Of a table; `count` pictures in all, equally many of each class, so that the mean of classes is their share."""
    low, high = (100 * bound for bound in wilson(row.accuracy, count))
    accuracy = f"{100 * row.accuracy:.1f} % [{low:.1f}, {high:.1f}]"
    return f"| {row.name} | {accuracy} | {row.distance:.2f} | {row.seconds:.0f} |"


HEAD = "| | class accuracy [95 %] | Lite0 Fréchet distance | seconds |\n|---|---|---|---|"
INTRODUCTION = """Printed by `python benchmarks/guidance.py`: 32 px OpenMoji, its {count} groups as classes, small
models trained for minutes on 2 CPU cores (configs/benchmarks/). Every row draws equally many pictures of each class
from the same seeds, in bf16. {truth} Chance is one in {count}. Brackets hold Wilson's 95 %
interval, of the pictures alone: each model was trained once, and another run of training may differ by more. The
distance is to training pictures, equally many of each class; it is biased by the number of pictures, so it compares
within a table alone. Seconds are for all pictures of a row."""


if __name__ == "__main__":
    run_cli(main)
