"""Claims about guidance and solvers on OpenMoji's groups: class accuracy, Lite0 Fréchet distance and seconds."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks import kit
from benchmarks.claims.judge import Judge, labels_of, pixels_of
from benchmarks.claims.trained_runs import train_missing
from benchmarks.tables import chosen, format_rows, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.data.images import Split
from ldm_kit.data.openmoji.dataset import ATTRIBUTION
from ldm_kit.metrics.fidelity import frechet
from ldm_kit.metrics.probes import balanced_accuracy
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

MODELS = ("ae", "ldm_uncond", "ldm_class", "classifier", "pixel_class", "pixel_classifier")  # each needs those before
SCALES = (0, 1, 2, 4, 8)
SCALE = 2.0  # of classifier-free guidance
SOLVERS = (("ddpm", 1000), ("ddim", 10), ("ddim", 20), ("ddim", 50), ("ddim", 100), ("dpm++", 10), ("dpm++", 20))
PER_CLASS = 200  # pictures of each class that the distance is to
COLUMNS = {
    "name": ("one training each", ""),
    "accuracy": ("class accuracy [95 %]", ""),
    "distance": ("Lite0 Fréchet distance", ".2f"),
    "seconds": ("seconds", ".0f"),
}


@dataclass(frozen=True)
class Row:
    """One row of a table: how pictures of all classes were sampled, and how good they are."""

    name: str  # model and guidance, or solver and steps
    accuracy: str  # share of pictures that the judge assigns to their class, with its 95 % interval
    distance: float  # Fréchet distance of EfficientNet-Lite0 features to those of training pictures
    seconds: float  # time to sample all pictures of the row


@dataclass(frozen=True, eq=False)
class Bench:
    """What all rows of the tables share: classes, seed and number of pictures to sample, and how these are judged."""

    judge: Judge  # classifier of pictures
    classes: tuple[str, ...]
    reference: Tensor  # Lite0 features of training pictures, equally many of each class (repeated where they are few)
    count: int  # pictures of each class in a row
    seed: int  # of the initial noise; pictures of different seeds share no noise

    @classmethod
    def make(cls, split: Split, count: int, seed: int) -> "Bench":
        """Fit the judge to the training pictures of `split`, and compute the reference features of some of these.

        `count` is the number of pictures of each class in a row, `seed` that of their noise.
        """
        judge, labels = Judge.fit(split.train), labels_of(split.train)
        members = [torch.nonzero(labels == k).flatten() for k in range(len(split.train.classes))]
        balanced = torch.cat([group[torch.arange(PER_CLASS) * len(group) // PER_CLASS] for group in members])
        return cls(judge, tuple(split.train.classes), judge.features(pixels_of(split.train)[balanced]), count, seed)

    def row(self, name: str, pipeline: kit.Pipeline, **options: float) -> tuple[Row, Tensor]:
        """Sample `count` pictures of each class with a pipeline, and judge them.

        The noise is the same for every row. `options` are sampling options, by default DDIM with 25 steps.

        Returns:
            The row called `name`, and the first picture of each class, uint8 [K, C, R, R].
        """
        labels = torch.arange(len(self.classes)).repeat(self.count)
        named = pipeline.conditioner.null is not None or pipeline.classifier is not None
        prompts = [self.classes[k] if named else "" for k in labels]
        seeds = range(self.seed * len(labels), (self.seed + 1) * len(labels))
        settings = kit.sampling(**{"steps": 25, "solver": "ddim", **options})  # pyright: ignore[reportArgumentType]
        start = time.monotonic()
        pictures = kit.generate(pipeline, prompts, seeds, settings)
        seconds = time.monotonic() - start
        features = self.judge.features(pictures)
        shares = balanced_accuracy(self.judge.probe.predict(features), labels)
        accuracy = f"{100 * shares.share:.1f} % [{100 * shares.low:.1f}, {100 * shares.high:.1f}]"
        row = Row(name, accuracy, frechet(features, self.reference), seconds)
        typer.echo(f"{name:50} {accuracy}  {row.distance:8.2f}  {seconds:7.1f} s")
        return row, pictures[: len(self.classes)]


def _open(run: str, classifier: str | None = None) -> kit.Pipeline:
    return kit.load_pipeline(kit.RUNS / run / "model", classifier=kit.RUNS / classifier if classifier else None)


def latents(bench: Bench) -> Iterator[tuple[Row, Tensor]]:
    """Compare classifier and classifier-free guidance of latent models; yield rows and their pictures."""
    guided, classes = _open("ldm_uncond", "classifier"), _open("ldm_class")
    yield bench.row("unconditional", _open("ldm_uncond"))
    for scale in SCALES:
        yield bench.row(f"unconditional + classifier {scale}", guided, classifier_scale=scale)
    yield bench.row("class-conditional", classes)
    yield bench.row(f"classifier-free {SCALE:g}", classes, guidance_scale=SCALE)
    both = _open("ldm_class", "classifier")
    yield bench.row(f"classifier-free {SCALE:g} + classifier 1", both, guidance_scale=SCALE, classifier_scale=1.0)


def pixels(bench: Bench) -> Iterator[tuple[Row, Tensor]]:
    """Compare guidance of one pixel model, whose null class gives the unconditional row; yield rows and pictures."""
    plain, both = _open("pixel_class"), _open("pixel_class", "pixel_classifier")
    yield bench.row("unconditional (the null class)", plain, guidance_scale=0.0)
    yield bench.row("unconditional + classifier 4", both, guidance_scale=0.0, classifier_scale=4.0)
    yield bench.row("class-conditional", plain)
    yield bench.row(f"classifier-free {SCALE:g}", plain, guidance_scale=SCALE)
    yield bench.row(f"classifier-free {SCALE:g} + classifier 1", both, guidance_scale=SCALE, classifier_scale=1.0)


def solvers(bench: Bench) -> Iterator[tuple[Row, Tensor]]:
    """Compare solvers and numbers of steps on the class-conditional latent model; yield rows and their pictures."""
    pipeline = _open("ldm_class")
    for name, steps in SOLVERS:
        yield bench.row(f"{name}, {steps} steps", pipeline, steps=steps, solver=name)  # pyright: ignore[reportArgumentType]


TABLES: dict[str, Callable[[Bench], Iterator[tuple[Row, Tensor]]]] = {
    "latents": latents,
    "pixels": pixels,
    "solvers": solvers,
}


def guidance(
    tables: Annotated[list[str] | None, typer.Argument(help="latents, pixels, solvers; all when left out")] = None,
    count: Annotated[int, typer.Option(help="pictures of each class in a row of guidance")] = 40,
    solver_count: Annotated[int, typer.Option("--solver_count", help="... in a row of solvers")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="of the noise; the page is of 0, others are printed alone")] = 0,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page guidance.md")] = True,
) -> None:
    """Train the models that are missing, sample and judge pictures, and write tables and sheets of pictures."""
    with cli_errors():
        names, target = chosen(tables, TABLES), page_of("guidance.md") if page and seed == 0 else None
        if not tables:
            train_missing(MODELS)
        split = kit.load_openmoji()
        bench = Bench.make(split, count, seed)
        for name in names:
            bench = replace(bench, count=solver_count if name == "solvers" else count)
            rows, pictures = zip(*TABLES[name](bench), strict=True)
            flag = f"--solver_count {solver_count}" if name == "solvers" else f"--count {count}"
            command = f"`python -m benchmarks.claims guidance {name} {flag}`; {_judge_accuracy(bench, split)}"
            text = f"{format_rows(COLUMNS, map(asdict, rows))}\n\n{command}"
            typer.echo(text)
            if target is not None:
                write_section(target, f"guidance {name}", text)
                _save_sheet(bench, pictures, target.parent / f"guidance-{name}.png")


def _judge_accuracy(bench: Bench, split: Split) -> str:
    features, labels = bench.judge.features(pixels_of(split.heldout)), labels_of(split.heldout)
    share = bench.judge.probe.accuracy(features, labels).share
    return f"the judge is right about {100 * share:.1f} % of the {len(labels)} held-out pictures (mean over classes)."


def _save_sheet(bench: Bench, pictures: tuple[Tensor, ...], path: Path) -> None:
    captions = list(bench.classes) * len(pictures)
    sheet = grid(torch.cat(pictures), len(bench.classes), scale=2, captions=captions)
    save_png(sheet, path, {"attribution": ATTRIBUTION})
