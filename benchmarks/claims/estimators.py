"""Claims about estimators of an attribute's direction: which tells it apart best, which ends nearest to the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from benchmarks.claims.linear import Linear
from benchmarks.tables import markdown, page_of, write_section
from ldm_kit.cli import cli_errors
from ldm_kit.data.openmoji.dataset import OpenMojiConfig, load_all, split
from ldm_kit.editing.fit_directions import paired_indices
from ldm_kit.editing.fitting import classifier, score
from ldm_kit.editing.labels import Column, from_openmoji
from ldm_kit.editing.operations import Change, move_codes
from ldm_kit.models.directions import TO, Direction, typical_strength
from ldm_kit.models.linear_fit import Fit, mean_difference
from ldm_kit.models.pairs import pair_directions
from ldm_kit.models.protocol import encode_pictures, normalise

WIDTH = 128
STEPS = (("light", "dark"), ("none", "dark"), ("medium", "light"))  # skin tones, from one to the other


class Cell(NamedTuple):
    """Scores of one estimator of the direction from one skin tone to another."""

    auroc: float  # of telling the two tones apart on pictures that no training has seen
    left: float  # mean over edits of distance(edited, true picture) / distance(unedited, true picture)


@dataclass(frozen=True, eq=False)
class Pictures:
    """All N pictures of OpenMoji, and their codes by a linear model."""

    model: Linear  # encodes pictures by principal components
    pictures: Tensor  # uint8 [N, 3, R, R]
    z: Tensor  # codes [N, D]
    zn: Tensor  # codes normalised by mean and deviation of the training pictures' codes, [N, D]
    tones: Column  # skin tone of each picture
    trained: Tensor  # bool [N], whether each picture is a training picture

    @classmethod
    def load(cls) -> "Pictures":
        """Load all pictures at 32 px, fit a linear model to the training pictures alone, and encode all."""
        everything = load_all(OpenMojiConfig(resolution=32))
        train = split(everything).train
        model, names = Linear.fit(train, WIDTH), {record.name for record in train.records}
        trained = torch.tensor([record.name in names for record in everything.records])
        tones = next(column for column in from_openmoji(everything) if column.name == "skin tone")
        z = encode_pictures(model, everything)
        return cls(model, everything.pixels, z, normalise(model, z), tones, trained)

    def having(self, *values: str) -> Tensor:
        """Return bool [N]: whether each picture has one of these skin tones."""
        return torch.tensor([value in values for value in self.tones.values])


class Step(NamedTuple):
    """A change from one skin tone to another: pictures to which estimators are fitted, and on which they are tested.

    A pair is two pictures of the same role and gender, the first with the old and the second with the new tone.
    """

    name: str  # both tones, such as "light > dark"
    before: Tensor  # bool [N], training pictures of the old tone
    after: Tensor  # bool [N], training pictures of the new tone
    rest: Tensor  # bool [N], training pictures of any other tone than the new one
    pairs: Tensor  # [P, 2], indices of pairs of two training pictures
    new: Tensor  # [M], indices of pictures of either tone that are no training pictures
    positive: Tensor  # bool [M], which of `new` have the new tone
    truths: Tensor  # [Q, 2], indices of pairs whose second picture, the true result, is no training picture

    @classmethod
    def between(cls, pictures: Pictures, before: str, after: str) -> "Step":
        """Select the pictures for the change from the skin tone `before` to the skin tone `after`."""
        trained, has = pictures.trained, pictures.having(after)
        pairs = paired_indices(pictures.tones, before, after)
        new = ((pictures.having(before) | has) & ~trained).nonzero().flatten()
        return cls(
            name=f"{before}{TO}{after}",
            before=pictures.having(before) & trained,
            after=has & trained,
            rest=pictures.having(*pictures.tones.kinds) & ~has & trained,
            pairs=pairs[trained[pairs].all(1)],
            new=new,
            positive=has[new],
            truths=pairs[~trained[pairs[:, 1]]],
        )


def estimators(
    page: Annotated[bool, typer.Option("--page/--no_page", help="write the page editing.md")] = True,
) -> None:
    """Fit every estimator to every change of skin tone in STEPS, print the table and write it into editing.md."""
    with cli_errors():
        target = page_of("editing.md") if page else None
        pictures = Pictures.load()
        steps = [Step.between(pictures, *ends) for ends in STEPS]
        text = estimator_table(steps, [_cells(pictures, step) for step in steps])
        typer.echo(text)
        if target is not None:
            write_section(target, "estimators", text)


def fits(z: Tensor, step: Step) -> dict[str, Fit]:
    """Fit every estimator of the direction of `step` to normalised codes z [N, D]; return the fits by name."""
    two, all_tones = step.before | step.after, step.rest | step.after
    return {
        "classifier, one against the rest": classifier(z[all_tones], step.after[all_tones]),
        "classifier between the two": classifier(z[two], step.after[two]),
        "mean against the rest": mean_difference(z[step.rest], z[step.after]),
        "mean step, all of both values": mean_difference(z[step.before], z[step.after]),
        "mean step of counterparts": mean_difference(z[step.pairs[:, 0]], z[step.pairs[:, 1]]),
    }


def _cells(pictures: Pictures, step: Step) -> dict[str, Cell]:
    z = pictures.zn
    cells: dict[str, Cell] = {}
    auroc, direction = 0.0, None
    for name, fit in fits(z, step).items():
        auroc = score(fit, z[step.new], step.positive).auroc or 0.0
        strength = typical_strength(fit, z[step.before].mean(0), z[step.after].mean(0))
        length = float(fit.weight.norm())
        direction = Direction(name, (fit.weight / length).float(), strength, length, fit.bias)
        cells[name] = Cell(auroc, _left(pictures, step.truths, direction))
    assert direction is not None
    pairs = pair_directions(z[step.pairs[:, 0]], z[step.pairs[:, 1]])
    local = direction._replace(pairs=pairs)  # of the mean step, which comes last and is what it reads by
    cells["step of the likest counterparts"] = Cell(auroc, _left(pictures, step.truths, local))
    return cells


def _left(pictures: Pictures, pairs: Tensor, direction: Direction) -> float:
    model, (before, truth) = pictures.model, (pictures.pictures[side] for side in pairs.T)
    z, ways = pictures.z[pairs[:, 0]], [direction.at_code(one) for one in pictures.zn[pairs[:, 0]]]
    codes = [move_codes(model, one[None], [Change(way, way.typical)]) for one, way in zip(z, ways, strict=True)]
    edited = model.decode(torch.cat(codes), model.invert(before, z))
    return float((_distance(edited, truth) / _distance(before, truth)).mean())


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distances [N] of pictures a and b, uint8 [N, ...] each."""
    return (a.double() - b.double()).flatten(1).norm(dim=1)


def estimator_table(steps: Sequence[Step], cells: Sequence[Mapping[str, Cell]]) -> str:
    """Return a Markdown table with a row for each estimator; the best of each column is bold.

    `cells` has, for each of `steps`, the scores by name of the estimator.
    """
    heads = [title for s in steps for title in (f"{s.name}: AUROC ({len(s.new)})", f"left ({len(s.truths)})")]
    best = [Cell(max(c.auroc for c in each.values()), min(c.left for c in each.values())) for each in cells]
    rows = []
    for name in cells[0]:
        pairs = [(each[name], top) for each, top in zip(cells, best, strict=True)]
        shown = [[_bold(c.auroc, top.auroc, 3), _bold(c.left, top.left, 2)] for c, top in pairs]
        rows.append([name, *(text for pair in shown for text in pair)])
    return markdown(["", *heads], rows)


def _bold(value: float, best: float, digits: int) -> str:
    text, top = f"{value:.{digits}f}", f"{best:.{digits}f}"
    return f"**{text}**" if text == top else text
