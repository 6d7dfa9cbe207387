"""Area under the ROC curve: of each dimension of codes as a detector, and in draws of pictures with repetition."""

import torch
from torch import Tensor


def aurocs(codes: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve of each dimension as a detector of an attribute, float64 [D].

    Of all pairs of a picture with the attribute and one without it, it is the share in which the picture with the
    attribute has the higher code in that dimension; ties count half (Mann & Whitney 1947).

    Args:
        codes: latent codes of N pictures, [N, D].
        positive: bool [N], whether a picture has the attribute; both must occur.
    """
    with_it = int(positive.sum())
    ranks = torch.stack([_mean_ranks(column) for column in codes.T], dim=1)
    wins = ranks[positive].sum(0) - with_it * (with_it + 1) / 2
    return wins / (with_it * (len(positive) - with_it))


def auroc_of_draws(scores: Tensor, positive: Tensor, counts: Tensor) -> Tensor:
    """Return the area under the ROC curve in each draw of pictures with repetition, float64 [draws]; ties count half.

    It is NaN for a draw without a picture that has the attribute, or without one that lacks it.

    Args:
        scores: score of each of N pictures, [N]; pictures with the attribute should have higher ones.
        positive: bool [N], whether a picture has the attribute.
        counts: how often each picture is in each draw, [draws, N].
    """
    _, ranks, totals = scores.unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    sides = [torch.zeros(len(counts), len(totals)).double().index_add_(1, ranks, counts * side)
             for side in (positive, ~positive)]  # fmt: skip
    below = sides[1].cumsum(1) - sides[1] / 2
    return (sides[0] * below).sum(1) / (sides[0].sum(1) * sides[1].sum(1))


def _mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each of `values` [N] in rising order, float64 [N] from 1; equal values get their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]
