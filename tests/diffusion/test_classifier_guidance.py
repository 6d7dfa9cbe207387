"""Guidance by a classifier, against a mixture whose exact classifier and exact posterior are formulas."""

from itertools import pairwise

import pytest
import torch

from ldm_kit.diffusion.analytic import Mixture
from ldm_kit.diffusion.denoiser import Clipped, NetworkDenoiser
from ldm_kit.diffusion.guidance import ClassifierFree, ClassifierGradient, ClassifierGuided
from ldm_kit.diffusion.prediction import expand_like, from_prediction
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.samplers import ddim, ddpm
from ldm_kit.diffusion.schedule import flow, linear, scaled_linear, zero_terminal
from tests.diffusion.probe import last

SCHEDULES = {"eps": linear(), "v": zero_terminal(scaled_linear()), "x0": linear(), "flow": flow()}
MADE_BY = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]).double()  # p(label | component)
COUNT = 1500
Z = torch.randn(COUNT, 1, generator=torch.Generator().manual_seed(1)).double()
LABELS = torch.ones(COUNT, dtype=torch.long)


def three(schedule):
    means, weights = torch.tensor([[-1.5], [0.0], [1.5]]), torch.tensor([0.5, 0.3, 0.2])
    return Mixture(schedule, means.double(), torch.tensor([0.3, 0.3, 0.3]), weights.double())


def networked(target):
    """The mixture as a network of that target, so that the whole way from its output is walked."""
    mixture = three(SCHEDULES[target])
    network = lambda x, t, cond: from_prediction(target, mixture(x, t, cond), *mixture.schedule.alpha_sigma(t))  # noqa: E731
    return NetworkDenoiser(network, mixture.schedule, target)


def gradient(mixture, scale=1.0, labels=LABELS):
    return ClassifierGradient(lambda x, t: (mixture.log_posterior(x, t).exp() @ MADE_BY).log(), labels, scale)


def shares(mixture, x):
    """How much of x each component has made, as it stands in clean data."""
    return mixture.posterior(x, torch.full((len(x),), -1)).mean(0)


def noise(step, shape):
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(100 + step))


@pytest.mark.parametrize("target", SCHEDULES)
def test_the_exact_classifier_makes_the_exact_posterior_at_every_time(target):
    mixture, t = three(SCHEDULES[target]), torch.tensor([1, 30, 200, 700, 950, 998])
    x = torch.linspace(-2, 2, 6).double()[:, None]
    found = ClassifierGuided(networked(target), gradient(mixture, labels=LABELS[:6]))(x, t)
    truth = mixture.given(MADE_BY[:, 1])(x, t)
    assert torch.allclose(found.eps, truth.eps, atol=1e-6)
    assert torch.allclose(found.x_0, truth.x_0, atol=1e-4)


@pytest.mark.parametrize("target", SCHEDULES)
def test_algorithm_2_reaches_the_posterior_weights(target):
    mixture = three(SCHEDULES[target])
    truth = mixture.given(MADE_BY[:, 1]).weights
    found = shares(mixture, last(ddim(ClassifierGuided(networked(target), gradient(mixture)), Z, trailing(1000, 60))))
    assert (found - truth).abs().max() < 0.03
    assert (truth - mixture.weights).abs().max() > 0.25


@pytest.mark.parametrize(
    ("variance", "target"), [("small", "eps"), ("small", "v"), ("small", "flow"), ("large", "eps")]
)
def test_algorithm_1_reaches_the_posterior_weights(variance, target):
    mixture, times = three(SCHEDULES[target]), trailing(1000, 125)
    truth = mixture.given(MADE_BY[:, 1]).weights
    guided = ddpm(networked(target), Z, times, noise=noise, variance=variance, gradient=gradient(mixture))
    assert (shares(mixture, last(guided)) - truth).abs().max() < 0.05


@pytest.mark.parametrize("algorithm", [1, 2])
def test_more_scale_is_more_of_the_label(algorithm):
    mixture, times = three(linear()), trailing(1000, 40)

    def share(scale):
        g = gradient(mixture, scale)
        if algorithm == 1:
            return (shares(mixture, last(ddpm(mixture, Z, times, noise=noise, gradient=g))) @ MADE_BY)[1]
        return (shares(mixture, last(ddim(ClassifierGuided(mixture, g), Z, times))) @ MADE_BY)[1]

    found = [share(scale) for scale in (-1.0, 0.0, 1.0, 3.0)]
    assert all(more > less + 0.03 for less, more in pairwise(found))
    assert found[-1] > 0.8


def test_algorithm_1_adds_variance_times_gradient():
    mixture, times, seen = three(linear()), [999, 400, 100, -1], []

    def pull(x, t):
        seen.append((x, int(t[0])))
        return torch.full_like(x, 2.0)

    still = lambda step, shape: torch.zeros(COUNT, *shape)  # noqa: E731
    for variance in ("small", "large"):
        for kind, moved in zip(
            ddpm(mixture, Z, times, noise=still, variance=variance),
            ddpm(mixture, Z, times, noise=still, variance=variance, gradient=pull),
            strict=True,
        ):
            if kind.t == 400:
                a, b = (SCHEDULES["eps"].a[t].square() for t in (999, 400))
                large = 1 - a / b
                expected = large * (1 - b) / (1 - a) if variance == "small" else large
                assert torch.allclose(moved.x - kind.x, 2 * expected)
            if kind.t == -1 and variance == "small":
                assert torch.equal(moved.x, moved.prediction.x_0)  # no variance, no guidance
    assert [t for _, t in seen[:3]] == times[:-1]
    assert torch.equal(seen[0][0], Z)


def test_what_is_clipped_is_clipped_before_the_shift_and_not_again():
    schedule = linear()
    inner = Clipped(NetworkDenoiser(lambda x, t, cond: -0.5 * x, schedule, "eps"))
    x, t = torch.linspace(-3, 3, 7).double()[:, None], torch.full((7,), 300)
    found = ClassifierGuided(inner, lambda x, t: torch.full_like(x, 1.5))(x, t)
    a, s = (expand_like(c, x) for c in schedule.alpha_sigma(t))
    clipped = ((x + 0.5 * s * x) / a).clamp(-1, 1)
    eps = (x - a * clipped) / s - 1.5 * s
    assert torch.allclose(found.eps, eps)
    assert torch.allclose(found.x_0, (x - s * eps) / a)
    assert found.x_0.max() > 1.1  # moved beyond, by s^2 / a times the gradient
    assert ClassifierGuided(inner, lambda x, t: torch.zeros_like(x))(x, t).x_0.abs().max() <= 1 + 1e-12
    outer = Clipped(ClassifierGuided(inner, lambda x, t: torch.full_like(x, 1.5)))(x, t)
    assert outer.x_0.abs().max() <= 1


def test_in_pure_noise_x_0_stays():
    mixture, x, t = three(SCHEDULES["v"]), Z[:4], torch.full((4,), 999)
    found = ClassifierGuided(mixture, lambda x, t: torch.ones_like(x))(x, t)
    assert torch.equal(found.x_0, mixture(x, t).x_0)
    assert torch.allclose(found.eps, x - 1)


def test_classifier_free_and_classifier_nest():
    """Both at scale 1: the condition picks components 1 and 2 out, the classifier weighs them, as Bayes does."""
    mixture = three(linear())
    g = gradient(mixture, labels=LABELS[:5])
    x, t = torch.linspace(-1, 2, 5).double()[:, None], torch.full((5,), 400)
    found = ClassifierGuided(ClassifierFree(mixture, None, 3.0), g)(x, t, 2)
    plain = ClassifierFree(mixture, None, 3.0)(x, t, 2)
    a, s = (expand_like(c, x) for c in mixture.schedule.alpha_sigma(t))
    assert torch.allclose(found.eps, plain.eps - s * g(x, t))
    assert torch.allclose(a * found.x_0 + s * found.eps, x)


def test_the_gradient_is_of_the_selected_log_probability_in_float32():
    seen = []

    def log_probs(x, t):
        seen.append((x.dtype, torch.is_grad_enabled(), t.tolist()))
        return torch.stack([x.sum(1), 2 * x.square().sum(1), t * x[:, 0]], dim=1)

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.bfloat16)
    g = ClassifierGradient(log_probs, torch.tensor([0, 1, 2]), 0.5)
    with torch.no_grad():
        found = g(x, torch.tensor([7, 8, 9]))
    assert found.tolist() == [[0.5, 0.5], [6.0, 8.0], [4.5, 0.0]]
    assert seen == [(torch.float32, True, [7, 8, 9])]
    assert found.dtype == torch.bfloat16


def test_the_gradient_leaves_no_trace():
    weight = torch.nn.Parameter(torch.randn(2, 3).double())
    x = torch.randn(4, 2).double().requires_grad_()
    g = ClassifierGradient(lambda x, t: (x @ weight).log_softmax(1), torch.tensor([0, 1, 2, 0]), 2.0)
    found = g(x, torch.zeros(4).long())
    assert weight.grad is None
    assert x.grad is None
    assert not found.requires_grad
    share = (x @ weight).softmax(1)
    expected = 2 * (weight.T[[0, 1, 2, 0]] - share @ weight.T)
    assert torch.allclose(found, expected)


def test_a_label_for_each_picture():
    with pytest.raises(ValueError, match="one label for each of 2 pictures, got 3"):
        ClassifierGradient(lambda x, t: x, torch.tensor([0, 1, 1]), 1.0)(torch.zeros(2, 2), torch.zeros(2).long())
