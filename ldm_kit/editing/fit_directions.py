"""Learning directions from labelled codes, with a share held out that tells how well each reads new pictures.

The default estimator is the classifier, DiffAE's: on held-out drawings it tells an attribute better than a difference
of means does, and what merely goes along with it turns it less. To go from one value of an attribute to another
("skin tone: light > dark") the step between counterparts is taken where there are any, that of those most like the
picture; else the difference of the means. On OpenMoji it ends nearer to the true counterpart (docs/semantic.md).
"""

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm_kit.config import Config, UserError
from ldm_kit.data.images import unit_hash
from ldm_kit.editing import fitting
from ldm_kit.editing.fitting import Fit, Score
from ldm_kit.editing.labels import Column
from ldm_kit.models.directions import TO, About, Directions, gathered, typical
from ldm_kit.models.pairs import PairDirections, pair_directions

FEWEST, FEW, FEWEST_PAIRS = 2, 20, 4
_log = logging.getLogger("ldm_kit.editing")
_Found = tuple[About, Fit, Tensor]


class FitOptions(Config):
    """How directions are learned from labels."""

    estimator: Literal["classifier", "means"] = Field(
        default="classifier", description="means: the difference of the means of pictures with and without"
    )
    decay: float = Field(default=fitting.DECAY, gt=0, description="of the classifier's weight")
    heldout: float = Field(default=0.2, ge=0, lt=1, description="share of the pictures that only measure")


def learn(
    z: Tensor, columns: Sequence[Column], names: Sequence[str], key: str, how: FitOptions | None = None
) -> Directions:
    """One direction for each binary attribute and for each value of the others, and the steps between counterparts.

    Args:
        z: normalised codes [N, D].
        columns: the attributes of the N pictures.
        names: what decides, by hash, which pictures are held out; equal names stay together.
        key: of the model.
        how: how.

    Raises:
        UserError: no attribute has enough pictures with and without it.
    """
    how = how or FitOptions()
    held = torch.tensor([unit_hash("probe", name) < how.heldout for name in names])
    pairs: dict[str, PairDirections] = {}
    found = [one for column in columns for one in (*_values(z, column, held, how), *_steps(z, column, held, pairs))]
    if not found:
        raise UserError(
            f"nothing to learn from {len(z)} pictures: no attribute has {FEWEST} pictures with it and {FEWEST} without"
        )
    return gathered(found, key, pairs)


def learn_few(z: Tensor, others: Tensor | None, name: str, key: str) -> Directions:
    """One direction from a dozen examples' normalised codes [N, D]; against others, or the whole training set (None).

    Raises:
        UserError: fewer than two examples, or examples that do not differ from the others.
    """
    if len(z) < FEWEST or (others is not None and len(others) < FEWEST):
        raise UserError(
            f"{name!r} has {min(len(z), len(z if others is None else others))} examples; expected 2 or more"
        )
    fit = fitting.few(z, others)
    if not float(fit.weight.norm()) > 1e-6:
        raise UserError(f"the examples of {name!r} are no different from the others; expected pictures that differ")
    score = Score() if others is None else fitting.left_out(z, others)
    away = torch.zeros(z.shape[1]) if others is None else others.mean(0)
    mean = z.mean(0)
    numbers = {"typical": typical(fit, away, mean), "positives": len(z), "others": 0 if others is None else len(others)}
    return gathered([(About(name=name, estimator="few", **numbers, **score._asdict()), fit, mean)], key)


def _values(z: Tensor, column: Column, held: Tensor, how: FitOptions) -> list[_Found]:
    found: list[_Found] = []
    for value in column.kinds:
        name = column.name if column.binary else f"{column.name}: {value}"
        marks = column.positive(value)
        known, positive = torch.tensor([m is not None for m in marks]), torch.tensor([m is True for m in marks])
        has, lacks = positive & ~held, known & ~positive & ~held
        if min(int(has.sum()), int(lacks.sum())) < FEWEST:
            _log.warning("left out %s: %d pictures with it and %d without", name, int(has.sum()), int(lacks.sum()))
            continue
        found.append(_value(z, name, (has, lacks), (known & held, positive), how))
    return found


def _value(
    z: Tensor, name: str, sides: tuple[Tensor, Tensor], measured: tuple[Tensor, Tensor], how: FitOptions
) -> _Found:
    has, lacks = sides
    fit, estimator = _fitted(z, has, lacks, how)
    new, positive = measured
    mean, count = z[has].mean(0), {"positives": int(has.sum()), "others": int(lacks.sum())}
    score = fitting.scored(fit, z[new], positive[new])._asdict()
    strength = typical(fit, z[lacks].mean(0), mean)
    return About(name=name, estimator=estimator, typical=strength, **count, **score), fit, mean


def _fitted(
    z: Tensor, has: Tensor, lacks: Tensor, how: FitOptions
) -> tuple[Fit, Literal["classifier", "few", "means"]]:
    if how.estimator == "means":
        return fitting.difference(z[lacks], z[has]), "means"
    if min(int(has.sum()), int(lacks.sum())) < FEW:
        return fitting.few(z[has], z[lacks]), "few"
    used = has | lacks
    return fitting.classifier(z[used], has[used], how.decay), "classifier"


def _steps(z: Tensor, column: Column, held: Tensor, kept: dict[str, PairDirections]) -> list[_Found]:
    """Steps between counterparts, for each two values that have enough of them; puts the pairs into `kept`."""
    if column.pairs is None or column.binary:
        return []
    found: list[_Found] = []
    for before, after in combinations(column.kinds, 2):
        pairs = counterparts(column, before, after)
        used = torch.tensor([not bool(held[a] or held[b]) for a, b in pairs.tolist()], dtype=torch.bool)
        if int(used.sum()) >= FEWEST_PAIRS:
            name = f"{column.name}: {before}{TO}{after}"
            ends = pairs[used].T
            kept[name] = pair_directions(z[ends[0]], z[ends[1]])
            found.append(_step(z, name, pairs[used], pairs[~used], kept[name].temperature))
    return found


def _step(z: Tensor, name: str, pairs: Tensor, new: Tensor, temperature: float) -> _Found:
    before, after = z[pairs[:, 0]], z[pairs[:, 1]]
    fit = fitting.difference(before, after)
    labels = torch.arange(2 * len(new)) >= len(new)
    score = fitting.scored(fit, z[new.T.flatten()], labels)._asdict()
    mean, strength = after.mean(0), typical(fit, before.mean(0), after.mean(0))
    numbers = {"positives": len(pairs), "others": len(pairs), "typical": strength, "temperature": temperature}
    return About(name=name, estimator="pairs", **numbers, **score), fit, mean


def counterparts(column: Column, before: str, after: str) -> Tensor:
    """Places [P, 2] of pictures that differ in having one value or the other; one of each for a name of a pair."""
    places: dict[str, dict[str, int]] = {}
    for i, (value, pair) in enumerate(zip(column.values, column.pairs or (), strict=True)):
        if pair is not None and value in (before, after):
            places.setdefault(pair, {}).setdefault(value, i)
    found = [(ends[before], ends[after]) for ends in places.values() if len(ends) == 2]
    return torch.tensor(found, dtype=torch.long).view(-1, 2)
