"""Errors of picture edits whose exact result, the counterfactual picture, is known: here called the truth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.metrics.fidelity import wilson


class EditError(NamedTuple):
    """Comparison of one edited picture with the truth, the exact result of the edit.

    An edit changes one factor of a picture, such as hair colour. The reader is a classifier of all factors.
    """

    right: bool  # whether the reader finds the wanted value of the edited factor in the edited picture
    unchanged: int  # number of other factors whose value the reader finds unchanged in the edited picture
    others: int  # number of other factors whose value can be seen in the truth
    ratio: float  # distance of edited picture and truth, divided by that of unedited picture and truth; < 1: closer
    rank: int  # rank of the truth among the candidates by distance to the edited picture; 1: the truth is nearest
    candidates: int  # number of candidates: the unedited picture, and the true results of all edits of it
    readable: bool  # whether the reader finds the wanted value in the truth itself


def edit_error(
    edited: Tensor, original: Tensor, candidates: Tensor, truth: int, *, readings: Tensor, labels: Tensor, factor: int
) -> EditError:
    """Compare an edited picture with the truth, the exact result of the edit.

    Args:
        edited: the edited picture, uint8 [C, R, R].
        original: the unedited picture, uint8 [C, R, R].
        candidates: true results of all M edits of one factor of the original, uint8 [M, C, R, R].
        truth: index among the candidates of the true result of this edit.
        readings: int64 [2, F], the index of the value of each of F factors that a classifier finds in the edited
            picture (row 0) and in the truth (row 1).
        labels: int64 [F], the index of the true value of each factor in the truth; -1: not known, or not visible.
        factor: index of the edited factor, 0 to F - 1.

    Returns:
        How near the edited picture is to the truth (ratio of distances, rank), and whether the classifier finds the
        wanted values in the edited picture and in the truth.

    Raises:
        ValueError: the truth equals the unedited picture, so that the ratio of distances is undefined.
    """
    distances = (torch.cat([candidates, original[None]]).double() - edited.double()).flatten(1).norm(dim=1)
    unedited = (original.double() - candidates[truth].double()).norm()
    if unedited == 0:
        raise ValueError("the true result of the edit equals the unedited picture")
    right = readings == labels
    others = labels >= 0
    others[factor] = False
    return EditError(
        right=bool(right[0, factor]),
        unchanged=int(right[0, others].sum()),
        others=int(others.sum()),
        ratio=float(distances[truth] / unedited),
        rank=1 + int((distances < distances[truth]).sum()),
        candidates=len(distances),
        readable=bool(right[1, factor]),
    )


def summarise(errors: Sequence[EditError]) -> dict[str, Any]:
    """Return shares and means over edits by name, for JSON; shares have 95 % intervals [low, high] (Wilson's score).

    The names (the truth, the candidates and the fields of each edit are explained in `EditError`):
        edits: number of edits.
        right: share of edits where a classifier finds the wanted value of the edited factor in the edited picture.
        readable: share of edits where it finds that value in the truth.
        closer: share of edits whose result is nearer to the truth than the unedited picture is.
        nearest: share of edits where the truth is the nearest of all candidates.
        unchanged: mean over edits of the share of the other factors that the classifier finds unchanged.
        ratio, candidates: means over edits of the fields with these names.
        rank: median over edits of the truth's rank.
    """
    if not errors:
        return {"edits": 0}
    count = len(errors)
    shares = {
        "right": sum(error.right for error in errors) / count,
        "closer": sum(error.ratio < 1 for error in errors) / count,
        "nearest": sum(error.rank == 1 for error in errors) / count,
        "readable": sum(error.readable for error in errors) / count,
    }
    shares_unchanged = [error.unchanged / error.others for error in errors if error.others]
    return {
        "edits": count,
        **shares,
        **{f"{name}_interval": [*wilson(share, count)] for name, share in shares.items()},
        "unchanged": sum(shares_unchanged) / len(shares_unchanged) if shares_unchanged else None,
        "ratio": sum(error.ratio for error in errors) / count,
        "rank": float(torch.tensor([float(error.rank) for error in errors]).median()),
        "candidates": sum(error.candidates for error in errors) / count,
    }
