"""Mean and covariance of features, and the Fréchet distance of two sets that is computed from them.

The moments of reference pictures can be stored, so that their features need not be computed again.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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
