"""Which estimator of an attribute's direction tells it apart best, and which ends nearest to the truth.

python benchmarks/estimators.py                          prints the table (a minute on 1 CPU core)
python benchmarks/estimators.py --page docs/editing.md   and puts it between its marks in that page
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from linear import Linear
from torch import Tensor

from ldm_kit.cli import cli_errors, run_cli
from ldm_kit.config import UserError
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load_all, split
from ldm_kit.editing.fit_directions import counterparts
from ldm_kit.editing.fitting import Fit, classifier, difference, scored
from ldm_kit.editing.labels import Column, from_openmoji
from ldm_kit.editing.operations import Change, move_codes
from ldm_kit.models.directions import TO, Direction, typical
from ldm_kit.models.pairs import pair_directions
from ldm_kit.models.protocol import encode_pictures, normalise
from ldm_kit.viz.png import write_atomic

WIDTH = 128
STEPS = (("light", "dark"), ("none", "dark"), ("medium", "light"))  # skin tones, from one to the other
BEGIN, END = "<!-- benchmarks/estimators.py: begin -->", "<!-- benchmarks/estimators.py: end -->"


class Cell(NamedTuple):
    """How one estimator does on one step."""

    auroc: float  # on drawings of the two values, none of them in training
    left: float  # mean distance of edited drawings to the truth, each divided by the unedited one's


@dataclass(frozen=True, eq=False)
class Drawings:
    """All of OpenMoji, and what a model reads in it."""

    model: Linear
    pictures: Tensor  # uint8 [N, 3, R, R]
    z: Tensor  # [N, D]
    zn: Tensor  # normalised
    tones: Column
    trained: Tensor  # bool [N]

    @classmethod
    def read(cls) -> "Drawings":
        """At 32 px, with a model fitted to the training part alone."""
        everything = load_all(OpenMojiConfig(resolution=32))
        train = split(everything).train
        model, names = Linear.fitted(train, WIDTH), {record.name for record in train.records}
        trained = torch.tensor([record.name in names for record in everything.records])
        tones = next(column for column in from_openmoji(everything) if column.name == "skin tone")
        z = encode_pictures(model, everything)
        return cls(model, everything.pixels, z, normalise(model, z), tones, trained)

    def having(self, *values: str) -> Tensor:
        """Which drawings [N] have one of these skin tones."""
        return torch.tensor([value in values for value in self.tones.values])


class Step(NamedTuple):
    """From one skin tone to another: what estimators are fitted to, and what measures them."""

    name: str
    before: Tensor  # bool [N], of that tone and in training
    after: Tensor  # likewise
    rest: Tensor  # likewise, of any tone but the one after
    pairs: Tensor  # [P, 2], counterparts in training
    new: Tensor  # places [M] of drawings of either tone, not in training
    positive: Tensor  # bool [M], which of them have the tone after
    truths: Tensor  # [Q, 2], counterparts of which the second, the truth, is not in training

    @classmethod
    def of(cls, drawings: Drawings, before: str, after: str) -> "Step":
        """The way from one tone to another in these drawings."""
        trained, has = drawings.trained, drawings.having(after)
        pairs = counterparts(drawings.tones, before, after)
        new = ((drawings.having(before) | has) & ~trained).nonzero().flatten()
        return cls(
            name=f"{before}{TO}{after}",
            before=drawings.having(before) & trained,
            after=has & trained,
            rest=drawings.having(*drawings.tones.kinds) & ~has & trained,
            pairs=pairs[trained[pairs].all(1)],
            new=new,
            positive=has[new],
            truths=pairs[~trained[pairs[:, 1]]],
        )


def main(
    page: Annotated[Path | None, typer.Option(help="a page whose table, between its marks, is replaced")] = None,
) -> None:
    """Fit the model, try every estimator on every step, print the table."""
    with cli_errors():
        if page is not None:
            _between(page)  # a page without marks is refused before the work, not after
        drawings = Drawings.read()
        steps = [Step.of(drawings, *ends) for ends in STEPS]
        table = _table(steps, [_cells(drawings, step) for step in steps])
        typer.echo(table)
        if page is not None:
            head, tail = _between(page)
            write_atomic(page, f"{head}{BEGIN}\n{table}\n{END}{tail}".encode())


def fits(z: Tensor, step: Step) -> dict[str, Fit]:
    """Every estimator's fit to normalised codes z [N, D]."""
    two, all_tones = step.before | step.after, step.rest | step.after
    return {
        "classifier, one against the rest": classifier(z[all_tones], step.after[all_tones]),
        "classifier between the two": classifier(z[two], step.after[two]),
        "mean against the rest": difference(z[step.rest], z[step.after]),
        "mean step, all of both values": difference(z[step.before], z[step.after]),
        "mean step of counterparts": difference(z[step.pairs[:, 0]], z[step.pairs[:, 1]]),
    }


def _cells(drawings: Drawings, step: Step) -> dict[str, Cell]:
    z = drawings.zn
    found: dict[str, Cell] = {}
    auroc, direction = 0.0, None
    for name, fit in fits(z, step).items():
        auroc = scored(fit, z[step.new], step.positive).auroc or 0.0
        strength = typical(fit, z[step.before].mean(0), z[step.after].mean(0))
        length = float(fit.weight.norm())
        direction = Direction(name, (fit.weight / length).float(), strength, length, fit.bias)
        found[name] = Cell(auroc, _left(drawings, step.truths, direction))
    assert direction is not None
    pairs = pair_directions(z[step.pairs[:, 0]], z[step.pairs[:, 1]])
    local = direction._replace(counterparts=pairs)  # of the mean step, which comes last and is what it reads by
    found["step of the likest counterparts"] = Cell(auroc, _left(drawings, step.truths, local))
    return found


def _left(drawings: Drawings, pairs: Tensor, direction: Direction) -> float:
    model, (before, truth) = drawings.model, (drawings.pictures[side] for side in pairs.T)
    z, ways = drawings.z[pairs[:, 0]], [direction.at(one) for one in drawings.zn[pairs[:, 0]]]
    codes = [move_codes(model, one[None], [Change(way, way.typical)]) for one, way in zip(z, ways, strict=True)]
    edited = model.decode(torch.cat(codes), model.invert(before, z))
    return float((_distance(edited, truth) / _distance(before, truth)).mean())


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Root of the squared differences of pictures uint8 [N, ...]: [N]."""
    return (a.double() - b.double()).flatten(1).norm(dim=1)


def _table(steps: Sequence[Step], cells: Sequence[Mapping[str, Cell]]) -> str:
    """One row an estimator; the best of each column is bold."""
    heads = [f"{step.name}: AUROC ({len(step.new)}) | left ({len(step.truths)})" for step in steps]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + 2 * len(steps)) + "|"]
    best = [Cell(max(c.auroc for c in each.values()), min(c.left for c in each.values())) for each in cells]
    for name in cells[0]:
        shown = [
            f"{_shown(each[name].auroc, top.auroc, 3)} | {_shown(each[name].left, top.left, 2)}"
            for each, top in zip(cells, best, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(value: float, best: float, digits: int) -> str:
    text, top = f"{value:.{digits}f}", f"{best:.{digits}f}"
    return f"**{text}**" if text == top else text


def _between(page: Path) -> tuple[str, str]:
    """What stands in the page before and after its table; raises UserError where the marks are not."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{page} has no place for the table; expected the lines {BEGIN} and {END}")
    return head, tail


if __name__ == "__main__":
    run_cli(main)
