"""What guidance and solvers are worth on OpenMoji's groups: class accuracy, Lite0 Fréchet distance and seconds.

python benchmarks/guidance.py          trains what is missing in runs/benchmarks (an hour and more on 2 CPU cores), then
                                       writes docs/guidance.md and the sheets beside it
"""

import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from judge import Judge, balanced, labels_of, pixels_of
from torch import Tensor

from ldm_kit.cli import door, serve
from ldm_kit.data.images import Split
from ldm_kit.data.openmoji import ATTRIBUTION, OpenMojiConfig, load
from ldm_kit.evaluation.fidelity import frechet
from ldm_kit.evaluation.files import save_png
from ldm_kit.evaluation.pictures import grid
from ldm_kit.noisy_classifier import NoisyClassifier
from ldm_kit.pipeline import Pipeline
from ldm_kit.wish import Wish

RUNS = Path("runs/benchmarks")
MODELS = {  # run -> door, in the order in which they are needed
    "ae": "train_ae.py",
    "ldm_uncond": "train_ldm.py",
    "ldm_class": "train_ldm.py",
    "classifier": "train_ldm.py",
    "pixel_class": "train_ldm.py",
    "pixel_classifier": "train_ldm.py",
}
STEPS = Wish(steps=25, solver="ddim", guidance_scale=1.0)
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
    pictures: Tensor


@dataclass(frozen=True, eq=False)
class Bench:
    """The judge, the balanced reference, and the order of classes that every row draws."""

    judge: Judge
    classes: tuple[str, ...]
    reference: Tensor  # Lite0 features of training pictures, equally many of each class (repeated where they are few)
    precision: torch.dtype | None

    def row(self, name: str, pipeline: Pipeline, wish: Wish, count: int) -> Row:
        """`count` pictures of each class."""
        labels = torch.arange(len(self.classes)).repeat(count)
        prompts = [self.classes[k] for k in labels] if pipeline.conditioner.null is not None else [""] * len(labels)
        if pipeline.classifier is not None:
            prompts = [self.classes[k] for k in labels]
        began = time.monotonic()
        pictures = torch.cat(list(pipeline.draw(prompts, range(len(labels)), wish, 64)))
        seconds = time.monotonic() - began
        features = self.judge.features(pictures)
        found = Row(
            name,
            balanced(self.judge.guess(features), labels),
            frechet(features, self.reference),
            seconds,
            pictures[: 2 * len(self.classes)],
        )
        typer.echo(f"{name:50} {100 * found.accuracy:5.1f} %  {found.distance:8.2f}  {seconds:7.1f} s")
        return found


def main(
    count: Annotated[int, typer.Option(help="pictures of each class in every row of guidance")] = 40,
    solver_count: Annotated[int, typer.Option("--solver_count", help="... in every row of solvers")] = 20,
    bf16: Annotated[bool, typer.Option(help="draw in bf16")] = True,
) -> None:
    """Train what is missing, draw, measure, write the tables."""
    with door():
        for run, script in MODELS.items():
            _train(run, script)
        split = load(OpenMojiConfig(resolution=32))
        bench = _bench(split, torch.bfloat16 if bf16 else None)
        truth = _truth(bench, split)
        latents, pixels = _latents(bench, count), _pixels(bench, count)
        solvers = _solvers(bench, solver_count)
        _write(bench, truth, {"latents": latents, "pixels": pixels, "solvers": solvers}, (count, solver_count))


def _train(run: str, script: str) -> None:
    if (RUNS / run / "model").exists():
        return
    done = subprocess.run([sys.executable, script, f"configs/benchmarks/{run}.yaml"], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _bench(split: Split, precision: torch.dtype | None) -> Bench:
    judge = Judge.trained(split.train)
    labels = labels_of(split.train)
    most = 200
    places = [torch.nonzero(labels == k).flatten() for k in range(len(split.train.classes))]
    chosen = torch.cat([part[torch.arange(most) * len(part) // most] for part in places])
    return Bench(judge, tuple(split.train.classes), judge.features(pixels_of(split.train)[chosen]), precision)


def _truth(bench: Bench, split: Split) -> str:
    features = bench.judge.features(pixels_of(split.heldout))
    accuracy = balanced(bench.judge.guess(features), labels_of(split.heldout))
    return (
        f"The judge (logistic regression on Lite0 features of clean training pictures) is right about "
        f"{100 * accuracy:.1f} % of the {len(split.heldout)} held-out pictures, classes weighing the same."
    )


def _opened(bench: Bench, run: str, classifier: str | None = None) -> Pipeline:
    pipeline = Pipeline.load(RUNS / run / "model", precision=bench.precision)
    if classifier is not None:
        pipeline.classifier = NoisyClassifier.load(RUNS / classifier)
    return pipeline


def _latents(bench: Bench, count: int) -> list[Row]:
    rows = [bench.row("unconditional", _opened(bench, "ldm_uncond"), STEPS, count)]
    guided, classes = _opened(bench, "ldm_uncond", "classifier"), _opened(bench, "ldm_class")
    for scale in SCALES:
        rows.append(bench.row(f"classifier, scale {scale}", guided, replace(STEPS, classifier_scale=scale), count))
    rows.append(bench.row("class-conditional", classes, STEPS, count))
    free = replace(STEPS, guidance_scale=GUIDANCE)
    rows.append(bench.row(f"classifier-free guidance {GUIDANCE:g}", classes, free, count))
    both = _opened(bench, "ldm_class", "classifier")
    wish = replace(free, classifier_scale=1.0)
    return [*rows, bench.row(f"classifier-free {GUIDANCE:g} + classifier 1", both, wish, count)]


def _pixels(bench: Bench, count: int) -> list[Row]:
    """One model, whose null condition is the unconditional row."""
    plain, both = _opened(bench, "pixel_class"), _opened(bench, "pixel_class", "pixel_classifier")
    null, free = replace(STEPS, guidance_scale=0.0), replace(STEPS, guidance_scale=GUIDANCE)
    return [
        bench.row("unconditional (null condition)", plain, null, count),
        bench.row("classifier, scale 2", both, replace(null, classifier_scale=2.0), count),
        bench.row("class-conditional", plain, STEPS, count),
        bench.row(f"classifier-free guidance {GUIDANCE:g}", plain, free, count),
        bench.row(f"classifier-free {GUIDANCE:g} + classifier 1", both, replace(free, classifier_scale=1.0), count),
    ]


def _solvers(bench: Bench, count: int) -> list[Row]:
    pipeline = _opened(bench, "ldm_class")
    wishes = [(f"{name}, {steps} steps", Wish(steps, name, GUIDANCE)) for name, steps in SOLVERS]
    return [bench.row(name, pipeline, wish, count) for name, wish in wishes]


def _write(bench: Bench, truth: str, tables: dict[str, list[Row]], counts: tuple[int, int]) -> None:
    titles = {
        "latents": f"Guidance in latent space (DDIM, 25 steps, {counts[0]} pictures of each class)",
        "pixels": f"Guidance in pixels (DDIM, 25 steps, {counts[0]} pictures of each class)",
        "solvers": f"Solvers (latents, classifier-free guidance {GUIDANCE:g}, {counts[1]} pictures of each class)",
    }
    lines = ["# What guidance and solvers are worth", "", INTRODUCTION.format(truth=truth, count=len(bench.classes)), ""]
    for name, rows in tables.items():
        lines += [f"## {titles[name]}", "", HEAD]
        lines += [f"| {r.name} | {100 * r.accuracy:.1f} % | {r.distance:.2f} | {r.seconds:.0f} |" for r in rows]
        lines += ["", f"![rows in the table's order](guidance-{name}.png)", ""]
        save_png(_sheet(bench, rows), Path("docs") / f"guidance-{name}.png", {"attribution": ATTRIBUTION})
    Path("docs/guidance.md").write_text("\n".join(lines), encoding="utf-8")
    typer.echo("written: docs/guidance.md")


def _sheet(bench: Bench, rows: list[Row]) -> Tensor:
    shown = torch.cat([row.pictures[: len(bench.classes)] for row in rows])
    captions = [row.name if k == 0 else name for row in rows for k, name in enumerate(bench.classes)]
    return grid(shown, len(bench.classes), scale=2, captions=captions)  # pyright: ignore[reportReturnType]


HEAD = "| | class accuracy | Lite0 Fréchet distance | seconds |\n|---|---|---|---|"
INTRODUCTION = """Printed by `python benchmarks/guidance.py`: 32 px OpenMoji, its {count} groups as classes, small models
trained for minutes on 2 CPU cores (configs/benchmarks/). Every row draws equally many pictures of each class from the
same seeds. {truth} Chance is one in {count}. The distance is to training pictures, equally many of each class; it is
biased by the number of pictures, so it compares within a table alone. Seconds are for all pictures of a row."""


if __name__ == "__main__":
    serve(main)
