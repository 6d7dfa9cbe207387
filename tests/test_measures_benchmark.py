"""The benchmark of measures: its faults have the stated amounts, and its rule of ranking is the stated one."""

import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.claims import measures
from benchmarks.claims.measures import FAULTS, Draw, draw_pictures, rank_correlation, ranks_rightly, table
from ldm_kit.config import UserError
from ldm_kit.models.feature_nets import FeatureNet
from tests.inference.colours import Colours, noise, split_of


def draw(count=12):
    pixels = noise(3 * count)
    values = torch.arange(2 * count) % 4
    heldout, training = split_of(pixels[: 2 * count]).train, split_of(pixels[2 * count :]).train
    return draw_pictures(heldout, training, values, count, seed=0)


def test_a_fault_is_ranked_rightly_if_each_amount_is_worse():
    assert ranks_rightly([1.0, 2.0, 3.0], "lower")
    assert ranks_rightly([3.0, 2.5, 0.0], "higher")
    assert not ranks_rightly([1.0, 2.0, 2.0], "lower")
    assert not ranks_rightly([1.0, 2.0, 1.9], "lower")
    assert not ranks_rightly([1.0, 2.0, 3.0], "higher")


@pytest.mark.parametrize("values", [[1.0, 3.0, 2.0, 9.0], [4.0, 4.0, 1.0, 2.0], [1.0, 2.0, 2.0, 2.0]])
def test_the_correlation_is_spearmans(values):
    expected = spearmanr(values, range(4)).statistic
    assert rank_correlation(values, "lower") == pytest.approx(expected)
    assert rank_correlation(values, "higher") == pytest.approx(-expected)
    assert rank_correlation([2.0, 2.0], "lower") == 0


def test_blur_has_its_deviation_and_keeps_the_light():
    point = torch.zeros(1, 1, 31, 31, dtype=torch.uint8)
    point[0, 0, 15, 12:19] = 255
    for sigma in (1.2, 2.5):
        blurred = measures.blur(point, sigma, 0).double()[0, 0]
        rows = blurred.sum(1) / blurred.sum()
        position = torch.arange(31).double()
        variance = (rows * position.square()).sum() - (rows * position).sum().square()
        assert float(variance.sqrt()) == pytest.approx(sigma, rel=0.05)
        assert float(blurred.sum()) == pytest.approx(7 * 255, rel=0.05)


def test_noise_has_its_deviation():
    grey = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    assert float(measures.add_noise(grey, 10, 0).double().std()) == pytest.approx(10, rel=0.05)
    assert not torch.equal(measures.add_noise(grey, 10, 0), measures.add_noise(grey, 10, 1))


def test_jpeg_is_of_the_same_picture_and_worse_at_lower_quality():
    pictures = noise(3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    errors = [float((measures.compress(pictures, q, 0).double() - pictures).square().mean()) for q in (95, 50, 5)]
    assert errors == sorted(errors)
    assert errors[0] < 30


def test_chosen_pictures_have_the_stated_shares():
    one = draw()
    for amount in (3, 2):
        modes = one.degraded("modes", amount)
        rows = [torch.nonzero((one.spare == picture).flatten(1).all(1)).item() for picture in modes]
        assert len(set(rows)) == 12
        assert set(one.values[rows].tolist()) == set(range(amount))
    assert len(one.degraded("repeats", 0.25).unique(dim=0)) == 3
    copies = one.degraded("copies", 0.5)
    assert torch.equal(copies[:6], one.training[:6])
    assert torch.equal(copies[6:], one.heldout[6:])
    with pytest.raises(UserError, match="6 held-out pictures have 1 values"):
        one.degraded("modes", 1)
    with pytest.raises(UserError, match="--count is 40; expected at most 24"):
        draw_pictures(split_of(noise(40)).train, split_of(noise(24)).train, torch.zeros(40), 40, 0)


def test_draws_differ_and_values_stay_with_their_pictures():
    pixels = noise(24)
    pixels[:, 0, 0, 0] = torch.arange(24) % 4
    heldout = split_of(pixels).train
    draws = [draw_pictures(heldout, heldout, torch.arange(24) % 4, 8, seed) for seed in range(2)]
    for one in draws:
        assert torch.equal(one.spare[:, 0, 0, 0].long(), one.values)
    assert not torch.equal(draws[0].heldout, draws[1].heldout)


def test_the_table_says_who_sees_what(monkeypatch):
    """End to end, with a network that sees colours alone: it does not see copies."""
    monkeypatch.setitem(FAULTS, "blur", FAULTS["blur"]._replace(amounts=(0.4, 0.7)))
    monkeypatch.setitem(FAULTS, "modes", FAULTS["modes"]._replace(amounts=(3, 2)))
    net = FeatureNet("colours", Colours(), "not at all", "0" * 64)
    one: Draw = draw()
    measured = measures.measure(one, net)
    assert measured["noise"]["psnr"][0] > max(measured["noise"]["psnr"][1:])
    assert "psnr" not in measured["copies"]
    assert measured["copies"]["fd"][-1] == pytest.approx(0, abs=1e-6), "copies of the reference itself"
    lines = table([measured]).splitlines()
    assert len(lines) == 2 + 7 + 3
    psnr = next(line for line in lines if line.startswith("| psnr"))
    assert "**yes**, 1 of 1 (1.00)" in psnr
    assert psnr.endswith("| - | - | - |")
    fd = next(line for line in lines if line.startswith("| fd"))
    assert fd.split(" | ")[-1].startswith("no, 0 of 1 (-1.00)")
    assert measures.table_of_values([measured]).count("\n") == 1 + sum(1 + len(f.amounts) for f in FAULTS.values())
