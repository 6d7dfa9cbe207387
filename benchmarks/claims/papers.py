"""Claims of the field's founding papers in miniature: what is compared, and the command that prints what came of it.

A claim is data: ways of getting figures (rows), and which row is claimed to be better than which. Trainings and figures
are kept in a folder, so that a claim is printed again without repeating them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.claims.paper_runs import Runs
from benchmarks.claims.paper_ways import Bench, Figures, Likely, Reconstructed, Sampled, Way
from benchmarks.claims.verdict import HEAD, Comparison, cells
from benchmarks.tables import chosen, markdown, page_of, write_section
from ldm_kit.cli import cli_errors

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
}
CLOSE = 1.25  # "comparable" is a distance of at most so many times the other's
NEAR_EXACT = 0.1  # near-exact is an error of at most so much of that from a random x_T


@dataclass(frozen=True)
class Test:
    __test__ = False
    """A claim that the row or measure A is better than B; see `Comparison`."""

    claim: str
    source: str
    a: str
    b: str
    measure: str
    higher: bool = False
    factor: float = 1.0
    other: str = ""  # measure of B; "": the same as that of A

    def comparison(self, figures: Mapping[str, Sequence[Figures]]) -> Comparison:
        """Return the comparison for the figures of each row, by its name, one for each seed."""
        pairs = [
            (one[self.measure], two[self.other or self.measure])
            for one, two in zip(figures[self.a], figures[self.b], strict=True)
        ]
        named = self.measure + (f" against {self.other}" if self.other else "")
        return Comparison(self.claim, self.source, self.a, self.b, named, self.higher, pairs, self.factor)


@dataclass(frozen=True)
class Claim:
    """Rows of a table by name, and what a paper says of them."""

    rows: Mapping[str, Way]
    tests: Sequence[Test]


def sampled(model: str, solver: str, steps: int, classifier: str = "", **options: float) -> Sampled:
    """Return a way that samples with a solver in so many steps; `options` are further sampling options."""
    return Sampled(model, {"solver": solver, "steps": steps, **options}, classifier)


_SONG, _IDDPM, _HO = "Song et al. 2021, table 1", "Nichol & Dhariwal 2021", "Ho et al. 2020, table 2"
_CFG, _ADM = "Ho & Salimans 2022, section 4", "Dhariwal & Nichol 2021, figure 4"
_DIFFAE, _PDAE = "Preechakul et al. 2022", "Zhang et al. 2022"


def _ddim() -> Claim:
    rows = {f"{name}, {n} steps": sampled("eps", name, n) for n in (10, 20, 50) for name in ("ddim", "ddpm")}
    better = "with few steps DDIM is better than DDPM"
    tests = [Test(better, _SONG, f"ddim, {n} steps", f"ddpm, {n} steps", "distance") for n in (10, 20, 50)]
    return Claim(rows, tests)


def _long_chain() -> Claim:
    rows = {f"{name}, {n} steps": sampled("eps", name, n) for name, n in (("ddim", 50), ("ddpm", 1000))}
    claim = f"DDIM with 50 steps is comparable (at most {CLOSE} times the distance) to DDPM with 1000"
    return Claim(rows, [Test(claim, _SONG, *rows, measure="distance", factor=CLOSE)])


def _prediction() -> Claim:
    rows = {f"{name}, ddpm, 50 steps": sampled(name, "ddpm", 50) for name in ("eps", "x0")}
    claim = "predicting eps gives better pictures than predicting x_0"
    return Claim(rows, [Test(claim, _HO, *rows, measure="distance")])


def _schedule() -> Claim:
    names = {"cosine": "eps", "linear": "linear"}
    rows: dict[str, Way] = {f"{k}, ddpm, 50 steps": sampled(v, "ddpm", 50) for k, v in names.items()}
    rows |= {f"{k}, likelihood": Likely(v) for k, v in names.items()}
    picture, bits, source = (
        "the cosine schedule gives better pictures",
        "... and likelihood",
        f"{_IDDPM}, tables 1 and 2",
    )
    a, b, c, d = rows
    return Claim(rows, [Test(picture, source, a, b, "distance"), Test(bits, source, c, d, "bits")])


def _variance() -> Claim:
    names = {"learned": "learned", "fixed": "eps"}
    rows: dict[str, Way] = {
        f"{k} variance, ddpm, {n} steps": sampled(v, "ddpm", n) for n in (25, 50) for k, v in names.items()
    }
    rows |= {f"{k} variance, likelihood": Likely(v) for k, v in names.items()}
    claim = "a learned variance gives better pictures with few steps"
    tests = [
        Test(
            claim,
            f"{_IDDPM}, section 4",
            f"learned variance, ddpm, {n} steps",
            f"fixed variance, ddpm, {n} steps",
            "distance",
        )
        for n in (25, 50)
    ]
    a, b = "learned variance, likelihood", "fixed variance, likelihood"
    return Claim(
        rows, [*tests, Test("a learned variance gives a better likelihood", f"{_IDDPM}, tables 1 and 2", a, b, "bits")]
    )


def _importance() -> Claim:
    rows = {"importance-sampled times": Likely("bound-importance"), "uniform times": Likely("bound")}
    claim = "sampling times by their loss lets the bound (L_vlb) be trained to a better likelihood"
    return Claim(rows, [Test(claim, f"{_IDDPM}, section 3.3", *rows, measure="bits")])


def _guidance() -> Claim:
    free = {f"classifier-free {w:g}": sampled("eps", "ddim", 20, guidance_scale=w) for w in (1.0, 2.0, 4.0, 8.0)}
    rows: dict[str, Way] = {**free, "unconditional": sampled("unconditional", "ddim", 20)}
    for scale in (1.0, 4.0, 8.0):
        rows[f"classifier {scale:g}"] = sampled("unconditional", "ddim", 20, "classifier", classifier_scale=scale)
    kinds = (
        ("classifier-free guidance", _CFG, "classifier-free 4", "classifier-free 1"),
        ("a noisy classifier", _ADM, "classifier 8", "classifier 1"),
    )
    tests: list[Test] = []
    for name, source, strong, weak in kinds:
        tests.append(Test(f"{name} raises precision", source, strong, weak, "precision", True))
        tests.append(Test("... and lowers recall", source, strong, weak, "recall"))
    conditional = "a noisy classifier makes an unconditional model show the class asked for"
    return Claim(rows, [*tests, Test(conditional, _ADM, "classifier 8", "unconditional", "right", True)])


def _codes() -> Claim:
    noises = ("inferred", "random", "exchanged")
    rows = {f"DiffAE, {noise} x_T": Reconstructed("diffae", noise) for noise in noises}
    inferred, random, exchanged = rows
    near = "from the inferred x_T reconstruction is near-exact (here: less than a tenth of a random x_T's error)"
    meaning = "z carries the meaning, x_T the rest: with another picture's x_T, the class that is read is that of z"
    return Claim(
        rows,
        [
            Test(near, f"{_DIFFAE}, autoencoding table", inferred, random, "mse", factor=NEAR_EXACT),
            Test(meaning, _DIFFAE, exchanged, exchanged, "class of z", True, other="class of x_T"),
        ],
    )


def _half() -> Claim:
    noises = ("inferred", "random")
    rows = {
        f"{name}, {noise} x_T": Reconstructed(model, noise)
        for noise in noises
        for name, model in (("PDAE, half the steps", "pdae"), ("DiffAE", "diffae"))
    }
    a, b, c, d = rows
    claim = "PDAE on a frozen model reconstructs better than DiffAE after half the training, x_T "
    source = f"{_PDAE}, table 1"
    return Claim(rows, [Test(claim + "inferred", source, a, b, "mse"), Test(claim + "random", source, c, d, "mse")])


CLAIMS = {
    "ddim": _ddim,
    "prediction": _prediction,
    "schedule": _schedule,
    "variance": _variance,
    "guidance": _guidance,
    "codes": _codes,
    "half": _half,
    "importance": _importance,
    "long-chain": _long_chain,
}


def measure(claim: Claim, bench: Bench) -> dict[str, list[Figures]]:
    """Return the figures of each row by its name, one for each seed; what is missing is trained and measured."""
    return {name: [bench.figures(way, seed) for seed in bench.runs.seeds] for name, way in claim.rows.items()}


def rows_table(figures: Mapping[str, Sequence[Figures]]) -> str:
    """Return a table of all rows: mean over seeds, and in brackets the least and the greatest value."""
    measures = [name for name in MEASURES if any(name in one[0] for one in figures.values())]
    body = [[row, *(_cell(seeds, name) for name in measures)] for row, seeds in figures.items()]
    return markdown(["", *measures], body)


def _cell(seeds: Sequence[Figures], name: str) -> str:
    if name not in seeds[0]:
        return "-"
    values = [one[name] for one in seeds]
    low, high = (format(value, MEASURES[name]) for value in (min(values), max(values)))
    return f"{statistics.fmean(values):{MEASURES[name]}} ({low} to {high})"


def verdicts_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table with a row for each comparison."""
    return markdown(HEAD, [cells(one, MEASURES[one.measure.split(" against ")[0]]) for one in comparisons])


def papers(
    names: Annotated[list[str] | None, typer.Argument(help="claims; all when left out")] = None,
    out: Annotated[Path, typer.Option(help="folder of the trainings and figures")] = Path("runs/benchmarks/claims"),
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each kind")] = 3,
    count: Annotated[int, typer.Option(min=16, help="pictures of a row")] = 256,
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page claims.md")] = True,
) -> None:
    """Test claims of papers on small models of digits, trained where they are missing, and print what came of them."""
    with cli_errors():
        selected, target = chosen(names, CLAIMS), page_of("claims.md") if page else None
        bench = Bench(Runs(out, range(seeds)), count)
        for name in selected:
            claim = CLAIMS[name]()
            figures = measure(claim, bench)
            verdicts = verdicts_table([test.comparison(figures) for test in claim.tests])
            text = f"`python -m benchmarks.claims papers {name}`\n\n{verdicts}\n\n{rows_table(figures)}"
            typer.echo(text)
            if target is not None:
                write_section(target, f"claims {name}", text)
