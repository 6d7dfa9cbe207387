"""Claims about semantic codes on OpenMoji: reconstruction, probes, edits against the truth, interpolation, prior."""

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
import typer
from torch import Tensor

from autoencoder.base import decode, encode
from benchmarks import kit
from benchmarks.claims import codes
from benchmarks.claims.compute import last_step, trained_parameters, training_flops
from benchmarks.claims.counterparts import EDITS, STEPS, EditJudge, apply_edits, steps_of
from benchmarks.claims.editing_data import MODELS, Bench
from benchmarks.claims.judge import pixels_of
from benchmarks.claims.trained_runs import train_missing
from benchmarks.tables import Columns, Row, chosen, format_rows, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.data.images import InMemory, to_bytes, to_unit
from ldm_kit.diffusion.rng import normal
from ldm_kit.editing import operations
from ldm_kit.editing.labels import from_openmoji
from ldm_kit.metrics.fidelity import frechet

RUNS = ("ae", "ldm_uncond", "diffae_pixels", "diffae_latents", "pdae_latents", "prior")  # each needs those before
RECONSTRUCTION_STEPS = (10, 20, 50, 100, 250)
ENCODE, DECODE = 100, 50  # steps of all else: up to x_T, and down
PCA = "256 principal components"
COMPUTE: Columns = {
    "model": ("one training each", ""),
    "parameters": ("trained parameters (M)", ".1f"),
    "steps": ("steps of 64 pictures", ""),
    "petaflops": ("PFLOP of training", ".2f"),
    "heldout": ("held-out error", ".4f"),
}


def compute(bench: Bench) -> Iterator[Row]:
    """Yield for each semantic model its trained parameters, training steps and operations, and held-out loss."""
    for name, run in MODELS.items():
        model, (steps, heldout) = bench.model(name), last_step(kit.RUNS / run)
        costs = {"parameters": trained_parameters(model) / 1e6, "petaflops": training_flops(model) * steps * 64 / 1e15}
        yield {"model": name, "steps": steps, "heldout": heldout, **costs}


def reconstruction(bench: Bench) -> Iterator[Row]:
    """Encode and decode unseen pictures with each model; yield a row for each number of steps and kind of x_T."""
    unseen = bench.unseen[: bench.reconstructed]
    pictures, shown = bench.pictures(unseen), [bench.pictures(unseen[:12])]
    for name in MODELS:
        rows = codes.reconstructions(name, bench.model(name), pictures, RECONSTRUCTION_STEPS, bench.judge)
        for row, decoded in rows:
            shown += [decoded[:12]] if row["steps"] == DECODE else []
            yield row
    bench.save_sheet("reconstruction", torch.cat(shown), 12)


def probes(bench: Bench) -> Iterator[Row]:
    """Predict attributes from semantic codes, principal components and Lite0 features; yield a row for each pair."""
    unseen = bench.pictures(bench.unseen)
    rest = InMemory([bench.everything.records[i] for i in bench.unseen], bench.everything.classes, unseen, "unseen")
    columns = {"train": from_openmoji(bench.split.train), "unseen": from_openmoji(rest)}
    train = pixels_of(bench.split.train)
    encoders: dict[str, Callable[[Tensor], Tensor]] = {name: bench.model(name).encode for name in MODELS}
    encoders |= {PCA: bench.linear.encode, "Lite0 (1,280 numbers)": bench.judge.features}
    for name, encoder in encoders.items():
        yield from codes.probes(name, {"train": encoder(train), "unseen": encoder(unseen)}, columns)


def steps(bench: Bench) -> Iterator[Row]:
    """Yield rows on how near edited codes come to the codes of the true pictures (`steps_of`), for each model."""
    for name, model in {PCA: bench.linear, **{name: bench.model(name) for name in MODELS}}.items():
        yield from steps_of(name, model, bench.split, bench.everything, bench.edits)


def edits(bench: Bench) -> Iterator[Row]:
    """Edit pictures with each model, and yield rows that compare the results with the true pictures."""
    judge = EditJudge.fit(bench.judge, bench.everything, bench.split)
    sources, targets = (bench.pictures([getattr(edit, end) for edit in bench.edits]) for end in ("source", "target"))
    pictures: dict[str, Tensor] = {"the truth itself": targets, "the unedited picture": sources}
    vae = bench.model("DiffAE, latents").decoder.vae
    assert vae is not None
    with torch.no_grad():
        pictures["the truth through the autoencoder"] = to_bytes(decode(vae, encode(vae, to_unit(targets)).mean))
    for name, model in {PCA: bench.linear, **{name: bench.model(name) for name in MODELS}}.items():
        pictures[name] = apply_edits(model, bench.split.train, sources, bench.edits, (ENCODE, DECODE))
    for name, edited in pictures.items():
        yield from judge.rows(name, bench.edits, edited)
    bench.save_edit_sheets(sources, {name: pictures[name] for name in MODELS}, targets)


def swaps(bench: Bench) -> Iterator[Row]:
    """Decode codes z with the x_T of other pictures; yield a row for each model on how often z decides the result."""
    indices = bench.pairs_of_groups(32)
    labels = torch.tensor([bench.everything.records[i].label for i in indices])
    pictures = bench.pictures(indices)
    shown = [pictures[:12], pictures[len(indices) // 2 :][:12]]
    for name in MODELS:
        code = operations.encode(bench.model(name), pictures, ENCODE)
        row, swapped = codes.swaps(name, bench.model(name), code, labels, steps=DECODE, judge=bench.judge)
        shown.append(swapped[:12])
        yield row
    bench.save_sheet("swaps", torch.cat(shown), 12)


def interpolation(bench: Bench) -> Iterator[Row]:
    """Interpolate between pictures of different groups; yield a row for each model on how smooth the frames are."""
    pictures = bench.pictures(bench.pairs_of_groups(16))
    yield codes.smoothness("mixed pixels", codes.cross_faded(pictures), bench.judge)
    shown: list[Tensor] = []
    for name in MODELS:
        code = operations.encode(bench.model(name), pictures, ENCODE)
        frames = codes.interpolated(bench.model(name), code, DECODE)
        shown.append(frames[:3].flatten(0, 1))
        yield codes.smoothness(name, frames, bench.judge)
    bench.save_sheet("interpolation", torch.cat(shown), codes.FRAMES)


def prior(bench: Bench) -> Iterator[Row]:
    """Generate pictures from codes of three origins; yield rows with the Fréchet distance to training pictures."""
    model = kit.load_semantic(kit.RUNS / "prior")
    train, seeds = pixels_of(bench.split.train), range(bench.generated)
    reference = bench.judge.features(train)
    spread = train[torch.arange(len(seeds)) * len(train) // len(seeds)]
    gauss = model.mean + model.std * normal(0, "gauss", torch.tensor(seeds), (model.z_width,))
    origins = {
        "of training pictures": model.encode(spread),
        "of the prior": model.sample_z(seeds, 100),
        "of a Gaussian with their mean and deviation": gauss,
    }
    pictures = {"none: real pictures not trained on": bench.pictures(bench.unseen[: len(seeds)])}
    pictures |= {name: model.decode(z, None, DECODE, 64, seeds=seeds) for name, z in origins.items()}
    for name, made in pictures.items():
        yield {"codes": name, "count": len(made), "distance": frechet(bench.judge.features(made), reference)}
    bench.save_sheet("prior", torch.cat([pictures[name][:24] for name in origins]), 12)


TABLES: dict[str, tuple[Callable[[Bench], Iterator[Row]], Columns]] = {
    "compute": (compute, COMPUTE),
    "edits": (edits, EDITS),
    "steps": (steps, STEPS),
    "reconstruction": (reconstruction, codes.RECONSTRUCTION),
    "probes": (probes, codes.PROBES),
    "swaps": (swaps, codes.SWAPS),
    "interpolation": (interpolation, codes.INTERPOLATION),
    "prior": (prior, codes.PRIOR),
}


def editing(
    tables: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(TABLES)}; all when left out")] = None,
    edits: Annotated[int, typer.Option(help="edits of each attribute")] = 100,
    reconstructed: Annotated[int, typer.Option(help="pictures that are reconstructed")] = 64,
    generated: Annotated[int, typer.Option(help="pictures of each row of the prior's table")] = 371,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page semantic.md")] = True,
) -> None:
    """Train the models that are missing, measure (an hour), and write tables and sheets of pictures."""
    with cli_errors():
        names, target = chosen(tables, TABLES), page_of("semantic.md") if page else None
        if not tables:
            train_missing(RUNS)
        bench = Bench.make(edits, reconstructed, generated, target.parent if target else None)
        for name in names:
            measure, columns = TABLES[name]
            text = format_rows(columns, map(_echo, measure(bench)))
            if target is not None:
                write_section(target, f"editing {name}", text)


def _echo(row: Row) -> Row:
    typer.echo("  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return row
