from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler

from ldm_kit.diffusion.analytic import Gaussian
from ldm_kit.diffusion.denoiser import Clipped, NetworkDenoiser, Thresholded
from ldm_kit.diffusion.guidance import Autoguidance, ClassifierFree, ClassifierGuided, Interval, Rescaled
from ldm_kit.diffusion.prediction import expand_like
from ldm_kit.diffusion.respacing import leading, trailing
from ldm_kit.diffusion.samplers import ddim, ddpm, euler_maruyama, heun
from ldm_kit.diffusion.schedule import flow, linear, scaled_linear, zero_terminal

T = torch.tensor([300, 300])


def still(step, shape):
    return torch.zeros(2, *shape)


def said(*pictures):
    """A denoiser that says these x_0, whatever it sees."""
    x_0 = torch.tensor(pictures).double()
    return NetworkDenoiser(lambda x, t, cond: x_0, linear(), "x0")


def learning(schedule=None):
    """A network of four channels, the last two of which say a fraction of 0.75 under a condition, else 0.5."""
    network = lambda x, t, cond: torch.cat([0.9 * x, torch.full_like(x, 0.5 if cond else 0.0)], dim=1)  # noqa: E731
    return NetworkDenoiser(network, schedule or linear(), "eps", learned_range=True)


def test_thresholding_by_hand():
    x = torch.randn(2, 5).double()
    denoiser = said([-4.0, 0.0, 1.0, 2.0, 3.0], [-0.5, 0.0, 0.1, 0.2, 0.9])
    found = Thresholded(denoiser, quantile=0.5)(x, T)
    expected = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 1.0], [-0.5, 0.0, 0.1, 0.2, 0.9]]).double()  # s = 2, and 0.2 -> 1
    assert torch.allclose(found.x_0, expected)
    a, s = (expand_like(c, x) for c in linear().alpha_sigma(T))
    assert torch.allclose(a * found.x_0 + s * found.eps, x)
    most = Thresholded(denoiser, quantile=1.0)(x, T)
    assert torch.allclose(most.x_0[0], torch.tensor([-4.0, 0.0, 1.0, 2.0, 3.0]).double() / 4)
    capped = Thresholded(denoiser, quantile=1.0, largest=2.0)(x, T)
    assert torch.allclose(capped.x_0[0], expected[0])


def test_thresholding_is_that_of_diffusers():
    pictures = torch.randn(2, 3, 4, 4) * torch.tensor([0.2, 3.0])[:, None, None, None]
    denoiser = NetworkDenoiser(lambda x, t, cond: pictures, linear(), "x0")
    theirs = DDPMScheduler(thresholding=True, sample_max_value=1e9)._threshold_sample(pictures)
    found = Thresholded(denoiser)(torch.randn(2, 3, 4, 4), T).x_0
    assert torch.allclose(found, theirs, atol=1e-6)
    assert found.abs().max() <= 1


@pytest.mark.parametrize("fields", [{"quantile": 0.0}, {"quantile": 1.1}, {"largest": 0.5}])
def test_impossible_thresholds_are_refused(fields):
    with pytest.raises(ValueError, match=r"expected a quantile in \(0, 1\] and a largest of 1 or more"):
        Thresholded(said([0.0]), **fields)


def test_a_learned_variance_is_the_second_half_of_the_channels():
    x = torch.randn(2, 2, 3, 3)
    found = learning()(x, T, cond=True)
    assert torch.equal(found.eps, 0.9 * x)
    assert torch.equal(found.fraction, torch.full_like(x, 0.75))


WRAPPERS = [
    Clipped,
    Thresholded,
    lambda d: ClassifierFree(d, None, 3.0),
    lambda d: Interval(Rescaled(ClassifierFree(d, None, 3.0), 0.5, "eps"), d, 0.1, 0.9),
    lambda d: Autoguidance(d, Gaussian(linear(), 0.0, 1.0), 2.0),
    lambda d: ClassifierGuided(d, lambda x, t: x),
    lambda d: ClassifierGuided(Clipped(ClassifierFree(d, None, 3.0)), lambda x, t: x),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_every_wrapper_keeps_the_learned_variance_of_the_condition_and_one_fact(wrap):
    x, denoiser = torch.randn(2, 2, 3, 3), wrap(learning())
    found = denoiser(x, T, True)
    assert torch.equal(found.fraction, torch.full_like(x, 0.75))
    a, s = (expand_like(c, x) for c in denoiser.schedule.alpha_sigma(T))
    assert torch.allclose(a * found.x_0 + s * found.eps, x, atol=1e-5)
    noise = lambda step, shape: torch.randn(2, *shape)  # noqa: E731
    *_, state = ddpm(denoiser, x, trailing(1000, 8), True, noise=noise, variance="learned_range")
    assert torch.isfinite(state.x).all()


def test_thresholds_in_pure_noise():
    schedule = zero_terminal(scaled_linear())
    found = Thresholded(Gaussian(schedule, 5.0, 0.1))(torch.randn(2, 4), torch.tensor([999, 999]))
    assert torch.allclose(found.x_0, torch.ones(2, 4))
    assert torch.isfinite(found.eps).all()


@pytest.mark.parametrize("wrap", [Clipped, Thresholded])
@pytest.mark.parametrize("sampler", [ddim, heun, partial(ddpm, noise=still), partial(euler_maruyama, noise=still)])
def test_flow_is_clean_at_time_0_and_stays_finite(sampler, wrap):
    """Its grids from 0 on ask for eps where s = 0, which no x_0 can give."""
    *_, state = sampler(wrap(Gaussian(flow(), 0.9, 0.5)), torch.randn(2, 5), leading(1000, 10))
    assert torch.isfinite(state.x).all()
    assert state.prediction.x_0.abs().max() <= 1
