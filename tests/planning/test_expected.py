"""Expected PSNR: principal components of pictures, and the sum of two errors."""

import math

import pytest
import torch

from ldm_kit.data.tensors import from_tensor
from ldm_kit.planning.expected import PsnrModel, pca_psnr


def pictures(x):
    return from_tensor(x, heldout=0).train


def test_pictures_of_as_many_directions_as_components_are_reconstructed():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 3, generator=generator)).Q.T  # three directions of 8 x 8 pictures
    x = (torch.rand(80, 3, generator=generator) * 2 - 1) @ basis
    exact = pca_psnr(pictures(x.view(80, 1, 8, 8)), 3)
    assert exact > 45  # limited by rounding to 256 levels
    assert pca_psnr(pictures(x.view(80, 1, 8, 8)), 2) < exact - 10


def test_noise_loses_the_share_of_the_components():
    x = torch.rand(1500, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    variance = 4 / 12  # of a uniform density on [-1, 1]
    assert pca_psnr(pictures(x), 4) == pytest.approx(10 * math.log10(4 / (variance * 12 / 16)), abs=0.2)


def test_fewer_pictures_than_components_are_no_error():
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert 5 < pca_psnr(pictures(x), 64) < 15


def test_the_greater_of_two_errors_decides():
    model = PsnrModel(30.0, 0.5, 40.0, 4.0, 2.0)
    assert model.psnr(25, 8000) == pytest.approx(-10 * math.log10(1e-3 + 1e-4))
    assert model.psnr(25, 10**9) == pytest.approx(30, abs=0.01)  # the latents are the limit
    assert model.psnr(200, 2000) == pytest.approx(32, abs=0.01)  # two doublings fewer, 8 dB less
    assert model.psnr(45, 10**9) == pytest.approx(40, abs=0.01)
    low, high = model.range(25, 8000)
    assert high - low == pytest.approx(4)
