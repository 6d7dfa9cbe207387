"""Measures of disentanglement: DCI, FactorVAE score, mutual information gap (MIG) and total AUROC difference (TAD).

Each is a function of codes [N, D] and of what is known about the N pictures: factors [N, F], the number of each
factor's value, or attributes [N, A], 0 or 1; -1 where not known. `groups` names dimensions that count as one, such
as those of a token or of a chunk. A group counts by the sum of its importances (DCI), the mean of its normalised
variances (FactorVAE score) or its first principal component (MIG, TAD).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion import rng

Groups = Sequence[Sequence[int]]
VOTES = 10_000, 5_000  # of the FactorVAE score: those that fit the majority vote, those that it is measured on
VOTE_PICTURES = 64  # pictures that a vote compares
BINS = 20  # of the histogram by which MIG makes a dimension discrete
CAPTURED = 0.75  # AUROC from which an attribute counts as captured (TAD)
REDUNDANT = (
    0.2  # share of an attribute's entropy above which another attribute predicts it, so that it is left out (TAD)
)
_BLOCK = 256  # votes that are computed at once


class TotalAUROCDifference(NamedTuple):
    """The total AUROC difference: `total`, the sum over the `captured` ones of `attributes` that can count."""

    total: float
    captured: int  # attributes that one dimension detects with an AUROC of CAPTURED or more
    attributes: int  # attributes with both values, and not predicted by another one


def factor_vae_score(
    codes: Tensor, factors: Tensor, groups: Groups | None = None, *, votes: tuple[int, int] = VOTES, seed: int = 0
) -> float:
    """Return the FactorVAE score (Kim & Mnih 2018, section 4): the share of votes that tell which factor was fixed.

    For each vote, a factor is chosen and pictures of one of its values; the vote is the dimension whose variance among
    them, divided by that among all pictures, is least. A majority vote of each dimension predicts the factor; chance is
    about 1 / F. Dimensions that do not vary cannot be voted for.

    Args:
        codes: [N, D].
        factors: int64 [N, F]; -1: not known. A factor with one value alone is left out.
        groups: dimensions that count as one; None: each counts by itself.
        votes: number of votes that fit the majority vote, and of those that measure it; published scores use 10,000 and
            5,000, each of 64 pictures, as do the defaults.
        seed: seed of the votes.

    Raises:
        ValueError: shapes do not match, or no factor has two values.
    """
    check_shapes(codes, factors)
    varied = [column for column in factors.T if len(column[column >= 0].unique()) > 1]
    if not varied:
        raise ValueError("no factor has two values")
    codes = codes.double()
    scale, active = codes.var(0), codes.var(0) > 1e-12
    owners = _owners(codes.shape[1], groups)
    chosen = (rng.uniform(seed, "fixed factor", torch.arange(sum(votes))) * len(varied)).long()
    winners = torch.zeros(sum(votes), dtype=torch.long)
    for factor, values in enumerate(varied):
        mine = (chosen == factor).nonzero()[:, 0]
        for block in mine.split(_BLOCK):
            variances = codes[_draw_alike(values, block, seed)].var(1) / scale
            winners[block] = _mean_of_groups(variances, owners, active).argmin(1)
    counts = torch.zeros(int(owners.max()) + 1, len(varied), dtype=torch.long)
    counts.index_put_((winners[: votes[0]], chosen[: votes[0]]), torch.tensor(1), accumulate=True)
    return float((counts.argmax(1)[winners[votes[0] :]] == chosen[votes[0] :]).double().mean())


def _draw_alike(values: Tensor, positions: Tensor, seed: int) -> Tensor:
    """Draw for each vote VOTE_PICTURES pictures that have the value of a random picture; return their rows [B, L].

    Args:
        values: int64 [N], the value of one factor; -1: not known.
        positions: int64 [B], the numbers of the votes.
        seed: seed of the votes.
    """
    rows = values.argsort()[int((values < 0).sum()) :]  # by value, without unknown ones
    _, number, counts = values[rows].unique(return_inverse=True, return_counts=True)
    pick = number[(rng.uniform(seed, "fixed value", positions) * len(rows)).long()]
    places = positions[:, None] * VOTE_PICTURES + torch.arange(VOTE_PICTURES)
    uniform = rng.uniform(seed, "alike", places.flatten()).view_as(places)
    return rows[(counts.cumsum(0) - counts)[pick][:, None] + (uniform * counts[pick][:, None]).long()]


def _owners(dimensions: int, groups: Groups | None) -> Tensor:
    """Return for each dimension the number of its group, int64 [D]; that of a dimension in no group is -1."""
    if groups is None:
        return torch.arange(dimensions)
    owners = torch.full((dimensions,), -1)
    for number, group in enumerate(groups):
        owners[list(group)] = number
    return owners


def _mean_of_groups(values: Tensor, owners: Tensor, active: Tensor) -> Tensor:
    """Return the mean of values [B, D] over each group's active dimensions, [B, G]; infinity for a group of none."""
    used = active & (owners >= 0)
    shape = len(values), int(owners.max()) + 1
    sums = torch.zeros(shape, dtype=values.dtype).index_add_(1, owners[used], values[:, used])
    counts = owners[used].bincount(minlength=shape[1])
    return torch.where(counts > 0, sums / counts.clamp_min(1), torch.inf)


def mutual_information_gap(codes: Tensor, factors: Tensor, groups: Groups | None = None) -> float:
    """Return the mutual information gap (Chen et al. 2018, eq. 6): the mean over factors of (I_1 - I_2) / H.

    H is a factor's entropy, I_1 and I_2 its largest mutual informations with a dimension, each made discrete by a
    histogram of 20 bins (as Locatello et al. 2019 and published figures do).

    Args:
        codes: [N, D].
        factors: int64 [N, F]; -1: not known. A factor with one value alone is left out.
        groups: dimensions that count as one, by their first principal component; None: each counts by itself.

    Raises:
        ValueError: shapes do not match, or no factor has two values.
    """
    check_shapes(codes, factors)
    binned = _histogram(first_components(codes, groups))
    gaps: list[float] = []
    for values in factors.T:
        labelled = values >= 0
        numbers = values[labelled].unique(return_inverse=True)[1]
        entropy = _entropy(numbers.bincount())
        if entropy > 0:
            shared = [_mutual_information(column, numbers) for column in binned[labelled].T]
            first, second = sorted([0.0, *shared])[-1:-3:-1]
            gaps.append((first - second) / entropy)
    if not gaps:
        raise ValueError("no factor has two values")
    return sum(gaps) / len(gaps)


def _histogram(codes: Tensor) -> Tensor:
    """Return for each number of codes [N, D] the bin of its dimension's histogram, 0 to BINS - 1."""
    low, high = codes.amin(0), codes.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    return ((codes - low) / width * BINS).long().clamp(max=BINS - 1)


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0].double() / counts.sum()
    return float(-(p * p.log()).sum())


def _mutual_information(a: Tensor, b: Tensor) -> float:
    """Return the mutual information in nats of two lists of whole numbers from 0, int64 [N] each."""
    joint = (a * (int(b.max()) + 1) + b).bincount()
    return max(0.0, _entropy(a.bincount()) + _entropy(b.bincount()) - _entropy(joint))


def total_auroc_difference(
    codes: Tensor, attributes: Tensor, groups: Groups | None = None, *, captured: float = CAPTURED
) -> TotalAUROCDifference:
    """Return the total AUROC difference (TAD; Yeats et al. 2022, section 4.3) of binary attributes.

    Each dimension by itself detects an attribute with some AUROC, in whichever direction is better. An attribute counts
    where the best reaches `captured`, by the difference of the best to the second best. An attribute is left out where
    another one reduces its entropy by more than a fifth.

    Args:
        codes: [N, D].
        attributes: int64 [N, A], 0 or 1; -1: not known.
        groups: dimensions that count as one, by their first principal component; None: each counts by itself.
        captured: AUROC from which an attribute counts.

    Raises:
        ValueError: shapes do not match.
    """
    check_shapes(codes, attributes)
    codes = first_components(codes, groups)
    usable = [column for column in attributes.T if {0, 1} <= {*column.tolist()}]
    differences: list[float] = []
    independent = [a for a in usable if all(a is b or _predicted_share(a, b) <= REDUNDANT for b in usable)]
    for column in independent:
        scores = aurocs(codes[column >= 0], column[column >= 0] == 1)
        best, second = sorted([0.5, *torch.maximum(scores, 1 - scores).tolist()])[-1:-3:-1]
        differences += [best - second] if best >= captured else []
    return TotalAUROCDifference(sum(differences), len(differences), len(independent))


def _predicted_share(a: Tensor, b: Tensor) -> float:
    """Return the share of attribute a's entropy that attribute b predicts, I(a; b) / H(a), where both are known."""
    labelled = (a >= 0) & (b >= 0)
    entropy = _entropy(a[labelled].bincount())
    return _mutual_information(a[labelled], b[labelled]) / entropy if entropy > 0 else 0.0


def aurocs(codes: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve of each dimension as a detector of an attribute, float64 [D].

    It is the share of pairs of a picture with and one without the attribute in which the former's code is higher; ties
    count half (Mann & Whitney 1947).

    Args:
        codes: [N, D].
        positive: bool [N], whether a picture has the attribute; both must occur.
    """
    with_it = int(positive.sum())
    ranks = torch.stack([_mean_ranks(column) for column in codes.T], dim=1)
    wins = ranks[positive].sum(0) - with_it * (with_it + 1) / 2
    return wins / (with_it * (len(positive) - with_it))


def _mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each value from 1, float64 [N]; equal values share the mean of their ranks."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]


def first_components(codes: Tensor, groups: Groups | None) -> Tensor:
    """Return the first principal component of each group of dimensions, float64 [N, G]; without groups, all [N, D].

    Published figures reduce codes of vectors per concept in this way before scalar measures are taken.
    """
    codes = codes.double()
    if groups is None:
        return codes
    columns: list[Tensor] = []
    for group in groups:
        centred = codes[:, list(group)] - codes[:, list(group)].mean(0)
        columns.append(centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1])
    return torch.stack(columns, dim=1)


def check_shapes(codes: Tensor, factors: Tensor) -> None:
    """Check that codes are [N, D] and factors [N, F]; raises ValueError."""
    if codes.dim() != 2 or factors.dim() != 2 or len(codes) != len(factors):
        raise ValueError(f"expected codes [N, D] and factors [N, F], got {[*codes.shape]} and {[*factors.shape]}")
