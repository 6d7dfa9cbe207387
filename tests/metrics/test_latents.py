import math

import pytest
import torch

from ldm_kit.diffusion import rng
from ldm_kit.metrics.latents import channel_statistics, irreducible_variance, spectral_share


def noise(*shape, name="z"):
    return rng.normal(0, name, torch.arange(shape[0]), shape[1:]).double()


def one_group(latents):
    return torch.zeros(len(latents), dtype=torch.long)


def test_channel_statistics():
    z = torch.stack([torch.arange(8.0).view(2, 2, 2), torch.zeros(2, 2, 2)], 1)
    mean, deviation = channel_statistics(z)
    assert mean.tolist() == [3.5, 0]
    assert deviation.tolist() == pytest.approx([math.sqrt(63 / 12), 0])


def test_irreducible_variance_is_the_integral_over_time():
    """The variance of x - eps given t x + (1 - t) eps, for x ~ N(0, l): l / (t^2 l + (1 - t)^2), averaged over t."""
    values = torch.tensor([0.1, 1.0, 1.9]).double()
    t = (torch.arange(20000).double() + 0.5) / 20000
    integral = (values[:, None] / (t**2 * values[:, None] + (1 - t) ** 2)).mean()
    scales = values.sqrt().repeat(3)[: 3 * 3].view(1, 3, 3)
    z = noise(3000, 1, 3, 3) * scales
    assert irreducible_variance(z, one_group(z)) == pytest.approx(integral.item(), rel=0.02)


def test_white_latents_have_the_most():
    z = noise(2000, 2, 2, 2)
    assert irreducible_variance(z, one_group(z)) == pytest.approx(math.pi / 2, rel=0.01)
    assert irreducible_variance(z, one_group(z)) < math.pi / 2


def test_irreducible_variance_of_a_separable_covariance():
    """Latents A x B^T of white x: the eigenvalues are products of those of A A^T and B B^T, scaled to the total."""
    a, b = torch.diag(torch.tensor([1.0, 2])).double(), noise(4, 4, name="b")
    z = (a @ noise(3000, 2, 4) @ b.T).view(-1, 2, 2, 2)
    positions = torch.linalg.eigvalsh(b @ b.T)
    exact = math.pi / 2 * (positions * 4 / positions.sum()).sqrt().mean().item()  # channels are scaled to deviation 1
    assert irreducible_variance(z, one_group(z)) == pytest.approx(exact, rel=0.02)
    assert irreducible_variance(z * torch.tensor([3.0, 0.1])[:, None, None] + 5, one_group(z)) == pytest.approx(
        exact, rel=0.02
    )


def test_what_the_class_tells_does_not_count():
    """Latents of two classes at -+3 with noise of deviation 1: without the class variance 10, with it 1, of 10."""
    groups = torch.arange(2000) % 2
    z = noise(2000, 1, 2, 2) + (6.0 * groups - 3)[:, None, None, None]
    known, unknown = irreducible_variance(z, groups), irreducible_variance(z, one_group(z))
    assert known == pytest.approx(math.pi / 2 * math.sqrt(0.1), rel=0.02)
    assert unknown > known
    assert irreducible_variance(z, groups * 7 - 2) == pytest.approx(known, rel=1e-12), "numbers are names"


def test_a_channel_without_variance_counts_as_zero():
    z = noise(600, 2, 2, 2)
    z[:, 1] = 3
    assert irreducible_variance(z, one_group(z)) == pytest.approx(math.pi / 4, rel=0.02)


def test_spectral_share_of_single_frequencies():
    """A cosine of frequency (u, v) has all its energy there; u + v of 0..6 of a 4 x 4 latent."""
    i = torch.arange(4).double()
    wave = lambda u, v: torch.outer((math.pi * u * (i + 0.5) / 4).cos(), (math.pi * v * (i + 0.5) / 4).cos())  # noqa: E731
    for u, v in ((0, 0), (1, 2), (2, 2), (0, 3), (3, 3)):
        assert spectral_share(wave(u, v)[None, None]) == pytest.approx(float(u + v > 3), abs=1e-12)
    both = torch.stack([2 * wave(1, 1), wave(3, 3)])[None]  # energies 4 x 4 and 1 x 4
    assert spectral_share(both) == pytest.approx(1 / 5)
    assert spectral_share(both, 0.2) == pytest.approx(1)
    assert spectral_share(both, 1) == 0


def test_white_latents_share_energy_evenly():
    """The transform is orthonormal: 4 x 6 frequencies have equal energy, of which 9 have u + v above 4."""
    above = sum(u + v > 4 for u in range(4) for v in range(6))
    assert spectral_share(noise(2000, 2, 4, 6)) == pytest.approx(above / 24, rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: channel_statistics(noise(4, 2, 2)), r"\[N, C, H, W\]"),
        (lambda: channel_statistics(noise(4, 2, 2, 2) * math.nan), "finite"),
        (lambda: channel_statistics(noise(4, 2, 2, 2)[:0]), r"\[N, C, H, W\]"),
        (lambda: spectral_share(noise(4, 2, 1, 1)), "2 positions"),
        (lambda: spectral_share(noise(4, 2, 2, 2), 1.1), r"threshold in \[0, 1\]"),
        (lambda: spectral_share(torch.zeros(4, 2, 2, 2)), "not all 0"),
        (
            lambda: irreducible_variance(noise(9, 1, 3, 3), torch.arange(9) // 8),
            "group 1 has 1 latents; expected at least 11",
        ),
        (lambda: irreducible_variance(noise(9, 1, 3, 3), torch.zeros(9)), "whole number"),
        (lambda: irreducible_variance(noise(9, 1, 3, 3), torch.zeros(8).long()), "whole number"),
    ],
)
def test_bad_latents_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
