import pytest
import torch

from ldm_kit.diffusion import likelihood
from ldm_kit.diffusion.loss import Objective, error, min_snr
from ldm_kit.diffusion.prediction import Prediction, from_prediction, to_prediction
from ldm_kit.diffusion.schedule import flow, linear, scaled_linear, zero_terminal

TARGETS = [("eps", scaled_linear()), ("x0", scaled_linear()), ("v", scaled_linear()), ("flow", flow())]
SCHEDULE = linear(50, end=0.3)
T = torch.tensor([0, 1, 7, 30, 49])


def batch(size=64):
    t = torch.linspace(1, 998, size).long()
    return torch.randn(size, 2, 3, 3).double(), torch.randn(size, 2, 3, 3).double(), t


@pytest.mark.parametrize(("target", "schedule"), TARGETS)
def test_an_oracle_has_no_loss(target, schedule):
    x_0, eps, t = batch()
    out = from_prediction(target, Prediction(x_0, eps), *schedule.alpha_sigma(t))
    assert error(out, x_0, eps, t, schedule, prediction_type=target).max() == 0


@pytest.mark.parametrize(("target", "schedule"), TARGETS)
def test_loss_of_a_network_with_half_precision_is_single(target, schedule):
    x_0, eps, t = batch()
    loss = error(
        torch.zeros(64, 2, 3, 3, dtype=torch.bfloat16), x_0.float(), eps.float(), t, schedule, prediction_type=target
    )
    assert loss.shape == (64,)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("target", "schedule"), TARGETS)
def test_min_snr_weighs_the_error_of_x_0_alike_for_every_target(target, schedule):
    x_0, eps, t = batch()
    x, a_s = schedule.add_noise(x_0, eps, t), schedule.alpha_sigma(t)
    out = from_prediction(target, Prediction(x_0, eps), *a_s) + 0.1 * torch.randn(64, 2, 3, 3).double()
    error_of_x_0 = (to_prediction(target, out, x, *a_s).x_0 - x_0).square().flatten(1).mean(1)
    weighted = min_snr(t, schedule, target, 5.0) * error(out, x_0, eps, t, schedule, prediction_type=target)
    assert torch.allclose(weighted, schedule.snr(t).clamp_max(5) * error_of_x_0, rtol=1e-3)


def test_min_snr_is_finite_at_both_ends():
    zero, t = zero_terminal(scaled_linear()), torch.tensor([0, 999])
    for target in ("eps", "x0", "v"):
        assert torch.isfinite(min_snr(t, zero, target, 5.0)).all()
    assert torch.isfinite(min_snr(t, flow(), "flow", 5.0)).all()


def test_plain_eps_loss_is_untouched_where_snr_is_small():
    t = torch.tensor([999])
    assert min_snr(t, scaled_linear(), "eps", 5.0) == 1


def outputs():
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (5, 2, 3, 3), generator=generator) / 127.5 - 1
    eps, out = torch.randn(5, 2, 3, 3, generator=generator), torch.randn(5, 4, 3, 3, generator=generator)
    return x_0, eps, out


def errors(objective, out):
    x_0, eps, _ = outputs()
    return objective.errors(out, x_0, eps, T, SCHEDULE)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_hybrid_is_the_squared_error_and_the_weighted_bound(target):
    x_0, eps, out = outputs()
    hybrid = Objective(target, "hybrid", "learned_range", vb_weight=0.01)
    half, v = out.chunk(2, dim=1)
    simple = error(half, x_0, eps, T, SCHEDULE, prediction_type=target)
    p = to_prediction(target, half, SCHEDULE.add_noise(x_0, eps, T), *SCHEDULE.alpha_sigma(T))
    bits = likelihood.term(p._replace(fraction=(v + 1) / 2), x_0, T, SCHEDULE, variance="learned_range")
    found = errors(hybrid, out)
    assert torch.equal(found.simple, simple)
    assert torch.equal(found.bits, bits)
    assert torch.allclose(hybrid.combined(found, 50), simple + 0.01 * 50 * bits)
    assert torch.equal(Objective(target, "vlb", "learned_range").combined(found, 50), bits)


def gradient(objective, out, of):
    out = out.clone().requires_grad_()
    of(objective, errors(objective, out)).sum().backward()
    return out.grad.chunk(2, dim=1)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_the_bound_in_a_hybrid_loss_teaches_the_variance_alone(target):
    out = outputs()[2]
    hybrid = Objective(target, "hybrid", "learned_range")
    mean, v = gradient(hybrid, out, lambda _, found: found.bits)
    assert (mean == 0).all()
    assert (v != 0).all()
    whole, v_whole = gradient(hybrid, out, lambda o, found: o.combined(found, 1000))
    plain = Objective(target)
    alone = out[:, :2].clone().requires_grad_()
    errors(plain, alone).simple.sum().backward()
    assert torch.equal(whole, alone.grad)  # bit for bit
    assert torch.allclose(v_whole, v, rtol=1e-6)  # 0.001 times 1000
    bare, _ = gradient(Objective(target, "vlb", "learned_range"), out, lambda o, found: o.combined(found, 1000))
    assert (bare != 0).all()


def test_a_fixed_variance_is_trained_by_the_bound_too():
    out = outputs()[2][:, :2]
    bits = {v: errors(Objective("eps", "vlb", v), out).bits for v in ("small", "large")}
    for variance, fraction in (("small", -1.0), ("large", 1.0)):
        learned = torch.cat([out, torch.full_like(out, fraction)], dim=1)
        same = errors(Objective("eps", "vlb", "learned_range"), learned).bits
        assert torch.allclose(same[1:], bits[variance][1:], rtol=1e-5)
    assert not torch.allclose(bits["small"], bits["large"], rtol=1e-2)


def test_latents_pay_for_no_levels():
    out = outputs()[2]
    pixels, latents = (errors(Objective("eps", "vlb", "learned_range", levels=levels), out).bits for levels in (1, 0))
    assert torch.equal(pixels[1:], latents[1:])
    assert abs(pixels[0] - latents[0]) > 0.01


def test_min_snr_weighs_the_squared_error_alone():
    objective = Objective("eps", "hybrid", "learned_range", min_snr=5.0)
    plain = errors(objective, outputs()[2])
    weighted = objective.weighted(plain, T, SCHEDULE)
    assert torch.allclose(weighted.simple, plain.simple * min_snr(T, SCHEDULE, "eps", 5.0).float())
    assert torch.equal(weighted.bits, plain.bits)


def test_half_precision_outputs_are_judged_in_single():
    found = errors(Objective("v", "hybrid", "learned_range"), outputs()[2].bfloat16())
    assert found.simple.dtype == found.bits.dtype == torch.float32
