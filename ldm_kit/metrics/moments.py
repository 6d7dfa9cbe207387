"""Mean and covariance of features, and the Fréchet distance of two sets that is computed from them.

The moments of reference pictures can be stored, so that their features need not be computed again.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm


class Moments(NamedTuple):
    """Mean and covariance of a set of features, which suffice for the Fréchet distance."""

    mean: Tensor  # float64 [D]
    covariance: Tensor  # float64 [D, D], divided by N - 1


def moments(features: Tensor) -> Moments:
    """Return the mean and the covariance (divided by N - 1) of features [N, D], float64 on the CPU.

    Raises:
        ValueError: features are not finite numbers [N, D] of at least 2 samples.
    """
    rows = finite_rows(features, 2)
    return Moments(rows.mean(0), rows.T.cov().reshape(rows.shape[1], -1))


def frechet_of_moments(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return the Fréchet distance of two Gaussians, in float64 (Dowson & Landau 1982; FID: Heusel et al. 2017, eq. 6).

    It is |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) for means m_a, m_b and covariances A, B. For two sets of
    features: `frechet_of_moments(*moments(a), *moments(b))`, where the moments of references may be stored.

    Args:
        mean_a: mean of one set of features, [D].
        cov_a: its covariance, [D, D], symmetric.
        mean_b: mean of the other set, [D].
        cov_b: its covariance, [D, D], symmetric.

    Raises:
        ValueError: shapes are not as above, a number is not finite, or a covariance is not symmetric.
    """
    mean_a, mean_b, cov_a, cov_b = (x.detach().cpu().double() for x in (mean_a, mean_b, cov_a, cov_b))
    shapes = [[*x.shape] for x in (mean_a, cov_a, mean_b, cov_b)]
    if mean_a.dim() != 1 or shapes != [shapes[0], shapes[0] * 2] * 2:
        raise ValueError(f"expected means [D] and covariances [D, D], got shapes {shapes}")
    if not all(x.isfinite().all() for x in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("expected finite means and covariances, got NaN or infinity")
    if not all(torch.allclose(x, x.T, rtol=1e-5, atol=1e-8 * float(x.abs().max())) for x in (cov_a, cov_b)):
        raise ValueError("expected symmetric covariances, got one that is not")
    root = _square_root(cov_a)
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(0.0, distance.item())


def frechet_of_draws(generated: Tensor, references: Tensor, counts: Tensor) -> Tensor:
    """Return the Fréchet distance (see `frechet_of_moments`), float64 [B], for B draws of generated pictures.

    Mean and root of covariance of the references are computed once. The last term needs no covariance [D, D] of fewer
    pictures than D: with covariances A = X^T X and B = Y^T Y it is the sum of the singular values of X Y^T.

    Args:
        generated: features of generated pictures, [N, D].
        references: features of reference pictures, [M, D].
        counts: int64 [B, N], how often each generated picture is in each draw; each row adds up to 2 or more.

    Raises:
        ValueError: features are not finite numbers [N, D] and [M, D] of at least 2 pictures.
    """
    a, b = finite_pair(generated, references, 2)
    factor = (b - b.mean(0)) / (len(b) - 1) ** 0.5
    constant = factor.square().sum()
    factor = _square_root(factor.T @ factor) if len(b) > b.shape[1] else factor  # its Y^T Y stays
    projected = a @ factor.T
    distances = [
        _moved(a, b.mean(0), weights) + constant - 2 * _overlap(projected, weights)
        for weights in tqdm(counts.double(), desc="Fréchet distance", unit="draw", leave=False, delay=2.0)
    ]
    return torch.stack(distances).clamp_min(0)


def _moved(a: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """Return |m_a - mean|^2 + tr(A) of rows a [N, D] that count `weights` [N] times."""
    size = weights.sum()
    own = weights @ a / size
    return (own - mean).square().sum() + weights @ (a - own).square().sum(1) / (size - 1)


def _overlap(projected: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the singular values of X Y^T from rows x_i Y^T [N, K], not centred, that count w_i times."""
    size = weights.sum()
    rows = (projected - weights @ projected / size)[weights > 0] * (weights[weights > 0] / (size - 1)).sqrt()[:, None]
    squared = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(squared).clamp_min(0).sqrt().sum()


def _square_root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def finite_rows(features: Tensor, least: int) -> Tensor:
    """Return features [N, D] as float64 on the CPU; raise ValueError if they are fewer than `least` or not finite."""
    if features.dim() != 2 or len(features) < least or not features.shape[1]:
        raise ValueError(f"expected features [N, D] of at least {least} pictures, got {[*features.shape]}")
    rows = features.detach().cpu().double()
    if not rows.isfinite().all():
        raise ValueError("expected finite features, got NaN or infinity")
    return rows


def finite_pair(generated: Tensor, references: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return both sets as float64 on the CPU; raise ValueError for unequal widths and as `finite_rows` does."""
    a, b = finite_rows(generated, least), finite_rows(references, least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected features of one width D, got {[*a.shape]} and {[*b.shape]}")
    return a, b
