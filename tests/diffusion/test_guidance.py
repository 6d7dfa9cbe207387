import torch

from ldm_kit.data.toy import Gaussian, Mixture
from ldm_kit.diffusion.guidance import ClassifierFree
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import linear, trailing

TWO = Mixture(linear(), torch.tensor([[-1.0], [2.0]]), torch.tensor([0.2, 0.4]), torch.tensor([0.3, 0.7]))
X, T = torch.randn(16, 1).double(), torch.randint(0, 1000, (16,))


def sampled(denoiser, cond, count=10_000):
    *_, state = ddim(denoiser, torch.randn(count, 1).double(), trailing(1000, 100), cond)
    return state.x


def test_scale_1_is_no_guidance_and_asks_once():
    calls = []

    def counted(x, t, cond=None):
        calls.append(cond)
        return TWO(x, t, cond)

    counted.schedule = TWO.schedule
    guided = ClassifierFree(counted, None, 1)(X, T, 1)
    assert torch.equal(guided.x_0, TWO(X, T, 1).x_0)
    assert calls == [1]


def test_scale_0_is_the_null_condition():
    guided = ClassifierFree(TWO, None, 0.0)(X, T, 1)
    assert torch.equal(guided.eps, TWO(X, T).eps)


def test_guidance_extrapolates_both_views_of_one_fact():
    guided, (a, s) = ClassifierFree(TWO, None, 3.0)(X, T, 1), TWO.schedule.at(T)
    assert torch.allclose(a[:, None] * guided.x_0 + s[:, None] * guided.eps, X)
    yes, no = TWO(X, T, 1), TWO(X, T)
    assert torch.allclose(guided.eps, no.eps + 3 * (yes.eps - no.eps))


def test_guidance_wraps_guidance():
    inner = ClassifierFree(TWO, None, 2.0)
    outer = ClassifierFree(inner, 0, 1.5)
    assert outer.schedule is TWO.schedule
    assert outer(X, T, 1).x_0.shape == X.shape


def test_the_whole_mixture_has_its_weights():
    x = sampled(TWO, None)
    assert abs((x > 0.5).double().mean() - 0.7) < 0.02


def test_scale_1_reaches_the_component_and_more_goes_beyond():
    x = sampled(ClassifierFree(TWO, None, 1.0), 1)
    assert abs(x.mean() - 2.0) < 0.02
    assert abs(x.std() - 0.4) < 0.02
    assert sampled(ClassifierFree(TWO, None, 4.0), 1).std() < 0.4  # further from the other, and less various


def test_guidance_may_differ_between_pictures():
    x = sampled(ClassifierFree(TWO, None, 1.0), torch.tensor([0, 1]).repeat(5_000))
    assert abs(x[::2].mean() + 1.0) < 0.02
    assert abs(x[1::2].mean() - 2.0) < 0.02


def test_the_toy_posterior_is_bayes():
    share = TWO.posterior(torch.tensor([[-1.0], [2.0]]).double(), torch.tensor([0, 0]))
    assert torch.allclose(share.sum(1), torch.ones(2).double())
    assert share[0, 0] > 0.999
    assert share[1, 1] > 0.999
    assert torch.allclose(TWO.posterior(X, torch.full((16,), 999)), TWO.weights.double(), atol=0.1)


def test_the_toy_denoisers_agree():
    one = Mixture(linear(), torch.tensor([[2.0]]), torch.tensor([0.4]), torch.ones(1))
    for mixture, cond in ((one, None), (TWO, 1)):
        found, expected = mixture(X, T, cond), Gaussian(linear(), 2.0, TWO.stds[1].item())(X, T)
        assert torch.allclose(found.x_0, expected.x_0)
        assert torch.allclose(found.eps, expected.eps)
