"""Measures of disentanglement: DCI, FactorVAE score, mutual information gap (MIG) and total AUROC difference (TAD).

Each is a function of the latent codes [N, D] of N pictures and of what is known about the pictures. This is either F
factors, such as hair colour (int64 [N, F], the index of each factor's value), or A binary attributes (int64 [N, A], 0
or 1); -1 stands for not known. `groups` is None or a list of groups of dimensions; a group, such as the dimensions of
one token, counts as one dimension: by the sum of its importances (DCI), the mean of its normalised variances
(FactorVAE score) or its first principal component (MIG, TAD).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion import rng
from ldm_kit.metrics.auroc import aurocs

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
    """Total AUROC difference (TAD) of latent codes, and the number of attributes that it is a sum over."""

    total: float  # sum over captured attributes of the best dimension's AUROC minus the second best's
    captured: int  # number of attributes that a dimension detects with an AUROC of at least `captured`, by default 0.75
    attributes: int  # number of attributes that have both values and that no other attribute predicts


def factor_vae_score(
    codes: Tensor, factors: Tensor, groups: Groups | None = None, *, votes: tuple[int, int] = VOTES, seed: int = 0
) -> float:
    """Return the FactorVAE score (Kim & Mnih 2018, section 4): the share of votes that tell which factor was fixed.

    For each vote, a random factor is fixed: 64 pictures that agree in its value are drawn. The vote is for the
    dimension whose variance among these pictures, divided by its variance among all pictures, is least. Each dimension
    predicts the factor that was fixed in most of the votes for it. The score is the share of further votes that predict
    the right factor; chance is about 1 / F. Dimensions that do not vary get no votes.

    Args:
        codes: latent codes of N pictures, [N, D].
        factors: int64 [N, F], the index of each factor's value; -1: not known. A factor with one value is left out.
        groups: groups of dimensions that count as one dimension each; None: each dimension counts by itself.
        votes: number of votes that decide which factor a dimension predicts, and number of votes on which the score is
            measured; the defaults, 10,000 and 5,000, are those of published scores.
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
    """Draw, for each of B votes, L = VOTE_PICTURES pictures that agree in a factor's value.

    The value is that of a random picture.

    Args:
        values: int64 [N], the index of the factor's value in each picture; -1: not known.
        positions: int64 [B], the index of each vote, by which random numbers are drawn.
        seed: seed of the votes.

    Returns:
        Indices of the pictures, int64 [B, L].
    """
    rows = values.argsort()[int((values < 0).sum()) :]  # by value, without unknown ones
    _, number, counts = values[rows].unique(return_inverse=True, return_counts=True)
    pick = number[(rng.uniform(seed, "fixed value", positions) * len(rows)).long()]
    places = positions[:, None] * VOTE_PICTURES + torch.arange(VOTE_PICTURES)
    uniform = rng.uniform(seed, "alike", places.flatten()).view_as(places)
    return rows[(counts.cumsum(0) - counts)[pick][:, None] + (uniform * counts[pick][:, None]).long()]


def _owners(dimensions: int, groups: Groups | None) -> Tensor:
    """Return, for each of D dimensions, the index of its group, int64 [D]; -1 if it is in no group.

    `groups` are lists of dimensions; None: each dimension is a group of its own.
    """
    if groups is None:
        return torch.arange(dimensions)
    owners = torch.full((dimensions,), -1)
    for number, group in enumerate(groups):
        owners[list(group)] = number
    return owners


def _mean_of_groups(values: Tensor, owners: Tensor, active: Tensor) -> Tensor:
    """Return the mean of `values` [B, D] over the active dimensions of each of G groups, [B, G].

    `owners` int64 [D] is the index of each dimension's group, -1 for none; `active` bool [D] says which dimensions are
    used. The mean of a group without active dimensions is infinity.
    """
    used = active & (owners >= 0)
    shape = len(values), int(owners.max()) + 1
    sums = torch.zeros(shape, dtype=values.dtype).index_add_(1, owners[used], values[:, used])
    counts = owners[used].bincount(minlength=shape[1])
    return torch.where(counts > 0, sums / counts.clamp_min(1), torch.inf)


def mutual_information_gap(codes: Tensor, factors: Tensor, groups: Groups | None = None) -> float:
    """Return the mutual information gap (Chen et al. 2018, eq. 6): the mean over factors of (I_1 - I_2) / H.

    H is a factor's entropy; I_1 and I_2 are the largest and the second largest of its mutual informations with the
    dimensions of the codes. Dimensions are made discrete by histograms of 20 bins, as in Locatello et al. 2019.

    Args:
        codes: latent codes of N pictures, [N, D].
        factors: int64 [N, F], the index of each factor's value; -1: not known. A factor with one value is left out.
        groups: groups of dimensions, each of which is replaced by its first principal component; None: each dimension
            counts by itself.

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
            shared = _binned_information(binned[labelled], numbers)
            first, second = sorted([0.0, *shared.tolist()])[-1:-3:-1]
            gaps.append((first - second) / entropy)
    if not gaps:
        raise ValueError("no factor has two values")
    return sum(gaps) / len(gaps)


def _histogram(codes: Tensor) -> Tensor:
    """Return the histogram bin, 0 to BINS - 1, of each entry of codes [N, D]; each dimension has its own histogram."""
    low, high = codes.amin(0), codes.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    return ((codes - low) / width * BINS).long().clamp(max=BINS - 1)


def _binned_information(binned: Tensor, numbers: Tensor) -> Tensor:
    """Return the mutual information, in nats, of D dimensions with a discrete variable, float64 [D].

    Args:
        binned: the bin of each of N codes, int64 [N, D], 0 to BINS - 1.
        numbers: value of the variable, int64 [N], 0 or more.
    """
    dimensions, values = binned.shape[1], int(numbers.max()) + 1
    cells = (torch.arange(dimensions) * BINS + binned) * values + numbers[:, None]
    joint = cells.flatten().bincount(minlength=dimensions * BINS * values).view(dimensions, BINS, values)
    p = joint.double() / len(numbers)

    def entropies(shares: Tensor) -> Tensor:
        return -torch.special.xlogy(shares, shares).flatten(1).sum(1)

    return (entropies(p.sum(2)) + entropies(p.sum(1)) - entropies(p)).clamp_min(0)


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0].double() / counts.sum()
    return float(-(p * p.log()).sum())


def _mutual_information(a: Tensor, b: Tensor) -> float:
    """Return the mutual information, in nats, of two discrete variables with N values each, int64 [N], 0 or more."""
    joint = (a * (int(b.max()) + 1) + b).bincount()
    return max(0.0, _entropy(a.bincount()) + _entropy(b.bincount()) - _entropy(joint))


def total_auroc_difference(
    codes: Tensor, attributes: Tensor, groups: Groups | None = None, *, captured: float = CAPTURED
) -> TotalAUROCDifference:
    """Return the total AUROC difference (TAD; Yeats et al. 2022, section 4.3) of binary attributes.

    The AUROC of each dimension is that of a detector of the attribute which thresholds this dimension, above or below,
    whichever is better. If the best dimension's AUROC is at least `captured`, the sum gets the difference between the
    best and the second best. Attributes whose entropy another attribute reduces by more than a fifth are left out.

    Args:
        codes: latent codes of N pictures, [N, D].
        attributes: int64 [N, A], 0 or 1; -1: not known.
        groups: groups of dimensions, each of which is replaced by its first principal component; None: each dimension
            counts by itself.
        captured: AUROC that the best dimension must reach for the attribute to count.

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
    """Return the share of attribute a's entropy that attribute b predicts: I(a; b) / H(a).

    a and b are int64 [N] with 0, 1, or -1 for not known; pictures where one is not known are left out.
    """
    labelled = (a >= 0) & (b >= 0)
    entropy = _entropy(a[labelled].bincount())
    return _mutual_information(a[labelled], b[labelled]) / entropy if entropy > 0 else 0.0


def first_components(codes: Tensor, groups: Groups | None) -> Tensor:
    """Return the first principal component of each group of dimensions of the codes [N, D], float64 [N, G].

    If `groups` is None, return the codes. Published figures reduce codes that consist of several vectors to one number
    for each vector in this way.
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
    """Check that `codes` have the shape [N, D] and `factors` [N, F]; raises ValueError if not."""
    if codes.dim() != 2 or factors.dim() != 2 or len(codes) != len(factors):
        raise ValueError(f"expected codes [N, D] and factors [N, F], got {[*codes.shape]} and {[*factors.shape]}")
