"""Every guidance with every solver for which it is defined: where the answer is a formula, it is reached."""

from functools import partial

import pytest
import torch

from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.denoiser import NetworkDenoiser, Thresholded
from ldm_kit.diffusion.guidance import Autoguidance, ClassifierFree, ClassifierGradient, ClassifierGuided, Interval
from ldm_kit.diffusion.prediction import from_prediction, to_prediction
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.rng import initial_noise, step_noise
from ldm_kit.diffusion.samplers import ddpm
from ldm_kit.diffusion.schedule import flow, linear, scaled_linear, zero_terminal
from ldm_kit.solvers.samplers import sample
from ldm_kit.solvers.table import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy 2
SCHEDULES = {"eps": linear(), "v": zero_terminal(scaled_linear()), "flow": flow()}
COUNT = 60
SEEDS = range(COUNT)
START = initial_noise(SEEDS, (1,))
LABELS = torch.ones(COUNT, dtype=torch.long)


def two(target):
    means, stds = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.25, 0.25])
    return Mixture(SCHEDULES[target], means, stds, torch.tensor([0.6, 0.4]))


def networked(target):
    mixture = two(target)
    network = lambda x, t, cond: from_prediction(target, mixture(x, t, cond), *mixture.schedule.alpha_sigma(t))  # noqa: E731
    return NetworkDenoiser(network, mixture.schedule, target)


def biased(target, by):
    """A model of the second component that is off by a constant in x_0."""
    inner = Gaussian(SCHEDULES[target], 1.0, 0.25)

    def denoiser(x, t, cond=None):
        p, (a, s) = inner(x, t), inner.schedule.alpha_sigma(t)
        return p._replace(x_0=p.x_0 + by) if t[0] == 0 else to_prediction("x0", p.x_0 + by, x, a, s)

    denoiser.schedule = inner.schedule
    return denoiser


def gradient(target, scale=1.0):
    return ClassifierGradient(two(target).log_posterior, LABELS, scale)


def classifier_free(target):
    return ClassifierFree(networked(target), 0, 1.0), 1


def interval(target):
    """Guided only where it matters little: noise says next to nothing of the component."""
    return Interval(ClassifierFree(networked(target), 0, 3.0), networked(target), 0.99, 1.0), 1


def extrapolated(target):
    """From a condition that says nothing: the same as none."""
    return ClassifierFree(biased(target, 0.0), None, 4.0), 1


def classifier(target):
    return ClassifierGuided(networked(target), gradient(target)), None


def both(target):
    """Half the way to the condition by each: for exact models both point to it alike (Bayes)."""
    return ClassifierGuided(ClassifierFree(networked(target), None, 0.5), gradient(target, 0.5)), 1


def autoguided(target):
    return Autoguidance(biased(target, 0.1), biased(target, 0.2), 2.0), None


def thresholded(target):
    return Thresholded(networked(target), largest=5.0, quantile=1.0), 1


GUIDANCES = [classifier_free, interval, extrapolated, classifier, both, autoguided]


@pytest.mark.parametrize("target", SCHEDULES)
@pytest.mark.parametrize("name", [*SAMPLERS, "diffusers:DEISMultistepScheduler"])
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_every_guidance_with_every_solver_reaches_the_second_component(guidance, name, target):
    denoiser, cond = guidance(target)
    *_, state = sample(name, denoiser, START, trailing(1000, 20), cond, seeds=SEEDS)
    assert state.t == -1
    assert abs(state.x.mean() - 1.0) < 0.12  # euler-maruyama is of order 1
    assert 0.1 < state.x.std() < 0.4
    assert (state.x > 0).double().mean() > 0.97


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("target", SCHEDULES)
def test_thresholds_hold_with_every_solver(name, target):
    """The second component's pictures reach beyond 1 in one number of two, and are taken back."""
    denoiser, cond = thresholded(target)
    *_, state = sample(name, denoiser, START, trailing(1000, 12), cond, seeds=SEEDS)
    assert state.prediction.x_0.abs().max() <= 1 + 1e-5
    assert state.x.abs().max() < 1.05


@pytest.mark.parametrize("target", SCHEDULES)
@pytest.mark.parametrize("name", ["ddpm", "ddpm-large"])
def test_a_gradient_shifts_the_mean_of_ddpm(name, target):
    times = trailing(1000, 40)
    *_, state = sample(name, networked(target), START, times, seeds=SEEDS, gradient=gradient(target, 2.0))
    assert (state.x > 0).double().mean() > 0.9
    *_, direct = ddpm(
        networked(target),
        START,
        times,
        noise=partial(step_noise, SEEDS),
        variance="large" if name == "ddpm-large" else "small",
        gradient=gradient(target, 2.0),
    )
    assert torch.equal(state.x, direct.x)


@pytest.mark.parametrize("name", [*sorted(set(SAMPLERS) - {"ddpm", "ddpm-large"}), "diffusers:DDPMScheduler"])
def test_a_gradient_is_for_ddpm_alone(name):
    with pytest.raises(ValueError, match=r"has no variance by which a gradient could shift its mean .*; expected ddpm"):
        sample(name, two("eps"), START, [999, -1], seeds=SEEDS, gradient=gradient("eps"))


def test_eta_is_for_ddim_alone_and_needs_seeds():
    times = trailing(1000, 5)
    for name in set(SAMPLERS) - {"ddim"}:
        with pytest.raises(ValueError, match=r"has no eta, got 0\.5; expected ddim"):
            sample(name, two("eps"), START, times, seeds=SEEDS, eta=0.5)
    with pytest.raises(ValueError, match="ddim adds noise and needs one seed for each of 60 pictures"):
        sample("ddim", two("eps"), START, times, eta=0.5)
    *_, one = sample("ddim", two("eps"), START, times, seeds=SEEDS, eta=1.0)
    *_, other = sample("ddpm", two("eps"), START, times, seeds=SEEDS)
    assert torch.allclose(one.x, other.x, atol=1e-5)


def test_ddpm_takes_the_variance_that_the_network_learned():
    """Unless another is wished: fraction 1 is the large variance."""

    def learned(x, t, cond=None):
        return two("eps")(x, t)._replace(fraction=torch.ones_like(x))

    learned.schedule = SCHEDULES["eps"]
    drawn = partial(sample, "ddpm", learned, START, trailing(1000, 10), seeds=SEEDS)
    *_, auto = drawn()
    *_, small = drawn(variance="small")
    *_, large = sample("ddpm-large", two("eps"), START, trailing(1000, 10), seeds=SEEDS)
    assert torch.allclose(auto.x, large.x, atol=1e-5)
    assert not torch.allclose(auto.x, small.x, atol=1e-2)
    *_, plain = sample("ddpm", two("eps"), START, trailing(1000, 10), seeds=SEEDS)
    assert torch.equal(plain.x, small.x)
