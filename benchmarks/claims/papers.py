"""Claims of the field's founding papers in miniature: what is compared, and the command that prints what came of it.

A claim is data: ways of getting figures (rows), and which row is claimed to be better than which. Trainings and figures
are kept in a folder, so that a claim is printed again without repeating them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.claims.paper_claims import CLAIMS, Claim
from benchmarks.claims.paper_runs import Runs
from benchmarks.claims.paper_ways import Bench, Figures, Pictured
from benchmarks.claims.verdict import HEAD, RULE, Comparison, cells, tally
from benchmarks.tables import chosen, markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

MEASURES = {  # name of a measure -> format
    "distance": ".2f",
    "precision": ".3f",
    "recall": ".3f",
    "right": ".3f",
    "bits": ".3f",
    "mse": ".5f",
    "psnr": ".2f",
    "class of z": ".3f",
    "class of x_T": ".3f",
    "colours": ".3f",
    "all colours": ".3f",
    "swapped": ".3f",
    "shape": ".3f",
    "seconds": ".0f",
}
SHOWN, SIDE = 10, 48  # of a sheet: pictures of a row, and pixels along each of their sides


@dataclass(frozen=True)
class Report:
    """How the claims of a command are printed.

    Attributes:
        command: the command of `python -m benchmarks.claims`.
        prefix: start of the names of the page's sections and of the sheets of pictures.
        measures: format of each measure, such as ".2f".
        side: pixels along each side of a picture in a sheet, about.
    """

    command: str
    prefix: str
    measures: Mapping[str, str]
    side: int = SIDE

    def publish(self, name: str, claim: Claim, bench: Bench, page: Path | None) -> None:
        """Measure a claim, print its tables, and write them and a sheet of pictures to a page; None: to no page."""
        figures = measure(claim, bench)
        verdicts = verdicts_table([test.comparison(figures) for test in claim.tests], self.measures)
        command = f"`python -m benchmarks.claims {self.command} {name}`"
        text = f"## {name}\n\n{command}\n\n{verdicts}\n\n{rows_table(figures, self.measures)}"
        typer.echo(text)
        if page is None:
            return
        sheet = page.with_name(f"{self.prefix}-{name}.png")
        if claim.sheet:
            save_sheet(claim, bench, sheet, self.side)
            text += f"\n\n![{name}: rows as in the table]({sheet.name})"
        write_section(page, f"{self.prefix} {name}", text)
        write_section(page, "verdicts", tally(page.read_text(encoding="utf-8")))


def measure(claim: Claim, bench: Bench) -> dict[str, list[Figures]]:
    """Return the figures of each row by its name, one for each seed; what is missing is trained and measured."""
    bench = replace(bench, count=min(bench.count, claim.count or bench.count))
    return {name: [bench.figures(way, seed) for seed in bench.runs.seeds] for name, way in claim.rows.items()}


def rows_table(figures: Mapping[str, Sequence[Figures]], formats: Mapping[str, str]) -> str:
    """Return a table of all rows: mean over seeds, and in brackets the least and the greatest value.

    Measures come in the order of `formats`, which has the format of each.
    """
    measures = {name: form for name, form in formats.items() if any(name in one[0] for one in figures.values())}
    body = [[row, *(_cell(seeds, *column) for column in measures.items())] for row, seeds in figures.items()]
    return markdown(["", *measures], body)


def _cell(seeds: Sequence[Figures], name: str, form: str) -> str:
    if name not in seeds[0]:
        return "-"
    values = [one[name] for one in seeds]
    low, high = (format(value, form) for value in (min(values), max(values)))
    return f"{statistics.fmean(values):{form}} ({low} to {high})"


def save_sheet(claim: Claim, bench: Bench, path: Path, side: int = SIDE) -> None:
    """Save pictures of the first seed as a PNG, a row of SHOWN for each way that has pictures.

    Args:
        claim: the claim whose ways are shown.
        bench: the trained runs.
        path: the PNG.
        side: pixels along each side of a picture, of which it gets a whole multiple of its own or fewer.
    """
    few = replace(bench, count=SHOWN)
    ways = {name: way for name, way in claim.rows.items() if isinstance(way, Pictured)}
    shown = {name: way.pictures(few, bench.runs.seeds[0]) for name, way in ways.items()}
    captions = [name for name in shown for _ in range(SHOWN)]
    pictures = torch.cat([*shown.values()])
    save_png(grid(pictures, SHOWN, max(1, side // pictures.shape[-1]), captions), path, None)


def verdicts_table(comparisons: Sequence[Comparison], formats: Mapping[str, str]) -> str:
    """Return a table with a row for each comparison; `formats` has the format of each measure."""
    return markdown(HEAD, [cells(one, formats[one.measure.split(" against ")[0]]) for one in comparisons])


def papers(
    names: Annotated[list[str] | None, typer.Argument(help="claims; all when left out")] = None,
    out: Annotated[Path, typer.Option(help="folder of the trainings and figures")] = Path("runs/benchmarks/claims"),
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each kind")] = 3,
    count: Annotated[int, typer.Option(min=16, help="pictures of a row")] = 256,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page claims.md")] = True,
) -> None:
    """Test claims of papers on small models of digits and shapes, trained if missing, and print what came of them."""
    with cli_errors():
        selected, target = chosen(names, CLAIMS), page_of("claims.md") if page else None
        typer.echo(RULE)
        bench = Bench(Runs(out, range(seeds)), count)
        for name in selected:
            Report("papers", "claims", MEASURES).publish(name, CLAIMS[name](), bench, target)
