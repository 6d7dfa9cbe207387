import pytest
import torch

from ldm_kit.diffusion.loss import error, min_snr, noised
from ldm_kit.diffusion.prediction import Prediction, from_prediction, to_prediction
from ldm_kit.diffusion.schedule import flow, scaled_linear, zero_terminal

TARGETS = [("eps", scaled_linear()), ("x0", scaled_linear()), ("v", scaled_linear()), ("flow", flow())]


def batch(size=64):
    t = torch.linspace(1, 998, size).long()
    return torch.randn(size, 2, 3, 3).double(), torch.randn(size, 2, 3, 3).double(), t


@pytest.mark.parametrize(("target", "schedule"), TARGETS)
def test_an_oracle_has_no_loss(target, schedule):
    x_0, eps, t = batch()
    out = from_prediction(target, Prediction(x_0, eps), *schedule.at(t))
    assert error(out, x_0, eps, t, schedule, target).max() == 0


@pytest.mark.parametrize(("target", "schedule"), TARGETS)
def test_loss_of_a_network_with_half_precision_is_single(target, schedule):
    x_0, eps, t = batch()
    loss = error(torch.zeros(64, 2, 3, 3, dtype=torch.bfloat16), x_0.float(), eps.float(), t, schedule, target)
    assert loss.shape == (64,)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("target", "schedule"), TARGETS)
def test_min_snr_weighs_the_error_of_x_0_alike_for_every_target(target, schedule):
    x_0, eps, t = batch()
    x, a_s = noised(x_0, eps, t, schedule), schedule.at(t)
    out = from_prediction(target, Prediction(x_0, eps), *a_s) + 0.1 * torch.randn(64, 2, 3, 3).double()
    of_x_0 = (to_prediction(target, out, x, *a_s).x_0 - x_0).square().flatten(1).mean(1)
    weighted = min_snr(t, schedule, target, 5.0) * error(out, x_0, eps, t, schedule, target)
    assert torch.allclose(weighted, schedule.snr(t).clamp_max(5) * of_x_0, rtol=1e-3)


def test_min_snr_is_finite_at_both_ends():
    zero, t = zero_terminal(scaled_linear()), torch.tensor([0, 999])
    for target in ("eps", "x0", "v"):
        assert torch.isfinite(min_snr(t, zero, target, 5.0)).all()
    assert torch.isfinite(min_snr(t, flow(), "flow", 5.0)).all()


def test_plain_eps_loss_is_untouched_where_snr_is_small():
    t = torch.tensor([999])
    assert min_snr(t, scaled_linear(), "eps", 5.0) == 1
