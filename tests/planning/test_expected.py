"""PSNR of the best linear code of patches: closed forms."""

import math

import pytest
import torch

from ldm_kit.data.tensors import from_tensor
from ldm_kit.planning.expected import PsnrModel, linear_psnr


def pictures(x):
    return from_tensor(x, heldout=0).train


def test_patches_of_as_many_directions_as_components_are_reconstructed():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 3, generator=generator)).Q.T  # three directions of 4 x 4 patches
    weights = torch.rand(32, 2, 2, 3, generator=generator) - 0.5
    patches = (weights @ basis).view(32, 2, 2, 4, 4).permute(0, 1, 3, 2, 4).reshape(32, 1, 8, 8)
    exact = linear_psnr(pictures(patches), 4, 3)
    assert exact > 45  # limited by rounding to 256 levels
    assert linear_psnr(pictures(patches), 4, 2) < exact - 10


def test_noise_keeps_the_share_of_the_components():
    x = torch.rand(256, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    variance = 4 / 12  # of a uniform density on [-1, 1]
    expected = 10 * math.log10(4 / (variance * (1 - 4 / 16)))
    assert linear_psnr(pictures(x), 4, 4) == pytest.approx(expected, abs=0.1)


def test_more_pictures_seen_raise_the_expected_range():
    model = PsnrModel(1.0, 2.0, 3.0, 0.5)
    assert model.range(10, 8000) == (20.5, 21.5)
    assert model.range(10, 32_000) == (26.5, 27.5)
