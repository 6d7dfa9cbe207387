import math
import statistics

import pytest
import torch

from ldm_kit.diffusion import rng
from ldm_kit.metrics.intervals import bootstrap, student_quantile, t_interval


def mean(x):
    return x.mean().item()


@pytest.mark.parametrize("degrees", [1, 2, 4, 5, 9, 30])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_quantiles_are_students(degrees, level):
    """The density of Student's t has the level's mass between -t and t."""
    t = student_quantile(degrees, level)
    x = torch.linspace(-t, t, 20001, dtype=torch.float64)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    density = scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    assert float(torch.trapezoid(density, x)) == pytest.approx(level, abs=1e-6)


def test_the_quantiles_of_the_textbook():
    assert [round(student_quantile(n), 3) for n in (1, 2, 4, 9)] == [12.706, 4.303, 2.776, 2.262]
    assert student_quantile(100_000) == pytest.approx(1.959964, abs=1e-4), "that of a normal variable"


def test_the_interval_of_runs():
    values = [1.0, 2.0, 4.0]
    half = 4.302653 * statistics.stdev(values) / math.sqrt(3)
    assert t_interval(values) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert t_interval([3.0, 3.0]) == (3, 3)
    assert t_interval(values, 0.5).low > t_interval(values).low


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    x = rng.normal(0, "x", torch.arange(200), (1,)).double()
    low, high = bootstrap(mean, x, count=300)
    half = 1.96 * x.std().item() / 200**0.5
    assert (low, high) == pytest.approx((mean(x) - half, mean(x) + half), abs=0.2 * half)
    narrow = bootstrap(mean, x, count=300, level=0.5)
    assert (narrow.high - narrow.low) / (high - low) == pytest.approx(0.6745 / 1.96, rel=0.2)


def test_the_bootstrap_covers():
    """Intervals of means of 30 uniform numbers hold 1/2 in about 94 % of 60 trials."""
    trials = [rng.uniform(0, f"trial {i}", torch.arange(30)) for i in range(60)]
    held = [low < 0.5 < high for low, high in (bootstrap(mean, x, count=40) for x in trials)]
    assert 50 <= sum(held) <= 60


def test_sets_are_resampled_independently():
    """The difference of two means varies with both; rows stay whole."""
    x = torch.arange(200.0)[:, None].double()
    paired = bootstrap(lambda z: mean(z[:, 0] - z[:, 1]), torch.cat([x, x], 1), count=50)
    assert paired == (0, 0)
    low, high = bootstrap(lambda a, b: mean(a) - mean(b), x, x, count=100)
    single = bootstrap(mean, x, count=100)
    assert (high - low) / (single.high - single.low) == pytest.approx(math.sqrt(2), rel=0.3)
    assert bootstrap(lambda a, b: float(len(a) * 1000 + len(b)), x[:3], x[:7], count=4) == (3007, 3007)


def test_seeds_address_the_draws():
    x = rng.normal(0, "x", torch.arange(20), (2,))
    assert bootstrap(mean, x, count=20, seed=3) == bootstrap(mean, x, count=20, seed=3)
    assert bootstrap(mean, x, count=20, seed=3) != bootstrap(mean, x, count=20, seed=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(mean), "at least 1 sample"),
        (lambda: bootstrap(mean, torch.zeros(0, 3)), "at least 1 sample"),
        (lambda: bootstrap(mean, torch.zeros(2, 3), count=0), "got 0 draws"),
        (lambda: bootstrap(mean, torch.zeros(2, 3), level=1.0), "level"),
        (lambda: bootstrap(mean, torch.full((2, 3), math.nan), count=2), "not finite"),
        (lambda: t_interval([1.0]), "at least 2 runs"),
        (lambda: t_interval([1.0, math.nan]), "finite"),
        (lambda: t_interval([1.0, 2.0], 0.0), "level"),
        (lambda: student_quantile(0), "degree"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
