"""Distances and overlaps of sets of features: other implementations, closed forms, and what each measure sees."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ldm_kit.diffusion import rng
from ldm_kit.metrics.distributions import (
    inception_score,
    kernel_distance,
    kernel_of_draws,
    sliced_distance,
    sliced_of_draws,
)
from ldm_kit.metrics.intervals import bootstrap, resample_counts
from ldm_kit.metrics.moments import frechet_of_draws, frechet_of_moments, moments
from ldm_kit.metrics.neighbourhoods import density_coverage, density_coverage_of_draws, precision_recall, similar


def cloud(n, d, name="a"):
    return rng.normal(0, name, torch.arange(n), (d,)).double()


class Identity(nn.Module):
    """Features that are the pictures themselves, [N, D]."""

    num_features = 4

    def forward(self, pictures):
        return pictures.flatten(1)


@pytest.fixture
def same_subsets(monkeypatch):
    """Have torchmetrics draw the subsets and the shuffle that the kit draws, in the kit's order."""

    def install(names):
        drawn = iter(names)
        monkeypatch.setattr(torch, "randperm", lambda n: rng.permuted(7, f"subset {next(drawn)}", torch.arange(n), n))

    return install


@pytest.mark.filterwarnings("ignore:Metric `Kernel")
def test_kid_is_that_of_torchmetrics(same_subsets):
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = cloud(40, 4) * 1.3 + 0.2, cloud(50, 4, "b")
    other = KernelInceptionDistance(feature=Identity(), subsets=5, subset_size=20).set_dtype(torch.float64)
    other.update(a, real=False)
    other.update(b, real=True)
    same_subsets(f"{i} {name}" for i in range(5) for name in ("b", "a"))  # torchmetrics draws references first
    mean, deviation = other.compute()
    ours = kernel_distance(a, b, subsets=5, size=20, seed=7)
    assert ours == pytest.approx((mean.item(), deviation.item()), rel=1e-9)
    assert ours.deviation > 0


def test_kid_of_whole_sets_is_the_kernel_formula():
    """One subset of everything: sums over pairs i != j, written out."""
    a, b = cloud(6, 3) + 1, cloud(6, 3, "b")
    kernel = lambda x, y: (float(x @ y) / 3 + 1) ** 3  # noqa: E731
    own = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(6) for j in range(6) if i != j) / 30
    cross = sum(kernel(x, y) for x in a for y in b) / 36
    assert kernel_distance(a, b, subsets=1, size=6) == pytest.approx((own - 2 * cross, 0), rel=1e-9)


def test_kid_is_unbiased():
    """Of two sets from one distribution it is 0 on average, however small they are; a biased estimate is above 1."""
    values = torch.tensor(
        [kernel_distance(cloud(4, 2, f"a{i}"), cloud(4, 2, f"b{i}"), subsets=1, size=4).mean for i in range(80)]
    )
    assert abs(values.mean()) < 3 * values.std() / 80**0.5
    assert (values < 0).any()


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`")
def test_inception_score_is_that_of_torchmetrics(same_subsets):
    from torchmetrics.image.inception import InceptionScore

    logits = 2 * cloud(40, 5)
    other = InceptionScore(feature=Identity(), splits=4)
    other.update(logits)
    same_subsets(["inception score"])
    mean, deviation = other.compute()  # its deviation is divided by 4 - 1
    score = inception_score(logits.softmax(1), 4, seed=7)
    assert score == pytest.approx((mean.item(), deviation.item() * math.sqrt(3 / 4)), rel=1e-6)


def test_inception_score_in_closed_form():
    """Certain and evenly spread over K classes: K. Always the same guess: 1. Half the pictures in each of 2: 2."""
    assert inception_score(torch.eye(5).repeat(4, 1), 1) == pytest.approx((5, 0))
    assert inception_score(torch.eye(5)[[2] * 8], 4) == pytest.approx((1, 0))
    assert inception_score(torch.full((8, 3), 1 / 3), 2) == pytest.approx((1, 0))
    sorted_by_class = torch.eye(2).repeat_interleave(200, 0)
    assert inception_score(sorted_by_class, 4).mean > 1.9, "parts must not depend on the order of the pictures"


def in_loops(generated, references, k):
    """Precision, recall, density and coverage by their definitions, one pair of features at a time."""
    gap = lambda x, y: float((x - y).square().sum())  # noqa: E731
    radius = lambda s, i: sorted(gap(s[i], s[j]) for j in range(len(s)) if j != i)[k - 1]  # noqa: E731
    radii_g, radii_r = ([radius(s, i) for i in range(len(s))] for s in (generated, references))
    inside = [[gap(g, r) < radius for r, radius in zip(references, radii_r, strict=True)] for g in generated]
    reached = [any(gap(g, r) <= radius for g, radius in zip(generated, radii_g, strict=True)) for r in references]
    density = sum(map(sum, inside)) / k / len(generated)
    covered = sum(map(any, zip(*inside, strict=True))) / len(references)
    return sum(map(any, inside)) / len(generated), sum(reached) / len(references), density, covered


@pytest.mark.parametrize(("n", "m", "k"), [(20, 25, 1), (30, 18, 3), (12, 12, 5)])
def test_neighbourhoods_are_those_of_loops(n, m, k, monkeypatch):
    a, b = cloud(n, 3) * 1.2 + 0.5, cloud(m, 3, "b") + 100
    expected = in_loops(a + 100, b, k)
    assert 0 < expected[0] < 1
    assert (*precision_recall(a + 100, b, k), *density_coverage(a + 100, b, k)) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("ldm_kit.metrics.neighbourhoods._ELEMENTS", 60)  # blocks of a few rows
    assert (*precision_recall(a + 100, b, k), *density_coverage(a + 100, b, k)) == pytest.approx(expected, rel=1e-12)


def test_identical_and_disjoint_sets():
    a = cloud(40, 3)
    assert precision_recall(a, a) == (1, 1)
    assert density_coverage(a, a) == pytest.approx((1, 1)), "k of k + 1 open balls hold each picture: itself and k - 1"
    assert kernel_distance(a, a, subsets=1, size=40).mean < 0
    assert sliced_distance(a, a) == 0
    assert precision_recall(a + 50, a) == (0, 0)
    assert density_coverage(a + 50, a) == (0, 0)


def test_overlaps_on_a_line_by_hand():
    """References 0, 1, 3, 7 have radii 1, 1, 2, 4 to their nearest neighbours."""
    references, generated = torch.tensor([[0.0], [1], [3], [7]]), torch.tensor([[0.5], [2], [-3]])
    assert precision_recall(generated, references, 1) == pytest.approx((2 / 3, 3 / 4))  # radii 1.5, 1.5, 3.5
    assert density_coverage(generated, references, 1) == pytest.approx((1, 3 / 4)), "2 is on the ball of 1, not inside"
    assert precision_recall(torch.tensor([[2.0], [2]]), torch.tensor([[0.0], [1]]), 1).precision == 1, "on the ball"


def test_coverage_and_density_of_one_distribution():
    """Coverage is 1 - 2^-k and density 1 on average (Naeem et al. 2020, section 3.3), whatever the distribution."""
    values = torch.tensor([density_coverage(cloud(60, 2, f"a{i}"), cloud(60, 2, f"b{i}"), 2) for i in range(60)])
    spread = values.std(0) / 60**0.5
    exact = 1 - 59 * 58 / (119 * 118)
    assert ((values.mean(0) - torch.tensor([1, exact])).abs() < 3 * spread).all()


def test_mind_is_the_sorted_projections_of_equal_counts():
    """The published formula: 3 D times the mean over directions of the mean squared difference in order."""
    a, b = cloud(30, 4) * 2, cloud(30, 4, "b") + 1
    u = nn.functional.normalize(rng.normal(3, "direction", torch.arange(50), (4,)).double())
    gaps = (a @ u.T).sort(0).values - (b @ u.T).sort(0).values
    assert sliced_distance(a, b, directions=50, seed=3) == pytest.approx(3 * 4 * gaps.square().mean().item(), rel=1e-9)


def test_mind_of_a_shift_is_three_times_frechet():
    """Each projection is shifted by u.s, whose mean square is |s|^2 / D."""
    a, shift = cloud(50, 6), torch.tensor([1.0, -2, 0, 0.5, 3, 0]).double()
    exact = 3 * frechet_of_moments(*moments(a), *moments(a + shift))
    assert exact == pytest.approx(3 * shift.square().sum().item(), rel=1e-6)
    assert sliced_distance(a, a + shift, directions=4000) == pytest.approx(exact, rel=0.05)
    assert sliced_distance(a[:, :1], a[:, :1] + 2) == pytest.approx(12, rel=1e-9), "one dimension: exact"


def test_mind_of_two_gaussians():
    """In one dimension W_2^2 = (m_a - m_b)^2 + (s_a - s_b)^2; samples at the quantiles come near to it."""
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(4000).double() + 0.5) / 4000)[:, None]
    assert sliced_distance(2 * quantiles + 1, quantiles / 2, directions=2) == pytest.approx(3 * (1 + 1.5**2), rel=2e-3)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (4, 6), (1, 5), (7, 5)])
def test_mind_of_unequal_counts_is_the_exact_coupling(n, m):
    """Repeating each sample changes no quantile, so sets of n and m are compared exactly as sets of n m."""
    a, b = cloud(n, 3), cloud(m, 3, "b")
    repeated = sliced_distance(a.repeat_interleave(m, 0), b.repeat_interleave(n, 0), directions=20)
    assert sliced_distance(a, b, directions=20) == pytest.approx(repeated, rel=1e-12)


def test_mind_takes_directions_in_blocks(monkeypatch):
    a, b = cloud(9, 3), cloud(7, 3, "b")
    whole = sliced_distance(a, b, directions=30)
    monkeypatch.setattr("ldm_kit.metrics.distributions._ELEMENTS", 40)
    assert sliced_distance(a, b, directions=30) == pytest.approx(whole, rel=1e-12)


MEASURES = {
    "frechet": lambda a, b: -frechet_of_moments(*moments(a), *moments(b)),
    "kernel": lambda a, b: -kernel_distance(a, b, subsets=1, size=len(a)).mean,
    "sliced": lambda a, b: -sliced_distance(a, b, directions=100),
    "precision": lambda a, b: precision_recall(a, b).precision,
    "recall": lambda a, b: precision_recall(a, b).recall,
    "density": lambda a, b: density_coverage(a, b).density,
    "coverage": lambda a, b: density_coverage(a, b).coverage,
}
"""Each measure as a number that is larger for better pictures."""


@pytest.mark.parametrize("name", MEASURES)
def test_order_motion_and_scale_do_not_matter(name):
    """All are free of the order of rows; all but the kernel and the sliced one of rotations, overlaps of scale too."""
    measure, a, b = MEASURES[name], cloud(30, 4) * 1.1, cloud(30, 4, "b")
    value = measure(a, b)
    assert measure(a.flip(0), b.roll(5, 0)) == pytest.approx(value, rel=1e-9)
    rotation = torch.linalg.qr(cloud(4, 4, "rotation")).Q
    if name != "sliced":
        assert measure(a @ rotation, b @ rotation) == pytest.approx(value, rel=1e-9)
    if name in ("precision", "recall", "density", "coverage"):
        assert measure(1e-6 * a + 3, 1e-6 * b + 3) == pytest.approx(value, rel=1e-9)
    if name in ("frechet", "sliced"):
        assert measure(10 * a + 3, 10 * b + 3) == pytest.approx(100 * value, rel=1e-6)


def test_seeds_address_the_random_numbers():
    a, b = cloud(30, 4), cloud(30, 4, "b")
    p = a.softmax(1)
    for measure in (
        lambda seed: kernel_distance(a, b, subsets=3, size=10, seed=seed).mean,
        lambda seed: sliced_distance(a, b, directions=5, seed=seed),
        lambda seed: inception_score(p, 3, seed=seed).mean,
    ):
        torch.manual_seed(1)
        first = measure(0)
        torch.manual_seed(2)
        assert measure(0) == first
        assert measure(1) != first


SETS = {
    "blur": {"frechet", "kernel", "sliced", "precision", "recall", "density", "coverage", "inception score"},
    "noise": {"frechet", "sliced", "precision", "density", "coverage"},
    "three of six modes": {"frechet", "kernel", "sliced", "recall", "coverage", "inception score"},
    "copies of 18 training pictures": {"frechet", "kernel", "sliced", "recall", "coverage"},
    "copies of all training pictures": set(),
}
"""Which measures see that a set is worse. None sees a copy of the training set: that needs nearest neighbours."""


def test_each_measure_sees_what_it_should():
    """A measure sees a fault if it is worse than for four good sets, by twice their range and 1 %."""
    patterns = rng.normal(0, "patterns", torch.arange(6), (8, 8)).double()
    count = torch.arange(180)

    def pictures(name, modes=6, noise=0.5):
        return patterns[count % modes] + noise * rng.normal(0, name, count, (8, 8)).double()

    def score(x):
        return inception_score((-torch.cdist(x, patterns.flatten(1)).square() / 16).softmax(1), 1).mean

    references, training = pictures("held-out").flatten(1), pictures("training")
    measures = {name: lambda x, f=f: f(x, references) for name, f in MEASURES.items()} | {"inception score": score}
    faulty = [
        avg_pool2d(pictures("a")[:, None], 3, 1, 1, count_include_pad=False),
        pictures("a", noise=0.7),
        pictures("a", modes=3),
        training[count % 18],
        training,
    ]
    good = [pictures(name).flatten(1) for name in "abcd"]
    seen = {name: set() for name in SETS}
    for name, measure in measures.items():
        values = [measure(x) for x in good]
        bound = min(values) - max(2 * (max(values) - min(values)), 0.01 * abs(min(values)))
        for kind, x in zip(SETS, faulty, strict=True):
            seen[kind] |= {name} if measure(x.flatten(1)) < bound else set()
    assert seen == SETS


def whole_kernel(a, b):
    """The unbiased MMD^2 of sets of any sizes, written out with all pairs."""
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    own = [(kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(own[0] + own[1] - 2 * kernel(a, b).mean())


DRAWS = {
    "frechet": (lambda a, b: frechet_of_moments(*moments(a), *moments(b)), frechet_of_draws),
    "kernel": (whole_kernel, kernel_of_draws),
    "sliced": (
        lambda a, b: sliced_distance(a, b, directions=30, seed=2),
        lambda a, b, counts: sliced_of_draws(a, b, counts, directions=30, seed=2),
    ),
    "coverage": (
        lambda a, b: density_coverage(a, b, 3).coverage,
        lambda a, b, counts: density_coverage_of_draws(a, b, counts, 3).coverage,
    ),
    "density": (
        lambda a, b: density_coverage(a, b, 3).density,
        lambda a, b, counts: counts.double() @ density_coverage_of_draws(a, b, counts, 3).densities / len(a),
    ),
}
"""Each measure of two sets, and the same for all bootstrap draws of the first at once."""


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("n", "m", "d"), [(20, 31, 4), (12, 9, 30), (25, 9, 16), (9, 25, 16)])
def test_all_draws_at_once_are_the_bootstrap_one_by_one(name, n, m, d, monkeypatch):
    plain, at_once = DRAWS[name]
    a, b = 1.2 * cloud(n, d) + 0.8, cloud(m, d, "b")
    values = []
    bootstrap(lambda rows: values.append(plain(rows, b)) or 0.0, a, count=6, seed=5)
    counts = torch.cat([torch.ones(1, n, dtype=torch.long), resample_counts(n, 6, 5)])
    expected = torch.tensor([plain(a, b), *values]).double()
    torch.testing.assert_close(at_once(a, b, counts), expected, rtol=1e-6, atol=1e-7)
    assert len(set(values)) > 1, "draws differ"
    for module in ("distributions", "neighbourhoods"):
        monkeypatch.setattr(f"ldm_kit.metrics.{module}._ELEMENTS", 60)  # blocks of a few rows
    torch.testing.assert_close(at_once(a, b, counts), expected, rtol=1e-6, atol=1e-7)


class Largest(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("measure", ["density_coverage_of_draws", "similar"])
def test_neighbourhoods_never_hold_all_pairs_of_pictures(measure, monkeypatch):
    """A byte for each pair of 50,000 pictures would be 2.5 GB."""
    a, b = 1.1 * cloud(900, 3), cloud(800, 3, "b")
    counts = torch.cat([torch.ones(1, 900, dtype=torch.long), resample_counts(900, 4, 1)])
    compute = {
        "similar": lambda: similar(a, b),
        "density_coverage_of_draws": lambda: density_coverage_of_draws(a, b, counts),
    }[measure]
    whole = compute()
    monkeypatch.setattr("ldm_kit.metrics.neighbourhoods._ELEMENTS", 5000)
    with Largest() as largest:
        blocks = compute()
    assert largest.bytes <= 8 * 6000 < 900 * 800 / 10
    for one, other in zip(whole, blocks, strict=True):
        assert torch.equal(one, other)


def test_density_and_coverage_are_those_of_all_pairs():
    a, b = 1.1 * cloud(40, 3), cloud(50, 3, "b")
    inside = torch.cdist(a, b) < torch.cdist(b, b).kthvalue(5, 1).values  # the first is the reference itself
    densities, coverage = density_coverage_of_draws(a, b, torch.eye(40, dtype=torch.long), 4)
    assert torch.equal(densities, inside.sum(1).double() / 4)
    assert coverage.tolist() == pytest.approx(inside.double().mean(1).tolist()), "a draw of one picture covers its own"


PAIRS = {
    "kernel": lambda a, b: kernel_distance(a, b, subsets=2, size=2),
    "sliced": sliced_distance,
    "precision": precision_recall,
    "density": density_coverage,
}


@pytest.mark.parametrize("name", PAIRS)
def test_bad_features_are_refused_in_a_sentence(name):
    good, measure = cloud(9, 4), PAIRS[name]
    for bad, message in (
        (cloud(9, 3), "one width"),
        (cloud(9, 4) * math.nan, "finite features"),
        (cloud(9, 4) / 0, "finite features"),
        (cloud(9, 4)[:0], r"at least \d pictures, got \[0, 4\]"),
        (cloud(9, 4)[0], r"\[N, D\]"),
        (cloud(9, 4)[:, :0], r"\[N, D\]"),
    ):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match=message):
                measure(*pair)


def test_too_few_pictures_are_refused():
    a, b = cloud(5, 4), cloud(9, 4, "b")
    for call, message in (
        (lambda: kernel_distance(a, b, size=6), r"2 to 5 features \(the sets have 5 and 9\), got 100 of 6"),
        (lambda: kernel_distance(a, b, size=1), "got 100 of 1"),
        (lambda: kernel_distance(a, b, subsets=0, size=4), "got 0 of 4"),
        (lambda: precision_recall(a, b, 5), r"at least 6 pictures, got \[5, 4\]"),
        (lambda: density_coverage(b, a, 5), r"at least 6 pictures, got \[5, 4\]"),
        (lambda: precision_recall(a, b, 0), "neighbours"),
        (lambda: sliced_distance(a, b, directions=0), "at least 1 direction"),
        (lambda: inception_score(a.softmax(1), 6), "1 to 5 parts"),
        (lambda: inception_score(a.softmax(1), 0), "1 to 5 parts"),
        (lambda: inception_score(a), "adding up to 1"),
        (lambda: inception_score(torch.tensor([[1.5, -0.5]]), 1), "at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert precision_recall(a, b, 4).recall > 0
