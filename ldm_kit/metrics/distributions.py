"""Distances between two sets of features, of generated and of reference pictures, and the inception score.

Features are [N, D] and [M, D], computed beforehand by any network; `ldm_kit.metrics.fidelity.embed` computes them. All
values are computed in float64 on the CPU. They are comparable only for the same features of the same references, and
most only for the same numbers of pictures: reports must name the network and the numbers. Published figures are those
of Inception features: KID, FID, MIND, and the inception score of its class probabilities.

Functions that end in `_of_draws` compute a distance for many bootstrap draws of the generated pictures at once; what
depends on pictures alone is computed once for all draws.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.diffusion import rng
from ldm_kit.metrics.moments import finite_pair, finite_rows

_ELEMENTS = 2**24  # numbers of a block of kernel values or projections, 128 MiB
_PATIENCE = 2.0  # seconds after which a progress bar appears


class Estimate(NamedTuple):
    """Mean and standard deviation over subsets: the root of the mean squared difference from the mean (numpy's std).

    The deviation says how much one subset's value varies; it is no standard error of the mean.
    """

    mean: float
    deviation: float


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
    a, b = finite_pair(generated, references, 2)
    if subsets < 1 or not 2 <= size <= min(len(a), len(b)):
        raise ValueError(
            f"expected at least 1 subset of 2 to {min(len(a), len(b))} features (the sets have {len(a)} and {len(b)}), "
            f"got {subsets} of {size}"
        )
    pairs = (
        [x[_subset(len(x), size, seed, f"{i} {name}")] for name, x in (("a", a), ("b", b))] for i in range(subsets)
    )
    bar = tqdm(pairs, total=subsets, desc="kernel distance", unit="subset", leave=False, delay=_PATIENCE)
    values = torch.stack([_squared_mmd(x, y) for x, y in bar])
    return Estimate(values.mean().item(), values.std(correction=0).item())


def _subset(count: int, size: int, seed: int, name: str) -> Tensor:
    """Draw `size` different indices in 0..count - 1, int64 [size]."""
    return rng.permuted(seed, f"subset {name}", torch.arange(size), count)


def _squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased estimate of the squared maximum mean discrepancy of a, b [n, D]; see `kernel_distance`."""
    own_a, own_b, cross = (_kernel(x, y) for x, y in ((a, a), (b, b), (a, b)))
    within = own_a.sum() - own_a.trace() + own_b.sum() - own_b.trace()
    return within / (len(a) * (len(a) - 1)) - 2 * cross.mean()


def kernel_of_draws(generated: Tensor, references: Tensor, counts: Tensor) -> Tensor:
    """Return the unbiased MMD^2 of all features (see `kernel_distance`) for B draws of generated pictures, float64 [B].

    No random subsets are drawn. A draw with repetition has pairs i != j of the same picture, so that its value is
    larger; the value of all pictures, each once, is unbiased.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D].
        counts: int64 [B, N], how often each generated picture is in each draw; each row adds up to 2 or more.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D] of at least 2 pictures.
    """
    a, b = finite_pair(generated, references, 2)
    weights = counts.double()
    size = weights.sum(1)
    own, cross = torch.zeros(len(size)).double(), torch.zeros(len(size)).double()
    rows = max(1, _ELEMENTS // max(len(a), len(b)))
    blocks = [*zip(a.split(rows), weights.split(rows, 1), strict=True)]
    for block, weight in tqdm(blocks, desc="kernel distance", unit="block", leave=False, delay=_PATIENCE):
        own += ((_kernel(block, a) @ weights.T).T * weight).sum(1) - weight @ _own_kernel(block)
        cross += weight @ _kernel(block, b).sum(1)
    others = sum(float(_kernel(block, b).sum() - _own_kernel(block).sum()) for block in b.split(rows))
    return own / (size * (size - 1)) + others / (len(b) * (len(b) - 1)) - 2 * cross / (size * len(b))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return k(x_i, y_j) = (x_i.y_j / D + 1)^3, [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _own_kernel(x: Tensor) -> Tensor:
    """Return k(x_i, x_i), [N]."""
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


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
    counts = torch.ones(1, len(generated), dtype=torch.long)
    return sliced_of_draws(generated, references, counts, directions=directions, seed=seed).item()


def sliced_of_draws(
    generated: Tensor, references: Tensor, counts: Tensor, *, directions: int = 1000, seed: int = 0
) -> Tensor:
    """Return the Monge inception distance (see `sliced_distance`), float64 [B], for B draws of generated pictures.

    Pictures are projected and sorted once: the sorted projections of a draw are those of all pictures, each repeated as
    often as the draw has it.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D].
        counts: int64 [B, N], how often each generated picture is in each draw; each row adds up to N.
        directions: number of random directions.
        seed: seed of the directions.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D] of at least 1 picture, or there is no direction.
    """
    a, b = finite_pair(generated, references, 1)
    if directions < 1:
        raise ValueError(f"expected at least 1 direction, got {directions}")
    rows_a, rows_b, weights = _quantile_coupling(len(a), len(b))
    totals = torch.zeros(len(counts)).double()
    blocks = torch.arange(directions).split(max(1, _ELEMENTS // len(weights)))
    with tqdm(total=len(blocks) * len(counts), desc="MIND", unit="draw", leave=False, delay=_PATIENCE) as bar:
        for numbers in blocks:
            u = torch.nn.functional.normalize(rng.normal(seed, "direction", numbers, (a.shape[1],)).double())
            values, order = (u @ a.T).sort(1)
            others = (u @ b.T).sort(1).values[:, rows_b]
            for i, count in enumerate(counts):
                drawn = values.flatten().repeat_interleave(count[order].flatten()).view_as(values)
                totals[i] += ((drawn[:, rows_a] - others).square() @ weights).sum()
                bar.update()
    return 3 * a.shape[1] * totals / directions


def _quantile_coupling(count_a: int, count_b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which sorted values of two samples the monotone coupling pairs, int64 [L] each, and weights [L].

    Quantile levels are whole multiples of 1 / (count_a count_b), so that no step between them is lost to rounding.
    """
    steps_a, steps_b = torch.arange(1, count_a + 1) * count_b, torch.arange(1, count_b + 1) * count_a
    ends = torch.cat([steps_a, steps_b]).unique()
    weights = ends.diff(prepend=torch.zeros(1, dtype=torch.long)).double() / (count_a * count_b)
    return (ends - 1) // count_b, (ends - 1) // count_a, weights
