import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_kit.diffusion.denoiser import Clipped, NetworkDenoiser
from ldm_kit.diffusion.prediction import Prediction, expand_like, from_prediction, split_variance, to_prediction
from ldm_kit.diffusion.schedule import flow, scaled_linear, zero_terminal

SCHEDULES = {"preserving": scaled_linear(), "zero": zero_terminal(scaled_linear()), "flow": flow()}
FITTING = [("eps", "preserving"), ("x0", "preserving"), ("v", "preserving"), ("x0", "zero"), ("v", "zero")]
FITTING += [("eps", "flow"), ("x0", "flow"), ("flow", "flow")]


def pictures(seed, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 2, 4, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("target", "kind"), FITTING)
@given(seed=st.integers(0, 2**31), times=st.lists(st.integers(1, 999), min_size=3, max_size=3))
def test_the_truth_is_recovered_exactly(target, kind, seed, times):
    (x_0, eps), t, schedule = pictures(seed), torch.tensor(times), SCHEDULES[kind]
    x = schedule.add_noise(x_0, eps, t)
    out = from_prediction(target, Prediction(x_0, eps), *schedule.alpha_sigma(t))
    found = to_prediction(target, out, x, *schedule.alpha_sigma(t))
    assert torch.allclose(found.x_0, x_0, atol=1e-9)
    assert torch.allclose(found.eps, eps, atol=1e-9)


@pytest.mark.parametrize("target", ["x0", "v"])
def test_pure_noise_is_no_division_by_zero(target):
    (x_0, eps), t, schedule = pictures(0), torch.full((3,), 999), SCHEDULES["zero"]
    out = from_prediction(target, Prediction(x_0, eps), *schedule.alpha_sigma(t))
    found = to_prediction(target, out, schedule.add_noise(x_0, eps, t), *schedule.alpha_sigma(t))
    assert torch.allclose(found.x_0, x_0)
    assert torch.allclose(found.eps, eps)


@given(seed=st.integers(0, 2**31), t=st.integers(1, 999))
def test_both_views_make_the_noisy_picture(seed, t):
    (out, x), times = pictures(seed), torch.full((3,), t)
    for target, kind in FITTING:
        if (t, kind) == (999, "zero"):
            continue
        a, s = SCHEDULES[kind].alpha_sigma(times)
        p = to_prediction(target, out, x, a, s)
        assert torch.allclose(expand_like(a, x) * p.x_0 + expand_like(s, x) * p.eps, x, atol=1e-9)


def test_coefficients_take_the_shape_and_dtype_of_the_picture():
    c = expand_like(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16))
    assert c.shape == (2, 1, 1, 1)
    assert c.dtype == torch.bfloat16


def test_a_network_is_a_denoiser_in_the_dtype_of_the_picture():
    x, t, schedule = torch.randn(2, 1, 4, 4), torch.tensor([0, 999]), SCHEDULES["preserving"]
    denoiser = NetworkDenoiser(lambda x, t, cond: (cond * x).bfloat16(), schedule, "v")
    a, s = schedule.alpha_sigma(t)
    expected = to_prediction("v", (2 * x).bfloat16().float(), x, a, s)
    found = denoiser(x, t, 2)
    assert found.x_0.dtype == torch.float32
    assert torch.equal(found.x_0, expected.x_0)
    assert torch.equal(found.eps, expected.eps)


def test_clipping_keeps_both_views_of_one_fact():
    x, t, schedule = 3 * torch.randn(2, 1, 4, 4).double(), torch.tensor([10, 900]), SCHEDULES["preserving"]
    p = Clipped(NetworkDenoiser(lambda x, t, cond: x, schedule, "eps"), -0.5, 0.5)(x, t)
    a, s = schedule.alpha_sigma(t)
    assert p.x_0.abs().max() == 0.5
    assert torch.allclose(expand_like(a, x) * p.x_0 + expand_like(s, x) * p.eps, x)


def test_lerp_mixes_both_views_and_keeps_the_first_fraction():
    one, other = (Prediction(torch.full((2, 1), v), torch.full((2, 1), -v), torch.full((2, 1), v)) for v in (1.0, 3.0))
    for weight, expected in ((0.0, [1, 1]), (0.25, [1.5, 1.5]), (2.0, [5, 5]), (torch.tensor([[0.0], [1.0]]), [1, 3])):
        found = one.lerp(other, weight)
        assert found.x_0[:, 0].tolist() == expected
        assert found.eps[:, 0].tolist() == [-value for value in expected]
        assert torch.equal(found.fraction, one.fraction)


def test_the_second_half_of_the_channels_is_the_variance():
    out = torch.tensor([[5.0, 6.0, -1.0, 0.5]])
    plain, fraction = split_variance(out)
    assert plain.tolist() == [[5.0, 6.0]]
    assert fraction.tolist() == [[0.0, 0.75]]
