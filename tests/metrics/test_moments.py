import math

import pytest
import torch

from ldm_kit.diffusion import rng
from ldm_kit.metrics.fidelity import frechet
from ldm_kit.metrics.moments import frechet_of_moments, moments


def cloud(n, d, name="a"):
    return rng.normal(0, name, torch.arange(n), (d,)).double()


def test_moments_are_numpys():
    x = cloud(9, 3).float()
    mean, covariance = moments(x)
    assert torch.allclose(mean, torch.from_numpy(x.double().numpy().mean(0)))
    gaps = x.double() - mean
    assert torch.allclose(covariance, gaps.T @ gaps / 8)
    assert moments(x[:, :1]).covariance.shape == (1, 1)


def test_frechet_of_gaussians_in_closed_form():
    """Diagonal: |m_a - m_b|^2 + sum (s_a - s_b)^2. For A = M M^T and B = I, tr (A B)^1/2 is the nuclear norm of M."""
    mean, a, b = torch.tensor([1.0, -2]), torch.diag(torch.tensor([4.0, 9])), torch.diag(torch.tensor([1.0, 0]))
    assert frechet_of_moments(mean, a, -mean, b) == pytest.approx(20 + 1 + 9, rel=1e-9)
    m = cloud(4, 4)
    exact = (m @ m.T).trace() + 4 - 2 * torch.linalg.svdvals(m).sum()
    zero = torch.zeros(4)
    assert frechet_of_moments(zero, m @ m.T, zero, torch.eye(4)) == pytest.approx(exact.item(), rel=1e-9)


def test_frechet_is_that_of_torchmetrics_and_of_the_features():
    from torchmetrics.image.fid import _compute_fid

    a, b = cloud(60, 5) @ cloud(5, 5, "m"), cloud(70, 5, "b") + 0.3
    value = frechet_of_moments(*moments(a), *moments(b))
    assert value == pytest.approx(_compute_fid(*moments(a), *moments(b)).item(), rel=1e-9)
    assert value == frechet(a, b)
    assert frechet_of_moments(*moments(a), *moments(a)) == pytest.approx(0, abs=1e-9)


def test_bad_moments_are_refused():
    mean, cov = moments(cloud(9, 3))
    skewed = cov.clone()
    skewed[0, 1] += 0.1
    for bad, message in (
        ((mean[:2], cov), "means"),
        ((mean, cov[:2]), "means"),
        ((mean[None], cov), "means"),
        ((mean * math.nan, cov), "finite"),
        ((mean, cov * math.inf), "finite"),
        ((mean, skewed), "symmetric"),
    ):
        for arguments in ((*bad, mean, cov), (mean, cov, *bad)):
            with pytest.raises(ValueError, match=message):
                frechet_of_moments(*arguments)
    for bad in (cloud(1, 3), cloud(4, 3)[0], cloud(4, 3) * math.nan):
        with pytest.raises(ValueError, match="expected"):
            moments(bad)
