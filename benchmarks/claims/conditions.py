"""Conditions and starts from weights, measured on small models of faces, three trainings each.

tuning        a text model of some hair colours, tuned to others: all weights, LoRA, and from nothing instead
inpainting    a model with the masked picture as condition, beside sampling a text model within the mask
two-scales    a model of a text and a class, with a guidance scale for each
cascade       a model of small pixels and one that upscales them, beside one model of the same computing
variations    a decoder of image embeddings: what its variations of a face have of it
unclip        a prior from captions to such embeddings, and pictures decoded from what it samples

Trainings and figures are kept in a folder, so that a call goes on where the last one ended.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.claims.condition_claims import CLAIMS, MEASURES
from benchmarks.claims.condition_judge import face_judge
from benchmarks.claims.condition_runs import CONFIGS, VARIANTS
from benchmarks.claims.paper_runs import Runs
from benchmarks.claims.paper_ways import Bench
from benchmarks.claims.papers import Report
from benchmarks.claims.verdict import RULE
from benchmarks.tables import chosen, markdown, page_of, write_section
from ldm_kit.cli import cli_errors


def conditions(
    names: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(CLAIMS)}; all when left out")] = None,
    out: Annotated[Path, typer.Option(help="folder of the trainings and figures")] = Path("runs/benchmarks/conditions"),
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each kind")] = 3,
    count: Annotated[int, typer.Option(min=16, help="pictures of a row")] = 128,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page conditions.md")] = True,
) -> None:
    """Measure conditions and starts from weights on small models of faces, trained if missing, and print the tables."""
    with cli_errors():
        selected, target = chosen(names, CLAIMS), page_of("conditions.md") if page else None
        typer.echo(RULE)
        bench = Bench(Runs(out, range(seeds), variants=VARIANTS, configs=CONFIGS), count)
        reader = reader_table()
        typer.echo(reader)
        if target is not None:
            write_section(target, "reader", reader)
        for name in selected:
            Report("conditions", "conditions", MEASURES, side=64).publish(name, CLAIMS[name](), bench, target)


def reader_table() -> str:
    """Return a table of the share of real held-out faces in which the judge reads each factor rightly."""
    accuracy = face_judge().accuracy
    return markdown(("factor", *accuracy), [("read rightly", *(f"{value:.1%}" for value in accuracy.values()))])
