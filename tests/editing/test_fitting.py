"""Fits find what was planted, whatever goes along with it, and say honestly how well they read."""

import pytest
import torch

from ldm_kit.editing import fitting
from ldm_kit.models.linear_fit import Fit, mean_difference
from tests.editing.planted import FIRST, SECOND, D, planted


def cosine(fit, vector):
    return float(torch.cosine_similarity(fit.weight, vector.double(), dim=0))


def test_the_classifier_recovers_planted_factors():
    z, first, second = planted(2000)
    new, is_first, is_second = planted(1000, seed=1)
    for labels, read, vector, other in ((first, is_first, FIRST, SECOND), (second, is_second, SECOND, FIRST)):
        fit = fitting.classifier(z, labels)
        assert cosine(fit, vector) > 0.98
        assert abs(cosine(fit, other)) < 0.1
        assert fitting.score(fit, new, read).auroc > 0.999


def test_the_classifier_is_turned_less_by_what_goes_along():
    """With factors that agree in 9 of 10 pictures the means point at both, the classifier at its own."""
    z, first, _ = planted(4000, together=0.9, spread=0.3)
    assert cosine(mean_difference(z[~first], z[first]), SECOND) > 0.6
    assert cosine(fitting.classifier(z, first, decay=1e-3), SECOND) < 0.2


def test_the_classifier_is_the_minimum_of_its_loss():
    z, first, _ = planted(300)
    fit = fitting.classifier(z, first, decay=0.1)
    p = torch.sigmoid(fit.logit(z))
    gradient = ((p - first.double())[:, None] * z.double()).mean(0) + 0.1 * fit.weight
    assert gradient.abs().max() < 1e-6
    assert abs(float((p - first.double()).mean())) < 1e-6, "the bias is not decayed"


def test_the_classifier_draws_nothing():
    z, first, _ = planted(200)
    torch.manual_seed(1)
    one = fitting.classifier(z, first)
    torch.manual_seed(2)
    with torch.no_grad():
        assert torch.equal(one.weight, fitting.classifier(z, first).weight)


def test_one_kind_of_label_is_refused():
    with pytest.raises(ValueError, match="both with and without"):
        fitting.classifier(torch.randn(4, 2), torch.ones(4, dtype=torch.bool))


def test_a_dozen_examples_read_better_than_chance():
    z, first, _ = planted(2000, seed=3)
    new, labels, _ = planted(1000, seed=4)
    twelve, negatives = z[first][:12], z[~first][:12]
    for others, least in ((negatives, 0.95), (z[:500], 0.8), (None, 0.8)):
        assert fitting.score(fitting.few_shot(twelve, others), new, labels).auroc > least
    assert fitting.cross_validate(twelve, negatives).auroc > 0.9


def test_unlabelled_others_give_the_direction_of_negatives():
    """Positives hidden among the others shorten the difference of the means and do not turn it."""
    z, first, _ = planted(20_000, seed=5)
    against_all, against_negatives = fitting.few_shot(z[first], z), fitting.few_shot(z[first], z[~first])
    assert float(torch.cosine_similarity(against_all.weight, against_negatives.weight, dim=0)) > 0.99
    assert against_all.weight.norm() < against_negatives.weight.norm()


def test_examples_without_a_common_trait_read_by_chance():
    """Left-one-out must not be fooled, which reading the fitted examples themselves would be."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(24, 400, generator=draw)
    assert fitting.cross_validate(z[:12], z[12:]).auroc < 0.75
    labels = torch.arange(24) < 12
    assert fitting.score(fitting.few_shot(z[:12], z[12:]), z, labels).auroc == 1.0


def test_many_others_are_left_out_in_parts(monkeypatch):
    """A large folder of unlabelled pictures must not cost a fit each."""
    z, first, _ = planted(900)
    fits = []
    few = fitting.few_shot
    monkeypatch.setattr(fitting, "few_shot", lambda *sides: fits.append([len(side) for side in sides]) or few(*sides))
    assert fitting.cross_validate(z[first][:12], z[~first][:300]).auroc > 0.9
    assert fits == [[11, 300]] * 12 + [[12, 285]] * 20


def test_shrinkage_lies_between_the_sample_and_the_identity():
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(50_000, D, generator=draw).double() * torch.linspace(0.5, 2, D).double()
    many = fitting.shrunk_covariance(wide)
    assert torch.allclose(many, wide.T @ wide / len(wide), atol=0.05)
    few = fitting.shrunk_covariance(wide[:6])
    diagonal = few.diag()
    assert float(few.trace()) == pytest.approx(float(wide[:6].square().sum() / 6))
    assert float(torch.linalg.eigvalsh(few).min()) > 0.2, "six rows span no more than six of 24 dimensions"
    assert float(diagonal.max() / diagonal.min()) < float(many.diag().max() / many.diag().min())


def test_shrinkage_is_that_of_the_paper():
    """Chen et al. 2010, eq. 23, by hand: S = diag(2, 1/2), tr(S^2) = 4.25, tr(S)^2 = 6.25; for d = 2, 1 - 2/d = 0."""
    rows = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double().repeat(10, 1)
    share = 6.25 / ((40 + 1 - 1) * (4.25 - 6.25 / 2))
    diagonal = [(1 - share) * variance + share * 2.5 / 2 for variance in (2.0, 0.5)]
    assert torch.allclose(fitting.shrunk_covariance(rows), torch.tensor(diagonal).double().diag())


def test_far_logits_are_ranked_and_not_squeezed():
    labels = torch.tensor([False, False, True, True])
    fit = Fit(torch.ones(1).double(), 0.0)
    assert fitting.score(fit, torch.tensor([[900.0], [901.0], [902.0], [903.0]]), labels) == (1.0, 1.0)
    assert fitting.score(fit, torch.tensor([[903.0], [902.0], [901.0], [900.0]]), labels).auroc == 0.0


def test_a_score_needs_both_sides():
    fit = Fit(torch.ones(1).double(), 0.0)
    assert fitting.score(fit, torch.ones(3, 1), torch.ones(3, dtype=torch.bool)) == (None, None)


def test_the_difference_of_means_is_told_apart_at_their_middle():
    before, after = torch.zeros(3, 2), torch.tensor([[2.0, 0.0]]).expand(3, 2)
    fit = mean_difference(before, after)
    assert fit.weight.tolist() == [2.0, 0.0]
    assert fit.logit(torch.tensor([[1.0, 5.0]])).tolist() == [0.0]
    assert fit.logit(after[:1]) > 0 > fit.logit(before[:1])
