"""Copies of training pictures are found exactly, and fair samples are not taken for copies."""

import pytest
import torch

from ldm_kit.metrics.memorisation import Memorisation, nearest


def points(count, seed, width=12):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_neighbours_are_those_of_all_pairs_in_any_division():
    queries, training = points(9, 0), points(50, 1)
    whole = torch.cdist(queries.double(), training.double()).sort(dim=1)
    found = nearest(queries, training.split(8), 3)
    torch.testing.assert_close(found.distances, whole.values[:, :3], rtol=1e-5, atol=1e-6)
    assert torch.equal(found.indices, whole.indices[:, :3])
    torch.testing.assert_close(found.ratios, whole.values[:, 0] / whole.values[:, 1], rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="expected at least 3 training pictures, got 2"):
        nearest(queries, [training[:2]], 3)


def compared(samples, training, heldout):
    return Memorisation(nearest(samples, [training]), nearest(heldout, [training]))


@pytest.mark.parametrize("noise", [0, 0.05])
def test_a_sampler_that_copies_some_pictures_is_found_exactly(noise):
    training, heldout, samples = points(400, 0), points(200, 1), points(100, 2)
    copied, rows = [3, 17, 60, 99], [0, 5, 7, 399]
    samples[copied] = training[rows] + noise * points(4, 3)
    result = compared(samples, training, heldout)
    assert result.copies.nonzero().flatten().tolist() == copied
    assert result.samples.indices[copied, 0].tolist() == rows
    assert (result.samples.ratios[copied] < 0.2).all()
    assert abs(result.auroc - (0.5 + 0.04 / 2)) < 0.1


def test_copies_of_a_picture_that_the_training_set_holds_twice_are_found():
    training = points(100, 0)
    training[1] = training[0]
    result = compared(training[:1].repeat(5, 1), training, points(50, 1))
    assert result.copies.all()
    assert (result.samples.ratios == 0).all()


def test_a_fair_sampler_is_not_flagged_and_one_that_copies_all_is():
    training, heldout = points(500, 0), points(400, 1)
    fair = compared(points(400, 2), training, heldout)
    assert not fair.copies.any()
    assert abs(fair.auroc - 0.5) < 0.06
    assert abs(fair.nearer_than_median - 0.5) < 0.08
    copies = compared(training[:50], training, heldout)
    assert copies.auroc == copies.nearer_than_median == 1
    same = compared(heldout, training, heldout)
    assert same.auroc == 0.5
    assert not same.copies.any()


def test_auroc_is_the_share_of_pairs_with_ties_as_half():
    def at(*distances):
        one = torch.tensor(distances).double()[:, None].repeat(1, 2)
        return nearest(torch.zeros(1, 1), [torch.ones(3, 1)], 2)._replace(distances=one)

    assert Memorisation(at(1.0, 2.0), at(2.0, 3.0, 0.5)).auroc == pytest.approx((2 + 1.5) / 6)
