"""Distances between two sets of features, of generated and of reference pictures, and measures of their overlap.

Features are [N, D] and [M, D], computed beforehand by any network; `ldm_kit.metrics.fidelity.embed` computes them. All
values are computed in float64 on the CPU. They are comparable only for the same features of the same references, and
most only for the same numbers of pictures: reports must name the network and the numbers. Published figures are those
of Inception features (KID, FID, MIND, and the inception score of its class probabilities) or of VGG-16 features
(precision and recall).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion import rng
from ldm_kit.metrics.moments import finite_rows

_TIE = 1e-12  # squared distances this close are equal; features are scaled to a mean squared length of 1
_ELEMENTS = 2**24  # numbers of a block of distances or projections, 128 MiB


class Estimate(NamedTuple):
    """Mean and standard deviation over subsets: the root of the mean squared difference from the mean (numpy's std).

    The deviation says how much one subset's value varies; it is no standard error of the mean.
    """

    mean: float
    deviation: float


class PrecisionRecall(NamedTuple):
    """Improved precision and recall."""

    precision: float  # share of generated pictures that are like a reference, in [0, 1]
    recall: float  # share of references that are like a generated picture, in [0, 1]


class DensityCoverage(NamedTuple):
    """Density and coverage."""

    density: float  # mean number of neighbourhoods of references that hold a generated picture, / k; may exceed 1
    coverage: float  # share of references that have a generated picture in their neighbourhood, in [0, 1]


def kernel_distance(
    generated: Tensor, references: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Estimate:
    """Return the kernel distance (KID; Binkowski et al. 2018, section 4): mean and deviation of MMD^2 over subsets.

    The kernel is k(x, y) = (x.y / D + 1)^3. The estimate of MMD^2 from n features x of each set is unbiased: the means
    of k(x_i, x_j) over i != j in each set, minus twice the mean of k between the sets. It is 0 on average for sets from
    one distribution, and then often negative.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D].
        subsets: number of pairs of random subsets, each drawn without repetition.
        size: number of features in each subset, n, from 2 to min(N, M). Published figures use 1,000.
        seed: seed of the subsets.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D], there is no subset, or a set has fewer features
            than a subset.
    """
    a, b = _pair(generated, references, 2)
    if subsets < 1 or not 2 <= size <= min(len(a), len(b)):
        raise ValueError(
            f"expected at least 1 subset of 2 to {min(len(a), len(b))} features (the sets have {len(a)} and {len(b)}), "
            f"got {subsets} of {size}"
        )
    pairs = (
        [x[_subset(len(x), size, seed, f"{i} {name}")] for name, x in (("a", a), ("b", b))] for i in range(subsets)
    )
    values = torch.stack([_squared_mmd(x, y) for x, y in pairs])
    return Estimate(values.mean().item(), values.std(correction=0).item())


def _subset(count: int, size: int, seed: int, name: str) -> Tensor:
    """Draw `size` different indices in 0..count - 1, int64 [size]."""
    return rng.permuted(seed, f"subset {name}", torch.arange(size), count)


def _squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased estimate of the squared maximum mean discrepancy of a, b [n, D]; see `kernel_distance`."""
    own_a, own_b, cross = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = own_a.sum() - own_a.trace() + own_b.sum() - own_b.trace()
    return within / (len(a) * (len(a) - 1)) - 2 * cross.mean()


def inception_score(probabilities: Tensor, splits: int = 10, *, seed: int = 0) -> Estimate:
    """Return the inception score (Salimans et al. 2016, section 4): exp of the mean over x of KL(p(y | x) || p(y)).

    It is from 1 to the number of classes. Pictures are shuffled and divided into `splits` parts; p(y) is the mean of
    p(y | x) in a part. It knows no reference pictures.

    Args:
        probabilities: p(y | x) of each generated picture, [N, K]; rows add up to 1.
        splits: number of parts, from 1 to N; published figures use 10 parts of 5,000 pictures. Small parts bias the
            score downwards.
        seed: seed of the shuffle.

    Raises:
        ValueError: probabilities are not finite numbers [N, K], a row is negative or does not add up to 1, or there are
            fewer pictures than parts.
    """
    p = finite_rows(probabilities, 1)
    if bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 1e-3).any()):
        raise ValueError("expected probabilities, at least 0 and adding up to 1 in each row")
    if not 1 <= splits <= len(p):
        raise ValueError(f"expected 1 to {len(p)} parts of {len(p)} pictures, got {splits}")
    parts = p[_subset(len(p), len(p), seed, "inception score")].tensor_split(splits)
    scores = torch.stack([_mean_divergence(rows).exp() for rows in parts])
    return Estimate(scores.mean().item(), scores.std(correction=0).item())


def _mean_divergence(p: Tensor) -> Tensor:
    """Return the mean of KL(p_i || mean p) over the rows of p [N, K]; 0 log 0 counts as 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(1).mean()


def precision_recall(generated: Tensor, references: Tensor, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A picture is like those of a set if it is within the distance of one of them to that one's k-th nearest neighbour in
    the set. Precision is the share of generated pictures that are like the references, recall the share of references
    that are like the generated pictures. Distances that are equal count as within.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D]. Published figures use N = M = 50,000.
        k: number of the neighbour.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D], or a set has k features or fewer.
    """
    a, b = _scaled_pair(generated, references, k)
    return PrecisionRecall(_share_within(a, b, _radii(b, k)), _share_within(b, a, _radii(a, k)))


def density_coverage(generated: Tensor, references: Tensor, k: int = 5) -> DensityCoverage:
    """Return density and coverage (Naeem et al. 2020, eq. 3 and 4).

    The neighbourhood of a reference is the open ball to its k-th nearest neighbour among the references. Density is the
    number of neighbourhoods that hold a generated picture, divided by k, averaged over generated pictures; coverage is
    the share of references with a generated picture in their neighbourhood. For generated pictures with the
    references' distribution density is 1 on average, and coverage 1 - 2^-k for as many pictures as references.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D].
        k: number of the neighbour.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D], or a set has k features or fewer.
    """
    a, b = _scaled_pair(generated, references, k)
    radii, total, covered = _radii(b, k), 0, torch.zeros(len(b), dtype=torch.bool)
    for block in _squared_distances(a, b):
        inside = block < radii - _TIE
        total, covered = total + int(inside.sum()), covered | inside.any(0)
    return DensityCoverage(total / (k * len(a)), covered.double().mean().item())


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Return the share of points [N, D] within a squared radius [M] of one of the centres [M, D]."""
    return torch.cat([(d <= radii + _TIE).any(1) for d in _squared_distances(points, centres)]).double().mean().item()


def _radii(rows: Tensor, k: int) -> Tensor:
    """Return the squared distance of each of rows [N, D] to its k-th nearest among the others, [N]."""
    radii: list[Tensor] = []
    first = 0
    for block in _squared_distances(rows, rows):
        block.diagonal(first).fill_(torch.inf)  # the distance of a row to itself
        radii.append(block.kthvalue(k, dim=1).values)
        first += len(block)
    return torch.cat(radii)


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield the squared distances of some rows of a [N, D] at a time to all rows of b [M, D]."""
    lengths = b.square().sum(1)
    for block in a.split(max(1, _ELEMENTS // len(b))):
        yield (block.square().sum(1)[:, None] + lengths - 2 * block @ b.T).clamp_min(0)


def _scaled_pair(generated: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return both sets shifted and scaled alike, so that references have mean 0 and mean squared length 1."""
    if k < 1:
        raise ValueError(f"expected a number of neighbours of at least 1, got {k}")
    a, b = _pair(generated, references, k + 1)
    centre = b.mean(0)
    length = (b - centre).square().sum(1).mean().sqrt().clamp_min(1e-300)
    return (a - centre) / length, (b - centre) / length


def sliced_distance(generated: Tensor, references: Tensor, *, directions: int = 1000, seed: int = 0) -> float:
    """Return the Monge inception distance (MIND; Berthet et al. 2026, arXiv 2605.06797): 3 D E_u W_2^2(u.x, u.y).

    The mean E_u is over random directions u, of length 1, and W_2^2 is the squared optimal transport distance of the
    projections on u: for as many pictures as references the mean squared difference of the sorted projections, else
    the integral over q in [0, 1] of the squared difference of the two q-quantiles, computed exactly. For Gaussians
    whose covariances are multiples of the identity it is 3 times the Fréchet distance. It is biased upwards for few
    pictures.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D].
        directions: number of random directions.
        seed: seed of the directions; the first n directions are the same for any number of them.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D] of at least 1 picture, or there is no direction.
    """
    a, b = _pair(generated, references, 1)
    if directions < 1:
        raise ValueError(f"expected at least 1 direction, got {directions}")
    rows_a, rows_b, weights = _quantile_coupling(len(a), len(b))
    total = 0.0
    for numbers in torch.arange(directions).split(max(1, _ELEMENTS // len(weights))):
        u = torch.nn.functional.normalize(rng.normal(seed, "direction", numbers, (a.shape[1],)).double()).T
        gaps = (a @ u).sort(0).values[rows_a] - (b @ u).sort(0).values[rows_b]
        total += (weights @ gaps.square()).sum().item()
    return 3 * a.shape[1] * total / directions


def _quantile_coupling(count_a: int, count_b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which sorted values of two samples the monotone coupling pairs, int64 [L] each, and weights [L].

    Quantile levels are whole multiples of 1 / (count_a count_b), so that no step between them is lost to rounding.
    """
    steps_a, steps_b = torch.arange(1, count_a + 1) * count_b, torch.arange(1, count_b + 1) * count_a
    ends = torch.cat([steps_a, steps_b]).unique()
    weights = ends.diff(prepend=torch.zeros(1, dtype=torch.long)).double() / (count_a * count_b)
    return (ends - 1) // count_b, (ends - 1) // count_a, weights


def _pair(generated: Tensor, references: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return both sets as float64 on the CPU; raise ValueError for unequal widths and as `finite_rows` does."""
    a, b = finite_rows(generated, least), finite_rows(references, least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected features of one width D, got {[*a.shape]} and {[*b.shape]}")
    return a, b
