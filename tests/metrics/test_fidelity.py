import math

import pytest
import torch

from ldm_kit.metrics.fidelity import (
    Fidelity,
    agreement,
    embed,
    fidelity,
    frechet,
    frechet_checked,
    ranks,
    table,
    wilson,
)


def cloud(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_ranks_are_those_of_the_plain_definition(distance):
    references, generated, truth = cloud(40, 6) + 3, cloud(1100, 6, seed=1) + 3, torch.arange(1100) % 40
    r, g = references - references.mean(0), generated - references.mean(0)
    apart = 1 - torch.cosine_similarity(g[:, None], r[None], -1) if distance == "cosine" else torch.cdist(g, r)
    order = apart.argsort(1)
    plain = (order == truth[:, None]).int().argmax(1) + 1
    assert torch.equal(ranks(generated.float(), references.float(), truth, distance), plain)


def test_the_truth_itself_has_rank_one_and_chance_is_flat():
    references, truth = cloud(50, 8), torch.arange(50)
    assert ranks(references, references, truth).eq(1).all()
    chance = ranks(cloud(5000, 8, seed=1), references, torch.arange(5000) % 50)
    assert chance.double().mean().item() == pytest.approx(25.5, abs=1)


def test_ties_and_nonsense_count_against_us():
    twins = torch.cat([cloud(3, 4).repeat(2, 1), cloud(2, 4, seed=1)])
    assert ranks(twins, twins, torch.arange(8)).tolist() == [2] * 6 + [1] * 2
    assert ranks(twins * math.nan, twins, torch.arange(8)).eq(8).all()
    collapsed = twins.mean(0, keepdim=True)  # no direction at all: every reference is as near
    assert ranks(collapsed, twins, torch.tensor([0])).item() == 8
    same = torch.ones(5, 4)
    for distance in ("cosine", "euclidean"):
        assert ranks(same, same, torch.arange(5), distance).eq(5).all()


def test_the_wrong_tone_is_seen_and_a_tie_of_tones_is_wrong():
    references = torch.eye(4)
    tones = ["light", "dark", "light", ""]
    nearest = references[[0, 2, 1]]
    assert agreement(nearest, references, torch.tensor([0, 0, 0]), tones).tolist() == [True, True, False]
    between = (references[0] + references[1])[None]
    assert agreement(between, references, torch.tensor([0]), tones).tolist() == [False]
    assert agreement(between, references, torch.tensor([0]), ["light"] * 4).tolist() == [True]


def test_fidelity_in_numbers():
    references = cloud(12, 30)
    tones = ["light", "dark"] * 4 + ["mixed", "mixed", "", ""]
    truth = torch.arange(12)
    shown = references[[1, 0, 2, 3, 6, 5, 4, 7, 9, 8, 10, 11]]  # wrong: 0, 1 in tone; 4, 6 in picture alone; 8, 9
    found = fidelity(shown, references, truth, tones)
    assert (found.rank1, found.count) == (0.5, 12)
    assert (found.tone, found.tone_count) == (0.75, 8)
    assert 0.5 <= found.rank5 <= 1
    assert found.interval("tone") == wilson(0.75, 8)
    assert found.interval("rank1") == wilson(0.5, 12)
    bare = fidelity(shown, references, truth)
    assert (bare.rank1, bare.tone_count, math.isnan(bare.tone)) == (0.5, 0, True)


@pytest.mark.parametrize(
    ("generated", "truth", "options"),
    [
        (torch.ones(2, 3), [0, 1], {}),
        (torch.ones(2, 4), [0], {}),
        (torch.ones(0, 4), [], {}),
        (torch.ones(1, 4), [5], {}),
        (torch.ones(1, 4), [-1], {}),
        (torch.ones(1, 4), [0], {"distance": "taxi"}),
        (torch.ones(1, 4), [0], {"tones": ["light"]}),
        (torch.ones(1, 4), [4], {"tones": ["light"]}),
    ],
)
def test_fidelity_refuses_bad_input(generated, truth, options):
    if "tones" in options:
        with pytest.raises(ValueError, match="one each"):
            fidelity(generated, torch.eye(5, 4), torch.tensor(truth), **options)
        return
    with pytest.raises(ValueError, match=r"expected|must"):
        fidelity(generated, torch.eye(5, 4), torch.tensor(truth, dtype=torch.long), **options)


def test_features_are_taken_in_batches():
    seen = []

    def features(pictures):
        seen.append(len(pictures))
        return pictures.flatten(1).float() * 2

    pictures = torch.randint(256, (10, 3, 2, 2), dtype=torch.uint8)
    assert torch.equal(embed(features, pictures, batch=4), pictures.flatten(1).double() * 2)
    assert seen == [4, 4, 2]
    with pytest.raises(ValueError, match="at least one"):
        embed(features, pictures[:0])
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        embed(lambda p: p.float(), pictures)


def test_wilson_is_the_textbook_interval():
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0.0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx((0.72247, 1), abs=1e-5)
    assert all(map(math.isnan, wilson(math.nan, 0)))


def test_wilson_covers():
    """The exact chance that the interval of a share of 60 holds the truth is 95 % on average over truths."""
    truths = torch.linspace(0.05, 0.95, 181).double()
    low, high = torch.tensor([wilson(hits / 60, 60) for hits in range(61)]).double().T[..., None]
    chances = torch.distributions.Binomial(60, truths).log_prob(torch.arange(61.0).double()[:, None]).exp()
    covered = (chances * ((low <= truths) & (truths <= high))).sum(0)
    assert covered.mean().item() == pytest.approx(0.95, abs=0.005)
    assert covered.min() > 0.9


def test_the_table():
    rows = {"a | b": Fidelity(0.5, 1.0, 0.25, 8, 100), "plain": Fidelity(0.5, 0.5, math.nan, 0, 10)}
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| a \\| b | 50.0 % [40.4, 59.6] | 100.0 % [96.3, 100.0] | 25.0 % [7.1, 59.1] | 100 (8) |"
    assert lines[3].endswith("| - | 10 (0) |")


def whitened(n, d, seed):
    """Samples whose mean is 0 and whose covariance is the identity exactly."""
    x = cloud(n, d, seed=seed)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T


def test_frechet_is_the_closed_form():
    """Covariances A = M M^T and B = K K^T that do not commute: tr (A B)^1/2 is the nuclear norm of M^T K."""
    m, k = cloud(5, 5, seed=2), cloud(5, 5, seed=3)
    a, b = whitened(400, 5, 0) @ m.T + 1, whitened(300, 5, 1) @ k.T - 2
    exact = 5 * 9 + (m @ m.T).trace() + (k @ k.T).trace() - 2 * torch.linalg.svdvals(m.T @ k).sum()
    assert frechet(a, b) == pytest.approx(exact.item(), rel=1e-9)
    assert frechet(b, a) == pytest.approx(exact.item(), rel=1e-9)


def test_frechet_of_commuting_gaussians():
    a, b = whitened(500, 3, 0) * 2.0, whitened(700, 3, 1) * 0.5 + 1
    assert frechet(a, b) == pytest.approx(3 * (1 + 1.5**2), rel=1e-9)
    assert frechet(a[:, :1], b[:, :1]) == pytest.approx(1 + 1.5**2, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    few = cloud(6, 40)
    assert frechet(few, few) == pytest.approx(0, abs=1e-5)


def test_frechet_says_when_samples_are_few():
    assert frechet_checked(cloud(40, 4), cloud(40, 4, seed=1)).warning == ""
    assert "biased" in frechet_checked(cloud(40, 4), cloud(39, 4)).warning
    assert "singular" in frechet_checked(cloud(4, 4), cloud(100, 4)).warning


def test_frechet_refuses_bad_input():
    for bad in (cloud(9, 3), cloud(1, 4), cloud(4)):
        with pytest.raises(ValueError, match="at least 2"):
            frechet(cloud(9, 4), bad)
    with pytest.raises(ValueError, match="finite"):
        frechet(cloud(9, 4), cloud(9, 4) * math.inf)
