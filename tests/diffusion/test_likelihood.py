import math
from itertools import product

import pytest
import torch
from diffusers import DDPMScheduler
from torch.special import ndtr

from ldm_kit.diffusion import rng
from ldm_kit.diffusion.analytic import Gaussian
from ldm_kit.diffusion.likelihood import log_level, log_level_tanh, nll, prior, sparse_density, term
from ldm_kit.diffusion.posterior import chain, log_variance
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.schedule import Schedule, cosine, flow, linear, scaled_linear, zero_terminal
from ldm_kit.diffusion.timesteps import timesteps_at_quantiles

ALL = {"linear": linear(), "scaled": scaled_linear(200), "cosine": cosine(50), "zero": zero_terminal(scaled_linear())}
LEVELS = torch.arange(256).double() / 127.5 - 1
CORNERS = torch.tensor(list(product([-1.0, 1.0], [-1.0, 1.0]))).double()  # their mean is exact for cubic polynomials


def every(schedule):
    return torch.arange(len(schedule))


def betas_of(schedule):
    """Betas and the posterior's variances, by the textbook's definitions."""
    kept = schedule.a.square()
    before = torch.cat([torch.ones(1).double(), kept[:-1]])
    betas = 1 - kept / before
    return betas, betas * (1 - before) / (1 - kept)


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_variances_are_the_textbooks(schedule):
    betas, posterior = betas_of(schedule)
    small = torch.cat([posterior[1:2], posterior[1:]]).log()
    large = torch.cat([posterior[1:2], betas[1:]]).log()
    assert torch.allclose(log_variance(schedule, every(schedule), "small"), small, rtol=1e-9)
    assert torch.allclose(log_variance(schedule, every(schedule), "large"), large, rtol=1e-9)


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_a_learned_fraction_goes_from_small_to_beta(schedule):
    t = every(schedule)
    fraction = torch.tensor([0.0, 1.0, 0.25, -0.5]).double().expand(len(t), 4)
    none, one, some, beyond = log_variance(schedule, t, fraction).T
    assert torch.equal(none, log_variance(schedule, t, "small"))
    assert torch.allclose(one[1:], log_variance(schedule, t, "large")[1:], rtol=1e-12)
    assert torch.allclose(one[0], betas_of(schedule)[0][0].log(), rtol=1e-9)  # there beta itself
    assert torch.allclose(some, 0.75 * none + 0.25 * one)
    assert torch.allclose(beyond, 1.5 * none - 0.5 * one)  # not clamped


@pytest.mark.parametrize("schedule", [linear(), cosine(50)])
def test_the_bound_and_the_sampler_have_one_variance(schedule):
    links = chain(schedule, [*reversed(range(len(schedule))), -1])
    fraction = torch.tensor(0.3).double()
    for link in links:
        t = torch.tensor([link.t])
        learned = log_variance(schedule, t, fraction.view(1))
        assert math.isclose(float(learned), float(link.reverse_variance("learned_range", fraction).log()), rel_tol=1e-9)
        for kind in ("small", "large"):
            ours = float(log_variance(schedule, t, kind).exp())
            if link.t > 0 or kind == "large":
                assert math.isclose(ours, link.reverse_variance(kind), rel_tol=1e-9)


@pytest.mark.parametrize(("name", "schedule"), [("linear", linear()), ("squaredcos_cap_v2", cosine())])
def test_diffusers_has_the_same_variances_above_zero(name, schedule):
    ends = {"beta_start": 1e-4, "beta_end": 2e-2}
    fraction = torch.full((1, 1), 0.3)
    small, large, learned = (
        DDPMScheduler(beta_schedule=name, variance_type=kind, **ends)
        for kind in ("fixed_small", "fixed_large", "learned_range")
    )
    for t in (1, 2, 30, 500, 998):  # at 999 cosine's last beta, capped, is 1e-3 of a float32 there
        time = torch.tensor([t])
        pairs = [(small._get_variance(t).log(), "small"), (large._get_variance(t).log(), "large")]
        learnt = learned._get_variance(t, predicted_variance=2 * fraction - 1)
        for theirs, kind in [*pairs, (learnt, fraction)]:
            assert torch.allclose(theirs.double(), log_variance(schedule, time, kind).double(), rtol=1e-4), (t, kind)


def kl(mean, log_var, other, other_log_var):
    """Of two Gaussians, in nats."""
    ratio = (log_var - other_log_var).exp()
    return (other_log_var - log_var + ratio + (mean - other) ** 2 / other_log_var.exp() - 1) / 2


@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_a_term_is_the_divergence_of_the_two_steps_down(schedule, variance):
    betas, posterior = betas_of(schedule)
    generator = torch.Generator().manual_seed(0)
    t = every(schedule)[1:]
    x_0, x_t, guess, fraction = torch.randn(4, len(t), 2, 3, generator=generator).double()
    found = term(Prediction(guess, guess, fraction), x_0, t, schedule, variance=variance)
    a, kept = (schedule.a[t] / schedule.a[t - 1]).view(-1, 1, 1), schedule.a.square()
    beta, before, after = (c.view(-1, 1, 1) for c in (betas[t], 1 - kept[t - 1], 1 - kept[t]))
    means = [beta * schedule.a[t - 1].view(-1, 1, 1) / after * x + before * a / after * x_t for x in (x_0, guess)]
    low, high = posterior[t].log().view(-1, 1, 1), betas[t].log().view(-1, 1, 1)
    chosen = {"small": low, "large": high, "learned_range": fraction * high + (1 - fraction) * low}[variance]
    expected = kl(means[0], low, means[1], chosen).flatten(1).mean(1) / math.log(2)
    assert torch.allclose(found, expected, rtol=1e-6)


def test_single_precision_is_enough():
    schedule, generator = linear(), torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 1000, 8, generator=generator)
    p = Gaussian(schedule, 0.0, 1.0)(schedule.add_noise(x_0.double(), eps.double(), every(schedule)), every(schedule))
    exact = term(p, x_0.double(), every(schedule), schedule, variance="large")
    single = term(Prediction(p.x_0.float(), p.eps.float()), x_0, every(schedule), schedule, variance="large")
    assert torch.allclose(single.double(), exact, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_var", [-14.0, -9.0, -4.0, 0.0])
@pytest.mark.parametrize("mean", [-1.3, -0.999, 0.0021, 0.5, 4.0])
def test_levels_have_probabilities_that_sum_to_one(mean, log_var, precision):
    log_p = log_level(LEVELS.to(precision), torch.tensor(mean, dtype=precision), torch.tensor(log_var, dtype=precision))
    assert abs(float(log_p.double().exp().sum()) - 1) < 1e-5
    assert log_p.isfinite().all()


def test_a_level_has_its_bins_probability():
    mean, log_var = torch.tensor(0.1).double(), torch.tensor(-3.0).double()
    edges = (torch.arange(255).double() + 0.5) / 127.5 - 1
    below = torch.cat([torch.zeros(1), ndtr((edges - mean) * math.exp(1.5)), torch.ones(1)])
    assert torch.allclose(log_level(LEVELS, mean, log_var).exp(), below.diff(), rtol=1e-9)


def test_far_tails_have_true_gradients_in_single_precision():
    def gradients(dtype):
        mean = torch.tensor([0.3, 5.0, -300.0, 1e4], dtype=dtype, requires_grad=True)
        log_var = torch.tensor([-9.0, -20.0, -9.0, 0.0], dtype=dtype, requires_grad=True)
        log_level(LEVELS.to(dtype)[:, None], mean, log_var).sum().backward()
        return torch.stack([mean.grad, log_var.grad]).double()

    assert torch.allclose(gradients(torch.float32), gradients(torch.float64), rtol=1e-3)


def test_only_the_first_time_pays_for_levels():
    schedule, t = linear(10, end=0.5), torch.arange(10)
    x_0, guess = LEVELS[[3, 99, 250]].expand(10, 3), LEVELS[[4, 99, 240]].expand(10, 3) + 0.001
    pixels, latents = (term(Prediction(guess, guess), x_0, t, schedule, levels=levels) for levels in (True, False))
    assert torch.equal(pixels[1:], latents[1:])
    log_var = log_variance(schedule, t[:1], "small").view(1, 1)
    assert torch.allclose(pixels[:1], -log_level(x_0[:1], guess[:1], log_var).mean(1) / math.log(2))
    expected = kl(x_0[:1], log_var, guess[:1], log_var).mean(1) / math.log(2)
    assert torch.allclose(latents[:1], expected)


def test_latents_cost_nothing_when_right_and_never_less():
    schedule, t = linear(), torch.arange(1000)
    x_0 = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).double()
    for fraction in (0.0, 0.5, -3.0, 2.0):
        right = term(
            Prediction(x_0, x_0, torch.full_like(x_0, fraction)),
            x_0,
            t,
            schedule,
            variance="learned_range",
            levels=False,
        )
        assert (right == 0).all() if fraction == 0 else (right > 0).all()


def test_the_prior_is_the_divergence_from_noise():
    x_0 = torch.linspace(-2, 2, 12).view(3, 4).double()
    for schedule in (linear(50, end=0.1), cosine(10)):
        a, s = schedule.a[-1], schedule.s[-1]
        expected = kl(a * x_0, 2 * s.log(), torch.tensor(0.0), torch.tensor(0.0)).mean(1) / math.log(2)
        assert torch.allclose(prior(x_0, schedule), expected)
    assert (prior(x_0, ALL["zero"]) == 0).all()


class Knowing(Gaussian):
    """Gaussian data with the true variance of each step down, as a learned fraction."""

    def __call__(self, x, t, cond=None):
        schedule = self.schedule
        a2, n2 = schedule.a.square(), schedule.s.square()
        betas, posterior = betas_of(schedule)
        gain = torch.cat([torch.ones(1).double(), betas[1:] * schedule.a[:-1] / n2[1:]])  # of x_0 in the step's mean
        true = posterior + gain.square() * self.s**2 * n2 / (a2 * self.s**2 + n2)
        low = log_variance(schedule, every(schedule), "small")
        fraction = (true.log() - low) / (betas.log() - low)
        return super().__call__(x, t)._replace(fraction=fraction[t][:, None].expand_as(x))


def expected(exact, variance, times):
    """The bound's terms at the given times on a Gaussian's latents, their expectation exact, in bits/dim."""
    data, noise = (CORNERS[:, i : i + 1] for i in (0, 1))
    x_0 = exact.m + exact.s * data
    found = prior(x_0, exact.schedule).mean()
    for t in times:
        time = torch.full((4,), t)
        p = exact(exact.schedule.add_noise(x_0, noise, time), time)
        found = found + term(p, x_0, time, exact.schedule, variance=variance, levels=False).mean()
    return float(found)


def entropy(variance):
    return math.log2(2 * math.pi * math.e * variance) / 2


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_exact_denoisers_bound_is_the_closed_form(variance):
    exact = Gaussian(linear(100, end=0.2), m=0.7, s=0.3)
    schedule, s2 = exact.schedule, 0.3**2
    a2, n2 = schedule.a.square(), schedule.s.square()
    left = s2 * n2 / (a2 * s2 + n2)  # E (x_0 - E[x_0 | x_t])^2
    betas, posterior = betas_of(schedule)
    small = torch.cat([posterior[1:2], posterior[1:]])
    chosen = small if variance == "small" else torch.cat([posterior[1:2], betas[1:]])
    gain = torch.cat([torch.ones(1).double(), betas[1:] * schedule.a[:-1] / n2[1:]])  # of x_0 in the step's mean
    terms = ((small / chosen) - 1 - (small / chosen).log() + gain**2 * left / chosen) / 2
    first = (a2[-1] * (0.7**2 + s2) + n2[-1] - 1 - n2[-1].log()) / 2
    closed = float((terms.sum() + first) / math.log(2))
    assert expected(exact, variance, range(100)) == pytest.approx(closed, rel=1e-10)


def test_the_bound_lies_above_the_truth_and_comes_down_to_it():
    gaps = []
    for steps in (50, 100, 200):
        exact = Knowing(linear(steps), m=0.7, s=0.3)
        a2, n2 = (float(c[0]) ** 2 for c in (exact.schedule.a, exact.schedule.s))
        left = 0.3**2 * n2 / (a2 * 0.3**2 + n2)  # what x_1 does not tell of x_0
        rest = range(1, steps)  # the density's own first term is the next line's
        bounds = {v: expected(exact, v, rest) + entropy(left) for v in ("small", "large", "learned_range")}
        gaps.append(bounds["learned_range"] - entropy(0.3**2))
        assert bounds["learned_range"] < min(bounds["small"], bounds["large"])
    assert gaps[0] > gaps[1] > gaps[2] > 0  # all that is left is how far x_T is from pure noise
    a2, n2 = (float(c[-1]) ** 2 for c in (exact.schedule.a, exact.schedule.s))
    end = torch.tensor(a2 * 0.3**2 + n2).double()
    far = (end + a2 * 0.7**2 - 1 - end.log()) / 2 / math.log(2)
    assert gaps[2] == pytest.approx(float(far), rel=1e-6)


def discrete_gaussian(count):
    """8-bit levels of N(0, 0.2^2) [N, 1], and their entropy in bits."""
    log_p = log_level(LEVELS, torch.tensor(0.0).double(), torch.tensor(2 * math.log(0.2)).double())
    p = log_p.exp()
    u = (torch.arange(count).double() + 0.5) / count
    return LEVELS[timesteps_at_quantiles(u, p)][:, None], float(-(p * log_p).sum() / math.log(2))


def noise_for(schedule, size):
    place = torch.arange(size)

    def noise(t):
        return rng.normal(0, "nll", place * len(schedule) + t, (1,)).double()

    return noise


def test_nll_of_levels_lies_just_above_their_entropy():
    schedule = linear(100, end=0.2)
    x_0, truth = discrete_gaussian(2000)
    totals = {}
    for variance in ("small", "learned_range"):
        terms = list(nll(Knowing(schedule, 0.0, 0.2), x_0, noise_for(schedule, 2000), variance=variance))
        assert [int(found.t[0]) for found in terms] == list(reversed(range(100)))
        totals[variance] = float(sum(found.bits.mean() for found in terms) + prior(x_0, schedule).mean())
    assert abs(totals["learned_range"] - truth) < 0.06  # the draws' own deviation is 0.02
    assert totals["small"] > truth + 0.5  # the first steps down are wider than the posterior


def test_nll_clips_what_it_is_told():
    schedule, told = linear(10, end=0.3), []

    class Wild:
        def __init__(self, reach):
            self.schedule, self.reach = schedule, reach

        def __call__(self, x, t, cond=None):
            told.append(cond)
            return Prediction(torch.full_like(x, self.reach), x)

    x_0 = LEVELS[[0, 255]][:, None]
    wild, tame = (list(nll(Wild(reach), x_0, noise_for(schedule, 2), cond="c")) for reach in (7.0, 1.0))
    assert all(torch.equal(a.bits, b.bits) for a, b in zip(wild, tame, strict=True))
    assert told == ["c"] * 20


def test_sparse_times_estimate_the_sum_without_bias():
    schedule = linear(60, end=0.3)
    x_0, _ = discrete_gaussian(4000)
    exact, noise = Gaussian(schedule, 0.0, 0.2), noise_for(schedule, 4000)
    whole = float(sum(found.bits.mean() for found in nll(exact, x_0, noise, variance="large")))
    density, count = sparse_density(60), 4
    u = [(k + rng.uniform(0, f"times {k}", torch.arange(4000))) / count for k in range(count)]
    some = nll(exact, x_0, noise, [timesteps_at_quantiles(part, density) for part in u], variance="large")
    each = sum(found.bits / density[found.t] for found in some) / count
    assert abs(float(each.mean()) - whole) < 4 * float(each.std()) / 4000**0.5
    assert float(each.std()) / 4000**0.5 < 0.02 * whole


def test_what_has_no_bound_is_refused():
    t, x = torch.tensor([0]), torch.zeros(1, 2)
    for refused in (lambda: term(Prediction(x, x), x, t, flow()), lambda: prior(x, flow())):
        with pytest.raises(ValueError, match="variance-preserving schedule"):
            refused()
    with pytest.raises(ValueError, match="two times or more"):
        prior(x, Schedule(torch.tensor([0.6]).double(), torch.tensor([0.8]).double()))
    with pytest.raises(ValueError, match="this network has learned none"):
        term(Prediction(x, x), x, t, linear(), variance="learned_range")
    with pytest.raises(ValueError, match="unknown variance 'middle'"):
        term(Prediction(x, x), x, t, linear(), variance="middle")


def as_published(x, means, log_scales):
    """The decoder's log likelihood as guided-diffusion computes it, written out."""

    def approximate_cdf(value):
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (value + 0.044715 * value**3)))

    centred, inverse_deviation = x - means, torch.exp(-log_scales)
    upper = approximate_cdf(inverse_deviation * (centred + 1.0 / 255.0))
    lower = approximate_cdf(inverse_deviation * (centred - 1.0 / 255.0))
    first, last = upper.clamp(min=1e-12).log(), (1.0 - lower).clamp(min=1e-12).log()
    between = (upper - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, between))


@pytest.mark.parametrize("log_var", [-12.0, -8.0, -3.0, 1.0])
@pytest.mark.parametrize("mean", [-1.2, 0.0021, 0.7])
def test_the_approximation_is_that_of_published_figures(mean, log_var):
    mean, log_var = (torch.full_like(LEVELS, value) for value in (mean, log_var))
    assert torch.allclose(log_level_tanh(LEVELS, mean, log_var), as_published(LEVELS, mean, log_var / 2), rtol=1e-12)


def test_the_approximation_errs_by_two_in_ten_thousand_at_most():
    """The distribution function alone is read from the darkest level, whose probability is that below -1 + 1/255."""
    x = torch.linspace(-6, 6, 20001).double()
    zero, dark = torch.zeros_like(x), torch.full_like(x, -1.0)
    mean = -1 + 1 / 255 - x
    error = (log_level_tanh(dark, mean, zero).exp() - ndtr(x)).abs()
    assert 1e-4 < error.max() < 2e-4
    assert (log_level(dark, mean, zero).exp() - ndtr(x)).abs().max() < 1e-14
    for log_var in (-9.0, -4.0):
        variance = torch.full_like(LEVELS, log_var)
        exact, near = (f(LEVELS, torch.zeros_like(LEVELS), variance).exp() for f in (log_level, log_level_tanh))
        assert 0 < (exact - near).abs().max() < 4e-4, "a difference of two such functions"


def test_only_the_term_at_zero_is_approximated():
    schedule = linear(5)
    x_0 = LEVELS[torch.arange(12).view(1, 3, 2, 2) * 20]
    terms = [*nll(Gaussian(schedule, 0.1, 0.3), x_0, lambda t: torch.zeros_like(x_0))]
    assert [bool((each.bits == each.bits_tanh).all()) for each in terms] == [True] * 4 + [False]
    p = Gaussian(schedule, 0.1, 0.3)(
        schedule.add_noise(x_0, torch.zeros_like(x_0), torch.tensor([0])), torch.tensor([0])
    )
    small = log_variance(schedule, torch.tensor([0]), "small")
    expected = -as_published(x_0, p.x_0.clamp(-1, 1), small / 2).mean() / math.log(2)
    assert terms[-1].bits_tanh.item() == pytest.approx(expected.item(), rel=1e-9)
