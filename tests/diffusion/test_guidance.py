import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.guidance import Autoguidance, ClassifierFree, Interval, Rescaled
from ldm_kit.diffusion.prediction import Prediction, expand_like, from_prediction, to_prediction
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import linear, scaled_linear, zero_terminal

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
    guided, (a, s) = ClassifierFree(TWO, None, 3.0)(X, T, 1), TWO.schedule.alpha_sigma(T)
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


def counting(denoiser):
    calls = []

    def counted(x, t, cond=None):
        calls.append(cond)
        return denoiser(x, t, cond)

    counted.schedule, counted.calls = denoiser.schedule, calls
    return counted


def test_outside_the_interval_the_condition_alone_is_asked():
    x, inner = X[:3], counting(TWO)
    part = Interval(ClassifierFree(inner, None, 3.0), inner, 0.2, 0.6)
    for t in (0, 199, 601, 999):
        times = torch.full((3,), t)
        found = part(x, times, 1)
        assert torch.equal(found.eps, TWO(x, times, 1).eps)
        assert inner.calls == [1]
        inner.calls.clear()
    for t in (200, 600):
        times = torch.full((3,), t)
        assert torch.equal(part(x, times, 1).eps, ClassifierFree(TWO, None, 3.0)(x, times, 1).eps)
        assert inner.calls == [1, None]
        inner.calls.clear()


def test_joined_conditions_are_asked_in_one_call():
    asked = []

    def denoiser(x, t, cond=None):
        asked.append((len(x), cond.tolist()))
        plain = TWO(x, t)
        here = cond[:, None].to(x)
        return Prediction(plain.x_0 + here, plain.eps - here, here)

    denoiser.schedule = TWO.schedule
    yes, no = torch.arange(16), torch.arange(16) - 100
    two = ClassifierFree(denoiser, no, 3.0)(X, T, yes)
    one = ClassifierFree(denoiser, no, 3.0, join=lambda a, b: torch.cat([a, b]))(X, T, yes)
    assert asked == [(16, yes.tolist()), (16, no.tolist()), (32, [*yes.tolist(), *no.tolist()])]
    for found, expected in zip(one, two, strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.equal(one.fraction[:, 0], yes.to(one.fraction))  # that of the wished condition
    asked.clear()
    ClassifierFree(denoiser, no, 3.0, join=lambda a, b: None)(X, T, yes)
    ClassifierFree(denoiser, no, 1.0, join=lambda a, b: torch.cat([a, b]))(X, T, yes)
    assert [count for count, _ in asked] == [16, 16, 16]


def test_the_interval_is_each_pictures_own():
    t, whole = torch.tensor([100, 300, 700]), ClassifierFree(TWO, None, 3.0)
    found = Interval(whole, TWO, 0.2, 0.6)(X[:3], t, 1)
    for view in ("x_0", "eps"):
        plain, guided = getattr(TWO(X[:3], t, 1), view), getattr(whole(X[:3], t, 1), view)
        assert torch.equal(getattr(found, view), torch.stack([plain[0], guided[1], plain[2]]))


class Fixed:
    """Says eps 1 2 3 4 under the condition and 0 0 4 4 without, whatever x is."""

    schedule = linear()

    def __call__(self, x, t, cond=None):
        eps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]] if cond else [[[0.0, 0.0], [4.0, 4.0]]]).double().expand_as(x)
        return to_prediction("eps", eps, x, *self.schedule.alpha_sigma(t))._replace(
            fraction=torch.full_like(x, bool(cond))
        )


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_by_hand_and_by_diffusers(phi):
    x, t = torch.randn(5, 1, 2, 2).double(), torch.tensor([0, 10, 500, 900, 999])
    found = Rescaled(ClassifierFree(Fixed(), None, 2.0), phi, "eps")(x, t, True)
    guided = torch.tensor([2.0, 4.0, 2.0, 4.0]).double()  # its deviation is that of 1 2 3 4 times 2 / sqrt 5
    assert torch.allclose(found.eps.flatten(1), (guided * (1 - phi + phi * 5**0.5 / 2)).expand(5, 4))
    yes, no = Fixed()(x, t, True).eps, Fixed()(x, t).eps
    assert torch.allclose(found.eps, rescale_noise_cfg(no + 2 * (yes - no), yes, phi))
    a, s = Fixed.schedule.alpha_sigma(t)
    assert torch.allclose(expand_like(a, x) * found.x_0 + expand_like(s, x) * found.eps, x)
    assert (found.fraction == 1).all()


def test_rescale_of_v_keeps_the_deviation_even_in_pure_noise():
    schedule = zero_terminal(scaled_linear())
    means = torch.tensor([[-1.0, 0.5, 2.0], [2.0, 0.0, -1.0]])
    mixture = Mixture(schedule, means, torch.tensor([0.2, 0.4]), torch.tensor([0.3, 0.7]))
    x, t = torch.randn(4, 3).double(), torch.tensor([0, 300, 998, 999])
    a, s = schedule.alpha_sigma(t)
    free = ClassifierFree(mixture, None, 4.0)
    found = Rescaled(free, 1.0, "v")(x, t, 1)
    v, aim = from_prediction("v", found, a, s), from_prediction("v", mixture(x, t, 1), a, s)
    assert torch.allclose(v.std(1), aim.std(1))
    assert torch.allclose(expand_like(a, x) * found.x_0 + expand_like(s, x) * found.eps, x)
    assert free(x, t, 1).x_0[-1].std() > 2 * found.x_0[-1].std()
    in_eps = Rescaled(free, 1.0, "eps")(x, t, 1)
    assert torch.isfinite(in_eps.x_0).all()


@pytest.mark.parametrize("prediction_type", ["eps", "v", "x0"])
def test_rescale_leaves_an_output_without_deviation_as_it_is(prediction_type):
    """A zero-initialised network says 0 whatever the condition: 0 / 0."""
    zero = NetworkDenoiser(lambda x, t, cond: torch.zeros_like(x), scaled_linear(), prediction_type)
    x, t = torch.randn(2, 3, 4), torch.tensor([30, 900])
    plain, found = zero(x, t), Rescaled(ClassifierFree(zero, None, 3.0), 0.7, prediction_type)(x, t)
    torch.testing.assert_close(found.x_0, plain.x_0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.eps, plain.eps, rtol=1e-5, atol=1e-5)


def former(denoiser, x, t, cond, scale, phi, interval, prediction_type):
    """Guidance, rescaling and interval in one formula, as one class had them before they became wrappers."""
    yes, no = denoiser(x, t, cond), denoiser(x, t)
    share = t / len(denoiser.schedule)
    inside = (interval[0] <= share) & (share <= interval[1])
    if scale == 1 or not inside.any():
        return yes
    x_0, eps = torch.lerp(no.x_0, yes.x_0, scale), torch.lerp(no.eps, yes.eps, scale)
    if phi > 0:
        a, s = denoiser.schedule.alpha_sigma(t)
        out = from_prediction(prediction_type, Prediction(x_0, eps), a, s)
        aim = from_prediction(prediction_type, yes, a, s)
        out = out * expand_like(1 + phi * (aim.flatten(1).std(1) / out.flatten(1).std(1) - 1), x)
        again, old = to_prediction(prediction_type, out, x, a, s), Prediction(x_0, eps)
        x_0 = torch.where(expand_like(a, x) > 0, again.x_0, old.x_0) if prediction_type == "eps" else again.x_0
        eps = torch.where(expand_like(s, x) > 0, again.eps, old.eps) if prediction_type == "x0" else again.eps
    here = expand_like(inside, x).bool()
    return Prediction(torch.where(here, x_0, yes.x_0), torch.where(here, eps, yes.eps))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.6), (0.0, 0.0)])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("prediction_type", ["eps", "v", "x0"])
def test_wrappers_compose_to_the_former_class_bit_for_bit(prediction_type, scale, phi, interval):
    means = torch.tensor([[-1.0, 0.5, 2.0], [2.0, 0.0, -1.0]])
    for schedule in (linear(), zero_terminal(scaled_linear())):
        mixture = Mixture(schedule, means, torch.tensor([0.2, 0.4]), torch.tensor([0.3, 0.7]))
        free = ClassifierFree(mixture, None, scale)
        composed = Interval(Rescaled(free, phi, prediction_type), mixture, *interval)
        for times in ([0, 300, 999], [300, 300, 300], [999, 999, 999], [100, 100, 100]):
            x, t = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)), torch.tensor(times)
            found, expected = composed(x, t, 1), former(mixture, x, t, 1, scale, phi, interval, prediction_type)
            assert torch.equal(found.x_0, expected.x_0)
            assert torch.equal(found.eps, expected.eps)


def test_wrappers_ask_no_more_often_than_guidance_alone():
    sizes = []

    def denoiser(x, t, cond):
        sizes.append(len(x))
        return Prediction(x + cond[:, None], x - cond[:, None])

    denoiser.schedule = TWO.schedule
    ones = torch.ones(4).double()
    for join, expected in ((lambda a, b: torch.cat([a, b]), [8]), (None, [4, 4])):
        free = ClassifierFree(denoiser, 0 * ones, 3.0, join)
        composed = Interval(Rescaled(free, 0.7, "eps"), denoiser, 0.2, 0.6)
        for time, calls in ((300, expected), (700, [4])):
            sizes.clear()
            composed(torch.randn(4, 5).double(), torch.full((4,), time), ones)
            assert sizes == calls


@pytest.mark.parametrize("interval", [(0.5, 0.4), (-0.1, 0.4), (0, 1.1)])
def test_an_impossible_interval_is_refused(interval):
    with pytest.raises(ValueError, match="in an interval of t / T within 0 to 1"):
        Interval(ClassifierFree(TWO, None, 2.0), TWO, *interval)


def test_an_impossible_rescaling_is_refused():
    with pytest.raises(ValueError, match=r"share from 0 to 1, got 1\.5"):
        Rescaled(ClassifierFree(TWO, None, 2.0), 1.5, "eps")


def test_autoguidance_extrapolates_from_the_guide_model_under_the_same_condition():
    good, bad = counting(Gaussian(linear(), 2.0, 0.4)), counting(Gaussian(linear(), 1.0, 0.8))
    found = Autoguidance(good, bad, 2.0)(X, T, "any")
    assert good.calls == bad.calls == ["any"]
    assert torch.allclose(found.eps, 2 * good(X, T).eps - bad(X, T).eps)
    a, s = good.schedule.alpha_sigma(T)
    assert torch.allclose(expand_like(a, X) * found.x_0 + expand_like(s, X) * found.eps, X)
    bad.calls.clear()
    assert torch.equal(Autoguidance(good, bad, 1.0)(X, T).x_0, good(X, T).x_0)
    assert bad.calls == []


def test_autoguidance_undoes_what_the_guide_model_does_more_of():
    """The worse is as far off again as the better: scale 2 is the truth."""
    truth = Gaussian(linear(), 2.0, 0.4)

    def off(by):
        def denoiser(x, t, cond=None):
            return to_prediction("eps", truth(x, t).eps + by, x, *truth.schedule.alpha_sigma(t))

        denoiser.schedule = truth.schedule
        return denoiser

    x = sampled(Autoguidance(off(0.1), off(0.2), 2.0), None)
    assert abs(x.mean() - 2.0) < 0.02
    assert abs(sampled(off(0.1), None).mean() - 2.0) > 0.05


def test_autoguidance_takes_models_of_one_schedule():
    for other in (scaled_linear(), linear(500)):
        with pytest.raises(ValueError, match="must have the noise schedule of the model"):
            Autoguidance(Gaussian(linear(), 0.0, 1.0), Gaussian(other, 0.0, 1.0), 2.0)
