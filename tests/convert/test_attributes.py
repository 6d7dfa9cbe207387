"""Directions of a published classifier of codes."""

import math

import pytest
import torch

from ldm_kit.convert.attributes import classifier_directions
from ldm_kit.models.directions import typical_strength
from ldm_kit.models.linear_fit import Fit


def test_the_mean_code_with_an_attribute_lies_the_published_strength_from_the_mean_of_all(tmp_path):
    (tmp_path / "names.txt").write_text("Hat\nBeard\n")
    weight, bias = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, -1.0])
    found = classifier_directions(weight, bias, tmp_path / "names.txt", "key")
    assert found.names == ["Hat", "Beard"]
    for row, offset, mean, name in zip(weight, bias, found.means, found.names, strict=True):
        assert torch.allclose(mean, 0.3 * math.sqrt(16) * row / row.norm())
        assert typical_strength(Fit(row.double(), 0.0), torch.zeros(16), mean) == pytest.approx(0.3)
        assert found[name].typical == 0.3
        z = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(found[name].logit(z), z @ row + offset, atol=1e-5)
