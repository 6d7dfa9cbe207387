"""Errors of picture edits whose true result is known: the exact counterfactual picture of each edit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.metrics.fidelity import wilson


class EditError(NamedTuple):
    """How one edit compares with the exact picture of that edit, its truth."""

    right: bool  # the reader finds the wanted value of the edited factor
    unchanged: int  # other factors whose value the reader finds unchanged
    others: int  # other factors whose value the truth shows
    ratio: float  # distance of the edited picture to the truth over that of the unedited one; below 1: it came closer
    rank: int  # of the truth among the candidates by distance to the edited picture; 1: it is the nearest
    candidates: int  # the unedited picture and the true results of all edits of it
    readable: bool  # the reader finds the wanted value in the truth itself


def edit_error(
    edited: Tensor, original: Tensor, candidates: Tensor, truth: int, *, readings: Tensor, labels: Tensor, factor: int
) -> EditError:
    """Compare an edited picture with the exact picture of the edit.

    Args:
        edited: the edited picture, uint8 [C, R, R].
        original: the unedited picture, likewise.
        candidates: true results of all edits of one factor of this picture, uint8 [M, C, R, R].
        truth: index of the wanted one among them.
        readings: int64 [2, F], the numbers of the values that the reader finds in the edited picture and in the truth.
        labels: int64 [F], the numbers of the truth's values; -1: not known, or the truth does not show it.
        factor: index of the edited factor.

    Raises:
        ValueError: the truth is the unedited picture itself, to which no distance can be related.
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
    """Return shares and means over edits, for JSON; with 95 % intervals [low, high] of shares by Wilson's score.

    `right`: the wanted factor is found; `unchanged`: mean share of other factors found unchanged; `closer`: the
    edited picture is nearer to the truth than the unedited one; `ratio`: mean of the distances' ratio; `nearest`: the
    truth is the nearest of all candidates; `rank`: the truth's median rank; `readable`: the reader finds the wanted
    factor in the truth.
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
