"""Statistics of codes: measured in float64, saved whole, and undone exactly."""

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.models.codes import STATISTICS, CodeStatistics, code_statistics


def test_normalised_codes_have_mean_0_and_deviation_1_and_come_back():
    z = torch.randn(500, 6) * torch.tensor([1e-3, 1, 10, 100, 1, 5]) + torch.tensor([0.0, 5, -3, 1e3, 0, 1])
    statistics = code_statistics(z)
    normalised = statistics.normalise(z)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(statistics.denormalise(normalised), z, atol=1e-3, rtol=1e-5)


def test_the_deviation_is_that_of_the_set_itself():
    assert code_statistics(torch.tensor([[1.0], [3.0]])) == (torch.tensor([2.0]), torch.tensor([1.0]))


def test_a_dimension_without_spread_stays_finite():
    statistics = code_statistics(torch.ones(3, 2))
    assert statistics.std.min() > 0
    assert statistics.normalise(torch.ones(3, 2)).abs().max() == 0


def test_statistics_are_saved_whole_and_of_one_width(tmp_path):
    statistics = CodeStatistics(torch.randn(4), torch.rand(4))
    statistics.save(tmp_path)
    again = CodeStatistics.load(tmp_path, 4)
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.std, statistics.std)
    with pytest.raises(UserError, match="expected mean and std of 5 numbers each"):
        CodeStatistics.load(tmp_path, 5)
    (tmp_path / STATISTICS).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot read"):
        CodeStatistics.load(tmp_path, 4)
