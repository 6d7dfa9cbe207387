"""Measures of disentanglement: hand-made codes have the scores that follow from their formulas."""

import math
from collections.abc import Iterator
from itertools import product

import pytest
import torch

from ldm_kit.metrics import dci as dci_module
from ldm_kit.metrics import disentanglement as module
from ldm_kit.metrics.auroc import auroc_of_draws, aurocs
from ldm_kit.metrics.dci import completeness, dci, disentanglement
from ldm_kit.metrics.disentanglement import (
    factor_vae_score,
    first_components,
    mutual_information_gap,
    total_auroc_difference,
)

pytest.importorskip("sklearn.ensemble")
SIZES = (4, 3, 5)
FACTORS = torch.tensor([*product(*map(range, SIZES))]).repeat(5, 1)  # every combination equally often: [300, 3]
BITS = torch.tensor([*product((0, 1), repeat=3)]).repeat(25, 1)  # [200, 3]
VOTES = (600, 300)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rotated(codes: torch.Tensor) -> torch.Tensor:
    z = (codes - codes.double().mean(0)) / codes.double().std(0)
    return z @ torch.linalg.qr(noise(z.shape[1], z.shape[1]))[0]


@pytest.fixture(scope="module", autouse=True)
def small_forests() -> Iterator[None]:
    """Forests of a few trees, which suffice for a few pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dci_module, "TREES", 8)
        patch.setattr(dci_module, "FOREST_DEPTHS", (4, 12))
        yield


@pytest.fixture(scope="module")
def scores() -> dict[str, dci_module.DCI]:
    """DCI of three kinds of codes, each with two dimensions of noise."""
    kinds = {"identity": FACTORS.double() ** 3, "rotated": rotated(FACTORS), "random": noise(300, 3)}
    more = noise(300, 5)[:, 3:]
    return {name: dci(torch.cat([z, more], 1), FACTORS, regressor="forest") for name, z in kinds.items()}


def test_dci_of_codes_that_are_the_factors(scores):
    assert scores["identity"][:3] == pytest.approx((1, 1, 1), abs=1e-6)
    assert torch.allclose(scores["identity"].importance, torch.eye(5, 3).double(), atol=1e-6)


def test_dci_of_mixed_and_of_random_codes(scores):
    """A rotation keeps all information and loses the order; noise has neither."""
    assert scores["rotated"].informativeness > 0.9
    assert scores["rotated"].disentanglement < 0.3
    assert scores["rotated"].completeness < 0.7
    assert abs(scores["random"].informativeness - sum(1 / size for size in SIZES) / 3) < 0.12
    assert scores["random"].disentanglement < 0.2


def test_dci_of_groups_adds_importances(scores):
    """Each factor mixed with a number of its own, in a group: the groups are disentangled, the dimensions are not."""
    mixed = torch.cat([rotated(torch.stack([FACTORS[:, i].double(), noise(300, 9)[:, i]], 1)) for i in range(2)], 1)
    grouped = dci(mixed, FACTORS[:, :2], [[0, 1], [2, 3]], regressor="forest")
    assert grouped.importance.shape == (2, 2)
    assert torch.allclose(grouped.importance.sum(0), torch.ones(2).double())
    assert min(grouped[:2]) > 0.75
    assert completeness(dci(mixed, FACTORS[:, :2], regressor="forest").importance) < grouped.completeness - 0.2


def test_boosting_agrees_on_bits():
    scores = dci(torch.cat([BITS.double(), noise(200, 1)], 1), BITS, regressor="boosting")
    assert scores[:3] == pytest.approx((1, 1, 1), abs=1e-6)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        (torch.eye(3), (1, 1)),
        (torch.ones(3, 3), (0, 0)),
        (torch.eye(2).repeat(2, 1) / 2, (1, 0.5)),  # each factor in two of four dimensions
        (torch.tensor([[1.0, 0.5], [0.0, 0.5]]), (0.25 + 0.75 * (1 - (math.log2(3) - 2 / 3)), 0.5)),
        (torch.tensor([[1.0], [0.0]]), (1, 1)),
        (torch.zeros(2, 2), (0, 0)),
    ],
)
def test_entropies_of_importances(importance, expected):
    found = disentanglement(importance.double()), completeness(importance.double())
    assert found == pytest.approx(expected, abs=1e-6)


def test_unknown_values_are_left_out():
    """Pictures whose values are unknown change nothing, whatever their codes."""
    codes = torch.cat([BITS, 1 - BITS]).double()
    factors = torch.cat([BITS, torch.full_like(BITS, -1)])
    assert mutual_information_gap(codes, factors) == pytest.approx(1)
    assert total_auroc_difference(codes, factors) == total_auroc_difference(BITS, BITS)
    assert dci(codes, factors, regressor="forest").informativeness == 1
    assert factor_vae_score(codes, factors, votes=VOTES) == 1


def test_factor_vae_score_of_known_codes():
    codes = torch.cat([FACTORS.double(), noise(300, 2), torch.ones(300, 2)], 1)
    assert factor_vae_score(codes, FACTORS, votes=VOTES) == 1
    blurred = FACTORS + 0.3 * noise(300, 3)
    score = factor_vae_score(blurred, FACTORS, votes=VOTES)
    assert score > 0.95
    assert factor_vae_score(blurred * 2.0 ** torch.tensor([0, 9, 4]), FACTORS, votes=VOTES) == score, "no unit matters"
    assert abs(factor_vae_score(noise(300, 4), FACTORS, votes=VOTES) - 1 / 3) < 0.15
    assert factor_vae_score(rotated(FACTORS), FACTORS, votes=VOTES) < 0.9


def test_a_single_dimension_votes_for_the_most_frequent_factor():
    """All votes go to one dimension, so it predicts one of the factors, and is right in that factor's share."""
    assert abs(factor_vae_score(FACTORS[:, :1], FACTORS, votes=(600, 3000)) - 1 / 3) < 0.04


def test_factor_vae_score_of_groups():
    """A factor of two dimensions, one of which also varies with noise, beside pure noise."""
    pairs = torch.cat([FACTORS[:, [0, 0, 1, 1]].double(), noise(300, 2)], 1)
    assert factor_vae_score(pairs, FACTORS[:, :2], [[0, 1], [2, 3], [4, 5]], votes=VOTES) == 1
    assert factor_vae_score(pairs, FACTORS[:, :2], [[0, 2], [1, 3], [4, 5]], votes=VOTES) < 0.8, "both in each group"


def test_mutual_information_gap_in_closed_form():
    bits = BITS.double()
    assert mutual_information_gap(bits, BITS) == pytest.approx(1)
    assert mutual_information_gap(bits[:, [0, 1, 2, 0, 1, 2]], BITS) == pytest.approx(0, abs=1e-9), "twice each"
    assert mutual_information_gap(bits[:, [0, 1, 2, 2]], BITS) == pytest.approx(2 / 3), "the last one twice"
    both = BITS[:, :1] + 2 * BITS[:, 1:2]  # four values, of which one bit is told
    assert mutual_information_gap(bits[:, :1], both) == pytest.approx(0.5)
    assert mutual_information_gap(bits[:, 2:], both) == pytest.approx(0, abs=1e-9)
    doubled = torch.cat([bits, bits * 3 + 1], 1)
    assert mutual_information_gap(doubled, BITS, [[0, 3], [1, 4], [2, 5]]) == pytest.approx(1), "by groups"


def test_total_auroc_difference_in_closed_form():
    bits = BITS.double()
    assert total_auroc_difference(bits, BITS) == pytest.approx((1.5, 3, 3)), "1 against chance, three times"
    assert total_auroc_difference(-bits, BITS) == pytest.approx((1.5, 3, 3)), "the sign does not matter"
    assert total_auroc_difference(bits[:, [0, 1, 2, 0, 1, 2]], BITS) == pytest.approx((0, 3, 3)), "twice each"
    assert total_auroc_difference(noise(200, 3), BITS) == (0, 0, 3)
    assert total_auroc_difference(bits, BITS[:, [0, 0, 1]]) == pytest.approx((0.5, 1, 1)), "the same attribute twice"
    assert total_auroc_difference(bits, BITS, captured=1.01) == (0, 0, 3)


def test_auroc_counts_pairs():
    codes, positive = (noise(60, 3) * 3).round(), noise(60) > 0.3
    for column, score in zip(codes.T, aurocs(codes, positive), strict=True):
        gaps = column[positive][:, None] - column[~positive][None]
        assert score == pytest.approx(float((gaps > 0).double().mean() + (gaps == 0).double().mean() / 2))


def test_first_components():
    line = noise(50, 1) @ torch.tensor([[3.0, 4.0]]).double()
    component = first_components(torch.cat([line, noise(50, 1)], 1), [[0, 1], [2]])
    assert component[:, 0].abs() == pytest.approx((line - line.mean(0)).norm(dim=1))
    assert component[:, 1].abs() == pytest.approx((noise(50) - noise(50).mean()).abs())


@pytest.mark.parametrize("measure", [dci, factor_vae_score, mutual_information_gap, total_auroc_difference])
def test_wrong_shapes_are_told(measure):
    with pytest.raises(ValueError, match=r"codes \[N, D\] and factors \[N, F\]"):
        measure(noise(10, 2), torch.zeros(9, 2, dtype=torch.long))
    if measure is not total_auroc_difference:
        with pytest.raises(ValueError, match="two values"):
            measure(noise(9, 2), torch.zeros(9, 2, dtype=torch.long))


def test_scores_are_those_of_disent():
    """The package disent, if it is installed, computes the same from the same codes."""
    theirs = pytest.importorskip("disent.metrics._dci")
    mig = pytest.importorskip("disent.metrics._mig")
    z = torch.cat([FACTORS + 0.8 * noise(300, 3), noise(300, 1)], 1)
    importance = dci(z, FACTORS, regressor="forest").importance
    assert disentanglement(importance) == pytest.approx(theirs._disentanglement(importance.numpy()), abs=1e-6)
    assert completeness(importance) == pytest.approx(theirs._completeness(importance.numpy()), abs=1e-6)
    expected = mig._compute_mig(z.T.numpy(), FACTORS.T.numpy())["mig.discrete_score"]
    assert mutual_information_gap(z, FACTORS) == pytest.approx(expected, abs=1e-9)


def test_the_auroc_of_a_draw_is_that_of_its_pictures():
    """With ties, and without a value where a draw has one kind of pictures alone."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=draw).double()
    positive = torch.rand(40, generator=draw) < 0.4
    counts = torch.randint(0, 3, (5, 40), generator=draw)
    counts[4] = positive.long()
    result = auroc_of_draws(scores, positive, counts)
    for count, value in zip(counts[:4], result[:4], strict=True):
        rows = torch.arange(40).repeat_interleave(count)
        assert float(value) == pytest.approx(float(aurocs(scores[rows, None], positive[rows])[0]))
    assert result[4].isnan()


def test_information_of_all_dimensions_at_once_is_that_of_each():
    draw = torch.Generator().manual_seed(0)
    binned = torch.randint(0, 20, (50, 7), generator=draw)
    numbers = torch.randint(0, 4, (50,), generator=draw)
    expected = [module._mutual_information(column, numbers) for column in binned.T]
    assert module._binned_information(binned, numbers).tolist() == pytest.approx(expected)
