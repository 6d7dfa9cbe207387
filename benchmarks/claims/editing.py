"""What semantic codes are worth on OpenMoji: reconstruction, probes, edits against the truth, interpolation, prior.

python -m benchmarks.editing         trains what is missing in runs/benchmarks (two hours on 2 CPU cores), measures
                                     (an hour), then writes docs/semantic.md and the sheets beside it
python -m benchmarks.editing edits   measures one table anew
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from autoencoder.base import decode, encode
from benchmarks.editing import page
from benchmarks.editing.bench import MODELS, RUNS, Bench
from benchmarks.editing.compute import last_step, trained_parameters, training_flops
from benchmarks.editing.counterparts import Outcome, Step, Umpire, edited, steps_of
from benchmarks.editing.reading import (
    FRAMES,
    Draw,
    Probe,
    Reconstruction,
    Smoothness,
    Swap,
    cross_faded,
    draw,
    interpolated,
    probes,
    reconstructions,
    smoothness,
    swaps,
)
from benchmarks.judge import pixels_of
from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError
from ldm_kit.data.images import InMemory, to_bytes, to_unit
from ldm_kit.diffusion.rng import normal
from ldm_kit.editing import operations
from ldm_kit.editing.labels import from_openmoji
from ldm_kit.models.semantic import SemanticModel

DOORS = {  # run -> door, in the order in which they are needed
    "ae": "train_ae.py",
    "ldm_uncond": "train_ldm.py",
    "diffae_pixels": "train_ldm.py",
    "diffae_latents": "train_ldm.py",
    "pdae_latents": "train_ldm.py",
    "prior": "train_ldm.py",
}
STEPS = (10, 20, 50, 100, 250)
READ, DRAW = 100, 50  # steps of all else: up to x_T, and down


@dataclass(frozen=True)
class Cost:
    """What a model took."""

    model: str
    parameters: float  # millions, those trained
    steps: int
    petaflops: float
    heldout: float  # error of pictures held out


def main(
    tables: Annotated[list[str] | None, typer.Argument(help="names of tables; all when left out")] = None,
    edits: Annotated[int, typer.Option(help="edits of each attribute")] = 100,
    reconstructed: Annotated[int, typer.Option(help="pictures that are reconstructed")] = 64,
    drawn: Annotated[int, typer.Option(help="pictures of each row of the prior's table")] = 371,
) -> None:
    """Train what is missing, measure, write the tables."""
    with cli_errors():
        if unknown := [name for name in tables or () if name not in TABLES]:
            raise UserError(f"unknown table {unknown[0]!r}; expected {', '.join(TABLES)}")
        for run, script in () if tables else DOORS.items():
            _train(run, script)
        bench = Bench.at(page.Counts(edits, reconstructed, drawn))
        (RUNS / "editing").mkdir(exist_ok=True)
        for name in tables or list(TABLES):
            rows = [asdict(row) for row in TABLES[name](bench)]
            kept = {"counts": asdict(bench.counts), "rows": rows}
            (RUNS / "editing" / f"{name}.json").write_text(json.dumps(kept, indent=1))
        page.write(RUNS)


def _train(run: str, script: str) -> None:
    if (RUNS / run / "model").exists():
        return
    done = subprocess.run([sys.executable, script, f"configs/benchmarks/{run}.yaml"], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _said(row: Any) -> Any:
    typer.echo("  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in asdict(row).values()))
    return row


def _compute(bench: Bench) -> Iterator[Cost]:
    for name, run in MODELS.items():
        model, (steps, heldout) = bench.model(name), last_step(RUNS / run)
        petaflops = training_flops(model) * steps * 64 / 1e15
        yield _said(Cost(name, trained_parameters(model) / 1e6, steps, petaflops, heldout))


def _reconstruction(bench: Bench) -> Iterator[Reconstruction]:
    chosen = bench.unseen[: bench.counts.reconstructed]
    pictures, shown = bench.pictures(chosen), [bench.pictures(chosen[:12])]
    for name in MODELS:
        for row, drawn in reconstructions(name, bench.model(name), pictures, STEPS, bench.judge):
            shown += [drawn[:12]] if row.steps == DRAW else []
            yield _said(row)
    page.sheet("reconstruction", torch.cat(shown), 12)


def _probes(bench: Bench) -> Iterator[Probe]:
    unseen = bench.pictures(bench.unseen)
    rest = InMemory([bench.everything.records[i] for i in bench.unseen], bench.everything.classes, unseen, "unseen")
    columns = {"train": from_openmoji(bench.split.train), "unseen": from_openmoji(rest)}
    train = pixels_of(bench.split.train)
    readers: dict[str, Callable[[Tensor], Tensor]] = {name: bench.model(name).encode for name in MODELS}
    readers |= {"256 principal components": bench.linear.encode, "Lite0 (1,280 numbers)": bench.judge.features}
    for name, read_z in readers.items():
        for row in probes(name, {"train": read_z(train), "unseen": read_z(unseen)}, columns):
            yield _said(row)


def _steps(bench: Bench) -> Iterator[Step]:
    models = {"256 principal components": bench.linear, **{name: bench.model(name) for name in MODELS}}
    for name, model in models.items():
        for step in steps_of(name, model, bench.split, bench.everything, bench.edits):
            yield _said(step)


def _edits(bench: Bench) -> Iterator[Outcome]:
    umpire = Umpire.trained(bench.judge, bench.everything, bench.split)
    sources, targets = (bench.pictures([getattr(edit, end) for edit in bench.edits]) for end in ("source", "target"))
    rows: dict[str, Tensor] = {"the truth itself": targets, "the unedited picture": sources}
    vae = bench.model("DiffAE, latents").decoder.vae
    assert vae is not None
    with torch.no_grad():
        rows["the truth through the autoencoder"] = to_bytes(decode(vae, encode(vae, to_unit(targets)).mean))
    train, steps = bench.split.train, (READ, DRAW)
    rows["256 principal components"] = edited(bench.linear, train, sources, bench.edits, steps)
    for name in MODELS:
        rows[name] = edited(bench.model(name), train, sources, bench.edits, steps)
    for name, pictures in rows.items():
        for outcome in umpire.outcomes(name, bench.edits, pictures):
            yield _said(outcome)
    page.edit_sheets(bench.edits, sources, {name: rows[name] for name in MODELS}, targets)


def _swaps(bench: Bench) -> Iterator[Swap]:
    places = _of_two_groups(bench, 32)
    labels = torch.tensor([bench.everything.records[i].label for i in places])
    pictures = bench.pictures(places)
    shown = [pictures[:12], pictures[len(places) // 2 :][:12]]
    for name in MODELS:
        code = operations.encode(bench.model(name), pictures, READ)
        row, drawn = swaps(name, bench.model(name), code, labels, DRAW, bench.judge)
        shown.append(drawn[:12])
        yield _said(row)
    page.sheet("swaps", torch.cat(shown), 12)


def _of_two_groups(bench: Bench, pairs: int) -> list[int]:
    """Unseen pictures, the second half of other groups than the first, pair by pair."""
    first: list[int] = []
    last: list[int] = []
    rest = list(bench.unseen)
    while len(first) < pairs:
        one = rest.pop(0)
        other = next(i for i in rest if bench.everything.records[i].label != bench.everything.records[one].label)
        rest.remove(other)
        first.append(one)
        last.append(other)
    return first + last


def _interpolation(bench: Bench) -> Iterator[Smoothness]:
    places = _of_two_groups(bench, 16)
    pictures = bench.pictures(places)
    yield _said(smoothness("mixed pixels", cross_faded(pictures), bench.judge))
    shown: list[Tensor] = []
    for name in MODELS:
        frames = interpolated(bench.model(name), operations.encode(bench.model(name), pictures, READ), DRAW)
        shown += [frames[:3].flatten(0, 1)]
        yield _said(smoothness(name, frames, bench.judge))
    page.sheet("interpolation", torch.cat(shown), FRAMES)


def _prior(bench: Bench) -> Iterator[Draw]:
    model = SemanticModel.load(RUNS / "prior", precision=torch.bfloat16)
    train, seeds = pixels_of(bench.split.train), range(bench.counts.drawn)
    reference = bench.judge.features(train)
    chosen = train[torch.arange(len(seeds)) * len(train) // len(seeds)]
    gauss = model.mean + model.std * normal(0, "gauss", torch.tensor(seeds), (model.z_width,))
    codes = {
        "of training pictures": model.encode(chosen),
        "of the prior": model.sample_z(seeds, 100),
        "of a Gaussian with their mean and deviation": gauss,
    }
    real = bench.pictures(bench.unseen[: len(seeds)])
    yield _said(draw("none: real pictures not trained on", real, reference, bench.judge))
    shown: list[Tensor] = []
    for name, z in codes.items():
        pictures = model.decode(z, None, DRAW, 64, seeds=seeds)
        shown.append(pictures[:24])
        yield _said(draw(name, pictures, reference, bench.judge))
    page.sheet("prior", torch.cat(shown), 12)


TABLES: dict[str, Callable[[Bench], Iterator[Any]]] = {
    "compute": _compute,
    "edits": _edits,
    "steps": _steps,
    "reconstruction": _reconstruction,
    "probes": _probes,
    "swaps": _swaps,
    "interpolation": _interpolation,
    "prior": _prior,
}


if __name__ == "__main__":
    run_cli(main)
