import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_kit.diffusion.denoiser import Clipped, NetworkDenoiser
from ldm_kit.diffusion.loss import noised
from ldm_kit.diffusion.prediction import Prediction, expand_like, from_prediction, to_prediction
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
    x = noised(x_0, eps, t, schedule)
    out = from_prediction(target, Prediction(x_0, eps), *schedule.at(t))
    found = to_prediction(target, out, x, *schedule.at(t))
    assert torch.allclose(found.x_0, x_0, atol=1e-9)
    assert torch.allclose(found.eps, eps, atol=1e-9)


@pytest.mark.parametrize("target", ["x0", "v"])
def test_pure_noise_is_no_division_by_zero(target):
    (x_0, eps), t, schedule = pictures(0), torch.full((3,), 999), SCHEDULES["zero"]
    out = from_prediction(target, Prediction(x_0, eps), *schedule.at(t))
    found = to_prediction(target, out, noised(x_0, eps, t, schedule), *schedule.at(t))
    assert torch.allclose(found.x_0, x_0)
    assert torch.allclose(found.eps, eps)


@given(seed=st.integers(0, 2**31), t=st.integers(1, 999))
def test_both_views_make_the_noisy_picture(seed, t):
    (out, x), times = pictures(seed), torch.full((3,), t)
    for target, kind in FITTING:
        if (t, kind) == (999, "zero"):
            continue
        a, s = SCHEDULES[kind].at(times)
        p = to_prediction(target, out, x, a, s)
        assert torch.allclose(expand_like(a, x) * p.x_0 + expand_like(s, x) * p.eps, x, atol=1e-9)


def test_coefficients_take_the_shape_and_dtype_of_the_picture():
    c = expand_like(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16))
    assert c.shape == (2, 1, 1, 1)
    assert c.dtype == torch.bfloat16


def test_a_network_is_a_denoiser_in_the_dtype_of_the_picture():
    x, t, schedule = torch.randn(2, 1, 4, 4), torch.tensor([0, 999]), SCHEDULES["preserving"]
    denoiser = NetworkDenoiser(lambda x, t, cond: (cond * x).bfloat16(), schedule, "v")
    a, s = schedule.at(t)
    expected = to_prediction("v", (2 * x).bfloat16().float(), x, a, s)
    found = denoiser(x, t, 2)
    assert found.x_0.dtype == torch.float32
    assert torch.equal(found.x_0, expected.x_0)
    assert torch.equal(found.eps, expected.eps)


def test_clipping_keeps_both_views_of_one_fact():
    x, t, schedule = 3 * torch.randn(2, 1, 4, 4).double(), torch.tensor([10, 900]), SCHEDULES["preserving"]
    p = Clipped(NetworkDenoiser(lambda x, t, cond: x, schedule, "eps"), -0.5, 0.5)(x, t)
    a, s = schedule.at(t)
    assert p.x_0.abs().max() == 0.5
    assert torch.allclose(expand_like(a, x) * p.x_0 + expand_like(s, x) * p.eps, x)
