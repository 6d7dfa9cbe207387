"""Fitting of attribute directions to labelled codes; held-out pictures measure how well each direction classifies.

The default estimator is DiffAE's, a linear classifier. On held-out drawings this classifier is more accurate than a
difference of means, and its direction is changed less by correlated attributes.

A direction from one value of an attribute to another ("skin tone: light > dark") is learned from pairs of pictures that
differ in the attribute alone. It is the mean difference of the codes of a pair; for the edit of a given picture, the
most similar pairs count most. Without pairs, it is the difference of the two values' mean codes. On OpenMoji, an edit
learned from pairs ends nearer to the true picture (docs/results/semantic.md).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm_kit.config import Config, UserError
from ldm_kit.data.images import unit_hash
from ldm_kit.editing import fitting
from ldm_kit.editing.fitting import Score
from ldm_kit.editing.labels import Column
from ldm_kit.models.directions import TO, DirectionRecord, Directions, stack_directions, typical_strength
from ldm_kit.models.linear_fit import Fit, mean_difference
from ldm_kit.models.pairs import PairDirections, pair_directions

MIN_EXAMPLES, FEW_SHOT_BELOW, MIN_PAIRS = 2, 20, 4
_log = logging.getLogger("ldm_kit.editing")
_Fitted = tuple[DirectionRecord, Fit, Tensor]  # record, classifier, mean code [D] with the attribute


class FitOptions(Config):
    """Options of fitting attribute directions to codes of labelled pictures."""

    estimator: Literal["classifier", "means"] = Field(
        default="classifier", description="classifier: its weight; means: difference of the mean codes with and without"
    )
    decay: float = Field(default=fitting.DECAY, gt=0, description="weight decay of the classifier")
    heldout: float = Field(default=0.2, ge=0, lt=1, description="share of the pictures held out for the scores")


@dataclass(frozen=True)
class _Split:
    """The pictures for fitting and for scoring the direction of an attribute's value: masks of N pictures, bool."""

    positive: Tensor  # [N], pictures to fit that have the value
    negative: Tensor  # [N], pictures to fit that have another value
    heldout: Tensor  # [N], labelled pictures to score, which are not fitted
    labels: Tensor  # [N], pictures that have the value, whether fitted or held out

    @property
    def counts(self) -> dict[str, int]:
        return {"positives": int(self.positive.sum()), "others": int(self.negative.sum())}


def learn(
    z: Tensor, columns: Sequence[Column], names: Sequence[str], key: str, options: FitOptions | None = None
) -> Directions:
    """Fit attribute directions to labelled codes.

    There is one direction for each binary attribute, and one for each value of any other attribute. There is also one
    from value to value of an attribute if enough pairs of pictures have these values and differ in nothing else.

    Args:
        z: normalised codes [N, D] of N pictures.
        columns: attributes, each with the values of all N pictures.
        names: N names of pictures, or of groups of pictures. Their hash decides which pictures are held out, so that
            pictures with equal names are held out together or not at all.
        key: hash of the model that encoded the pictures (`protocol.encoder_digest`), stored with the directions.
        options: estimator, weight decay and held-out fraction; None: the defaults.

    Raises:
        UserError: no attribute has two pictures with the attribute and two without.
    """
    options = options or FitOptions()
    heldout = heldout_rows(names, options)
    pairs: dict[str, PairDirections] = {}
    fitted = [
        direction
        for column in columns
        for direction in (*_fit_values(z, column, heldout, options), *_fit_pairs(z, column, heldout, pairs))
    ]
    if not fitted:
        raise UserError(
            f"nothing to learn from {len(z)} pictures: no attribute has {MIN_EXAMPLES} pictures with it and "
            f"{MIN_EXAMPLES} without"
        )
    return stack_directions(fitted, key, pairs)


def heldout_rows(names: Sequence[str], options: FitOptions) -> Tensor:
    """Return which of N pictures are held out to measure directions, bool [N], by a hash of their names."""
    return torch.tensor([unit_hash("probe", name) < options.heldout for name in names])


def learn_few(z: Tensor, others: Tensor | None, name: str, key: str) -> Directions:
    """Fit one direction to about a dozen pictures with an attribute.

    Args:
        z: normalised codes [N, D] of pictures with the attribute.
        others: normalised codes [M, D] of other pictures; None: the training set, with mean 0 and the identity as
            covariance.
        name: the attribute's name.
        key: hash of the model that encoded the pictures (`protocol.encoder_digest`), stored with the direction.

    Raises:
        UserError: `z` or `others` has fewer than two codes, or their means do not differ.
    """
    count = min(len(z), len(z if others is None else others))
    if count < MIN_EXAMPLES:
        raise UserError(f"{name!r} has {count} examples; expected {MIN_EXAMPLES} or more")
    fit = fitting.few_shot(z, others)
    if not float(fit.weight.norm()) > 1e-6:
        raise UserError(f"the examples of {name!r} are no different from the others; expected pictures that differ")
    score = Score() if others is None else fitting.cross_validate(z, others)
    other_mean = torch.zeros(z.shape[1]) if others is None else others.mean(0)
    mean = z.mean(0)
    record = DirectionRecord(
        name=name,
        estimator="few",
        typical=typical_strength(fit, other_mean, mean),
        positives=len(z),
        others=0 if others is None else len(others),
        **score._asdict(),
    )
    return stack_directions([(record, fit, mean)], key)


def _fit_values(z: Tensor, column: Column, heldout: Tensor, options: FitOptions) -> list[_Fitted]:
    fitted: list[_Fitted] = []
    for value in column.kinds:
        name = column.name if column.binary else f"{column.name}: {value}"
        marks = column.positive(value)
        labelled, positive = torch.tensor([m is not None for m in marks]), torch.tensor([m is True for m in marks])
        split = _split(positive, labelled, heldout)
        if min(split.counts.values()) < MIN_EXAMPLES:
            _log.warning("left out %s: %d pictures with it and %d without", name, *split.counts.values())
            continue
        fitted.append(_fit_value(z, name, split, options))
    return fitted


def _split(positive: Tensor, labelled: Tensor, heldout: Tensor) -> _Split:
    """Split the labelled pictures into pictures to fit and held-out ones.

    A fit needs `MIN_EXAMPLES` (2) pictures with the value and as many without it. If holding pictures out leaves fewer
    than that, none is held out.

    Args:
        positive: bool [N], whether a picture has the value whose direction is fitted.
        labelled: bool [N], whether a picture's value is known.
        heldout: bool [N], whether a picture is to be held out.
    """
    sides = (positive, labelled & ~positive)
    if min(int((side & ~heldout).sum()) for side in sides) < MIN_EXAMPLES <= min(int(side.sum()) for side in sides):
        heldout = torch.zeros_like(heldout)
    return _Split(sides[0] & ~heldout, sides[1] & ~heldout, labelled & heldout, positive)


def _fit_value(z: Tensor, name: str, split: _Split, options: FitOptions) -> _Fitted:
    fit, estimator = _estimate(z, split, options)
    mean = z[split.positive].mean(0)
    score = fitting.score(fit, z[split.heldout], split.labels[split.heldout])._asdict()
    strength = typical_strength(fit, z[split.negative].mean(0), mean)
    return DirectionRecord(name=name, estimator=estimator, typical=strength, **split.counts, **score), fit, mean


def _estimate(z: Tensor, split: _Split, options: FitOptions) -> tuple[Fit, Literal["classifier", "few", "means"]]:
    if options.estimator == "means":
        return mean_difference(z[split.negative], z[split.positive]), "means"
    if min(split.counts.values()) < FEW_SHOT_BELOW:
        return fitting.few_shot(z[split.positive], z[split.negative]), "few"
    rows = split.positive | split.negative
    return fitting.classifier(z[rows], split.positive[rows], options.decay), "classifier"


def _fit_pairs(z: Tensor, column: Column, heldout: Tensor, pairs: dict[str, PairDirections]) -> list[_Fitted]:
    """Fit a direction from value to value of an attribute, for each two values with `MIN_PAIRS` (4) pairs or more.

    A pair's pictures differ in this attribute alone; the direction is the mean difference of their codes, see
    `_fit_step`.

    Args:
        z: normalised codes [N, D].
        column: the attribute.
        heldout: bool [N], whether a picture is held out for scoring; a pair with a held-out picture is held out.
        pairs: dictionary to which this function adds the fitted pairs' codes, under the direction's name.

    Returns:
        For each direction what `_fit_step` returns: its record, the direction as a linear classifier, and a mean code.
    """
    if column.pairs is None or column.binary:
        return []
    fitted: list[_Fitted] = []
    for before, after in combinations(column.kinds, 2):
        rows = paired_indices(column, before, after)
        used = torch.tensor([not bool(heldout[a] or heldout[b]) for a, b in rows.tolist()], dtype=torch.bool)
        if int(used.sum()) >= MIN_PAIRS:
            name = f"{column.name}: {before}{TO}{after}"
            sides = rows[used].T
            pairs[name] = pair_directions(z[sides[0]], z[sides[1]])
            fitted.append(_fit_step(z, name, (rows[used], rows[~used]), pairs[name].temperature))
    return fitted


def _fit_step(z: Tensor, name: str, rows: tuple[Tensor, Tensor], temperature: float) -> _Fitted:
    """Fit the direction of pairs of pictures, the mean of code(second) - code(first), and measure its held-out AUROC.

    Args:
        z: normalised codes [N, D].
        name: the direction's name.
        rows: indices into z of the P pairs to fit [P, 2] and of the Q held-out pairs [Q, 2].
        temperature: softmax temperature of `PairDirections.step`; it is only stored in the result.

    Returns:
        What directions.json records of the direction, such as its name, and AUROC and average precision on the
        pictures of held-out pairs; the direction as a linear classifier; and the mean code [D] of the second pictures
        of the fitted pairs.
    """
    used, heldout = rows
    before, after = z[used[:, 0]], z[used[:, 1]]
    fit = mean_difference(before, after)
    labels = torch.arange(2 * len(heldout)) >= len(heldout)
    score = fitting.score(fit, z[heldout.T.flatten()], labels)._asdict()
    mean, strength = after.mean(0), typical_strength(fit, before.mean(0), after.mean(0))
    numbers = {"positives": len(used), "others": len(used), "typical": strength, "temperature": temperature}
    return DirectionRecord(name=name, estimator="pairs", **numbers, **score), fit, mean


def paired_indices(column: Column, before: str, after: str) -> Tensor:
    """Return the row indices [P, 2] of P pairs of pictures that differ in the attribute `column` alone.

    The first picture of each pair has the value `before` of the attribute, the second the value `after`; both have the
    same pair name (`Column.pairs`). Of several pictures with the same value and pair name, the first is taken.
    """
    rows = column.paired_rows.get((before, after), [])
    return torch.tensor(rows, dtype=torch.long).view(-1, 2)
