"""docs/semantic.md and its sheets, from what benchmarks/editing has measured now or before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from benchmarks.editing.counterparts import Edit
from ldm_kit.data.openmoji.dataset import ATTRIBUTION
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import save_png

DOCS = Path("docs")


@dataclass(frozen=True)
class Counts:
    """How many pictures the tables are about."""

    edits: int  # of each attribute
    reconstructed: int
    drawn: int


def sheet(name: str, pictures: Tensor, columns: int, captions: Sequence[str] | None = None) -> None:
    """docs/semantic-NAME.png of pictures uint8 [N, 3, R, R]."""
    shown = grid(pictures, columns, scale=2, captions=captions)
    save_png(shown, DOCS / f"semantic-{name}.png", {"attribution": ATTRIBUTION})


def edit_sheets(edits: Sequence[Edit], sources: Tensor, models: Mapping[str, Tensor], targets: Tensor) -> None:
    """The first six edits of each attribute: one sheet with all models, and one of the first model for the README."""
    kinds = list(dict.fromkeys(edit.attribute for edit in edits))
    places = [i for kind in kinds for i in [j for j, edit in enumerate(edits) if edit.attribute == kind][:6]]
    titles = [f"{edits[i].before} > {edits[i].after}" for i in places]
    rows = [sources[places], *(pictures[places] for pictures in models.values()), targets[places]]
    empty = [""] * len(places)
    sheet("edits", torch.cat(rows), len(places), [*empty * (len(rows) - 1), *titles])
    first = next(iter(models.values()))
    sheet("readme", torch.cat([sources[places], first[places], targets[places]]), len(places), [*empty * 2, *titles])


def write(runs: Path) -> None:
    """The page, of every table that has been measured."""
    lines = ["# What semantic codes are worth", "", INTRODUCTION, ""]
    for name, (title, about, head) in SECTIONS.items():
        if (file := runs / "editing" / f"{name}.json").exists():
            kept = json.loads(file.read_text())
            lines += [f"## {title}", "", about.format(**kept["counts"]), "", _header(head)]
            lines += [_line(head, row) for row in kept["rows"]]
            if (DOCS / f"semantic-{name}.png").exists():
                lines += ["", f"![{SHEETS[name]}](semantic-{name}.png)"]
            lines.append("")
    (DOCS / "semantic.md").write_text("\n".join(lines), encoding="utf-8")
    typer.echo("written: docs/semantic.md")


Head = Mapping[str, tuple[str, str]]  # field -> title, format


def _header(head: Head) -> str:
    return f"| {' | '.join(title for title, _ in head.values())} |\n|{'---|' * len(head)}"


def _line(head: Head, row: Mapping[str, Any]) -> str:
    return f"| {' | '.join(format(row[name], form) for name, (_, form) in head.items())} |"


INTRODUCTION = """Printed by `python -m benchmarks.editing`: 32 px OpenMoji, small models trained on one CPU core for
minutes each (configs/benchmarks/), codes z of 256 numbers, bf16. No picture of a table was trained on, unless it says
so. x_T is read in 100 DDIM steps and drawn in 50 where a table does not say otherwise. Judges are logistic
regressions on what pretrained Lite0 features or colour histograms say of training pictures, half of them with noise;
no model of ours is in them."""
SECTIONS: dict[str, tuple[str, str, Head]] = {
    "compute": (
        "What the models cost",
        "Counted, not timed: products of convolutions and matrices, backward passes as two forward ones. All "
        "models have the same encoder, optimiser and learning rates. PDAE's frozen base, which its user has "
        "already, took 800 steps more; a step of PDAE runs it forward.",
        {
            "model": ("", ""),
            "parameters": ("trained parameters (M)", ".1f"),
            "steps": ("steps of 64 pictures", ""),
            "petaflops": ("PFLOP of training", ".2f"),
            "heldout": ("held-out error", ".4f"),
        },
    ),
    "edits": (
        "Edits against the truth",
        "For {edits} edits of each attribute the answer is known: OpenMoji holds the same role in the other skin "
        "tone or gender, and that drawing was not trained on (the unedited one may have been). The code moves by "
        "the attribute's typical step, learned from training pictures (`edit.py learn --openmoji`); nothing is "
        "tuned for an edit. *Right*: the judge reads the new value. *Closer*: nearer to the truth than the "
        "unedited picture is, in pixels, and by Lite0's features. *Left*: how much of the unedited picture's "
        "distance to the truth remains. *Nearer than the nearest*: nearer to the truth than any other picture of "
        "all 3,953. *Rank*: of the truth among all 3,953, by pixels, and by Lite0's features, which slight noise "
        "upsets.",
        {
            "model": ("", ""),
            "attribute": ("attribute", ""),
            "right": ("right", ".0%"),
            "closer": ("closer", ".0%"),
            "closer_lite0": ("closer (Lite0)", ".0%"),
            "left": ("left", ".2f"),
            "beats_nearest": ("nearer than the nearest", ".0%"),
            "rank": ("median rank", ".0f"),
            "first": ("rank 1", ".0%"),
            "rank_lite0": ("median rank (Lite0)", ".0f"),
        },
    ),
    "steps": (
        "One step for all, or each picture's own",
        "The same edits as distances between normalised codes, before anything is drawn. One step for all is the "
        "mean step of training counterparts; each picture's own is that of those most like it, which `edit.py` "
        "takes. *Left* and *closer* as above.",
        {
            "model": ("", ""),
            "attribute": ("attribute", ""),
            "way": ("step", ""),
            "left": ("left", ".2f"),
            "closer": ("closer", ".0%"),
        },
    ),
    "reconstruction": (
        "Reconstruction",
        "{reconstructed} pictures, read and drawn in the same number of steps. With random x_T only z is of the "
        "picture. Errors are of pixels in 0 to 1; the autoencoder's own is in those of latents.",
        {
            "model": ("", ""),
            "steps": ("steps", ""),
            "noise": ("x_T", ""),
            "mse": ("MSE", ".1e"),
            "ssim": ("SSIM", ".3f"),
            "lite0": ("Lite0 distance", ".3f"),
        },
    ),
    "probes": (
        "What a linear probe reads from z",
        "Logistic regression on codes of training pictures, each value of an attribute against the others, scored "
        "on the 371 pictures not trained on. Chance is 0.5 of AUROC, and of average precision the last column.",
        {
            "code": ("", ""),
            "attribute": ("attribute", ""),
            "values": ("values", ""),
            "auroc": ("AUROC", ".3f"),
            "precision": ("average precision", ".3f"),
            "chance": ("chance", ".3f"),
        },
    ),
    "swaps": (
        "z matters, x_T does not",
        "Pairs of pictures of different groups, each drawn with the other's x_T. *Nearer*: more like the "
        "reconstruction of the picture that z is of than like that of the one that x_T is of (Lite0). Groups as "
        "the judge reads them; it is right about two thirds of real pictures.",
        {
            "model": ("", ""),
            "count": ("pictures", ""),
            "nearer": ("nearer to z's", ".0%"),
            "group_z": ("group of z's", ".0%"),
            "group_x": ("group of x_T's", ".0%"),
        },
    ),
    "interpolation": (
        "Interpolation",
        "Nine frames between pictures of different groups, z on a line and x_T on a great circle. *Largest step*: "
        "by the mean step between neighbouring frames; 1 is even, 8 a jump. *Length*: all steps by the distance of"
        " the ends.",
        {
            "way": ("", ""),
            "count": ("pairs", ""),
            "largest": ("largest step", ".2f"),
            "length": ("length", ".2f"),
        },
    ),
    "prior": (
        "New pictures",
        "{drawn} pictures of DiffAE in pixels, from codes of three origins with random x_T; Lite0 Fréchet distance"
        " to all training pictures. It is biased by the number of pictures, so it compares within the table alone.",
        {"codes": ("codes", ""), "count": ("pictures", ""), "distance": ("Lite0 Fréchet distance", ".0f")},
    ),
}
_MODELS = "DiffAE in pixels, DiffAE in latents, PDAE in latents"
SHEETS = {
    "edits": f"rows: the picture, its edit by {_MODELS}, the truth; chosen by hash, not by eye",
    "reconstruction": f"rows: the picture; inferred and random x_T for {_MODELS}",
    "swaps": f"rows: z's picture; x_T's picture; the two drawn together by {_MODELS}",
    "interpolation": f"three rows each for {_MODELS}",
    "prior": "two rows each: codes of training pictures, of the prior, of a Gaussian",
}
