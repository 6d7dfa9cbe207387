import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.denoiser import Clipped, times_like
from ldm_kit.diffusion.pdae import (
    InterpolatedDenoiser,
    NetworkEstimator,
    ShiftedDenoiser,
    pdae_coefficient,
    pdae_decode,
    pdae_encode,
    pdae_grid,
    pdae_loss,
    pdae_weight,
    shift_codes,
    slerp,
    stochastic_code,
)
from ldm_kit.diffusion.prediction import expand_like, from_prediction
from ldm_kit.diffusion.respacing import leading
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import linear

SCHEDULE = linear()
TWO = Mixture(SCHEDULE, torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.5]), torch.tensor([0.25, 0.75]))
INVERSION = {20: (1.16e-2, 0.81), 50: (2.34e-3, 0.92), 100: (6.4e-4, 0.966), 250: (1.1e-4, 0.991)}


def last(states):
    *_, state = states
    return state


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_gradient(x, t, component):
    """The frozen mixture's prediction, and grad log p(component | x_t) by autograd: the G that PDAE looks for."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        log = TWO.posterior(x, t).log()[:, component].sum()
    return TWO(x.detach(), t), torch.autograd.grad(log, x)[0]


def around(estimator=exact_gradient, **more):
    return ShiftedDenoiser(estimator, SCHEDULE, **more)


# DiffAE's stochastic code


@pytest.mark.parametrize("steps", INVERSION)
def test_decoding_a_stochastic_code_errs_as_much_as_was_measured(steps):
    exact, x_0 = Clipped(Gaussian(SCHEDULE, m=0.2, s=0.3)), 0.2 + 0.3 * draw((20_000, 1))
    x_0 = x_0.clamp(-1, 1)
    times = leading(1000, steps)
    states = list(stochastic_code(exact, x_0, times[-2::-1]))
    assert [state.t for state in states] == [*times[-3::-1], 1000]
    code = states[-1].x
    error = (last(ddim(exact, code, times)).x - x_0).square().mean()
    mse, deviation = INVERSION[steps]
    assert error == pytest.approx(mse, rel=0.05)
    assert code.std() == pytest.approx(deviation, abs=0.01)


def test_clipping_is_consistent_on_the_way_up():
    bright = Clipped(Gaussian(SCHEDULE, m=1.5, s=0.1))
    x = torch.full((4, 1), 1.4, dtype=torch.float64)
    for state in stochastic_code(bright, x, leading(1000, 20)[-2::-1]):
        assert state.prediction.x_0.max() <= 1
        assert state.prediction.eps.abs().max() > 0
    a, s = SCHEDULE.alpha_sigma(torch.tensor([950]))
    up_to = list(ddim(bright, x, leading(1000, 20)[-2::-1]))[-1].x
    assert torch.allclose(state.x, (up_to - a) / s)  # eps agrees with an x_0 clipped to 1, not with the network's


# PDAE's numbers


def test_the_weight_of_a_time_is_as_tabulated():
    weight = pdae_weight(torch.arange(1000), SCHEDULE)
    assert weight.argmax() == 475
    assert weight[[475, 0, 999]].tolist() == pytest.approx([0.7225, 0.00025, 0.364], abs=1e-3)
    assert weight[0].item() == pytest.approx(0.00025, rel=0.05)


def test_the_coefficient_of_training_fades_where_that_of_ddim_does_not():
    t = torch.arange(1000)
    c, s = pdae_coefficient(t, SCHEDULE), SCHEDULE.alpha_sigma(t)[1]
    assert c[0] == 0
    share = -c / s
    assert share[1].item() == pytest.approx(0.45, abs=0.01)
    assert (share[500:] > 0.98).all()
    assert c[-1].item() == pytest.approx(-0.99, abs=0.005)


def test_the_coefficient_moves_the_posterior_mean_by_its_variance():
    """On the formulas of the DDPM paper, in betas and not in ours."""
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)
    t, x, eps, gap = 321, draw(5, 1), draw(5, 2), draw(5, 3)

    def mean(eps):
        return (x - betas[t] / (1 - kept[t]).sqrt() * eps) / (1 - betas[t]).sqrt()

    variance = betas[t] * (1 - kept[t - 1]) / (1 - kept[t])
    shifted = mean(eps + pdae_coefficient(torch.tensor([t]), SCHEDULE) * gap)
    assert torch.allclose(shifted, mean(eps) + variance * gap)


def test_the_exact_gradient_closes_the_gap_of_the_posterior_mean():
    """With all of x_0 in the code, G makes the frozen mean the true one, and the error of training 0."""
    x_0, eps, t = draw((64, 1), 1), draw((64, 1), 2), torch.randint(1, 1000, (64,))
    x = SCHEDULE.add_noise(x_0, eps, t)
    frozen = TWO(x, t).eps
    gap = (eps - frozen) / expand_like(pdae_coefficient(t, SCHEDULE), x)
    assert pdae_loss(frozen, gap, eps, t, SCHEDULE).max() < 1e-10
    assert pdae_loss(frozen, 0 * gap, eps, t, SCHEDULE).mean() > 0.05
    assert pdae_loss(frozen, gap, eps, t, SCHEDULE).shape == (64,)


@pytest.mark.parametrize("component", [0, 1])
def test_the_exact_gradient_turns_a_mixture_into_the_component(component):
    noise, times = draw((4000, 1), 4), pdae_grid(1000, 125)
    found = last(pdae_decode(around(), noise, times, component)).x
    assert found.mean().item() == pytest.approx(TWO.means[component].item(), abs=0.05)
    assert found.std().item() == pytest.approx(TWO.stds[component].item(), abs=0.03)
    frozen = last(pdae_decode(around(strength=0), noise, times, component)).x
    assert frozen.std() > 0.8


def test_a_code_with_its_gradient_comes_back():
    times, x_0 = pdae_grid(1000, 200), -1 + 0.3 * draw((500, 1), 5)
    code = last(pdae_encode(around(), x_0, times, 0))
    assert code.t == 999
    back = last(pdae_decode(around(), code.x, times, 0))
    assert back.t == 0
    assert (back.x - x_0).square().mean() < 1e-3


# PDAE's grid


def test_the_grid_is_that_of_numpy_truncated():
    for steps in range(1, 1000):
        assert pdae_grid(1000, steps) == np.linspace(0, 999, steps + 1).astype(int).tolist()
    assert pdae_grid(1000, 20)[:3] == [0, 49, 99]


@pytest.mark.parametrize("steps", [0, 1000, -3])
def test_a_grid_that_cannot_be_walked_is_refused(steps):
    with pytest.raises(ValueError, match=f"in {steps} of PDAE's steps; expected 1 to 999"):
        pdae_grid(1000, steps)


def asked(denoiser):
    seen = []

    class Asked:
        schedule = SCHEDULE

        def __call__(self, x, t, cond=None):
            seen.append(int(t[0]))
            return denoiser(x, t, cond)

    return Asked(), seen


@pytest.mark.parametrize(("stop", "share"), [(0.0, 0), (0.3, 3), (0.39, 3), (1.0, 10)])  # of 10 steps, rounded down
def test_the_last_steps_can_be_left_to_the_frozen_model(stop, share):
    (shifted, mine), (frozen, theirs) = asked(TWO), asked(TWO)
    times = pdae_grid(1000, 10)
    states = list(pdae_decode(shifted, draw((2, 1)), times, stop=stop, frozen=frozen))
    kept = [i for i in range(10, 0, -1) if i > share]
    assert mine == [times[i] for i in kept]
    assert theirs == [times[i] for i in range(10 - len(kept), 0, -1)]
    assert [state.t for state in states] == times[9::-1]  # the network never sees time 0


def test_stopping_without_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match=r"stop 0\.3 leaves the last steps"):
        next(pdae_decode(TWO, draw((2, 1)), [0, 999], stop=0.3))
    with pytest.raises(ValueError, match="stop is 30"):
        next(pdae_decode(TWO, draw((2, 1)), [0, 999], stop=30, frozen=TWO))


# Denoisers


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_an_estimator_takes_any_target(target):
    x, t = draw((3, 2, 1, 1)).float(), times_like(torch.zeros(3), 400)
    truth, gap = Gaussian(SCHEDULE, 0.1, 0.5)(x, t), torch.ones(3, 2, 1, 1)
    out = from_prediction(target, truth, *(expand_like(c, x) for c in SCHEDULE.alpha_sigma(t)))
    out = torch.cat([out, torch.zeros_like(out)], dim=1)
    network = lambda x, t, cond: (out, gap)  # noqa: E731
    p = ShiftedDenoiser(NetworkEstimator(network, SCHEDULE, target, learned_range=True), SCHEDULE, strength=2.0)(
        x, t, None
    )
    s = SCHEDULE.alpha_sigma(t)[1][0].item()
    assert torch.allclose(p.eps, truth.eps - 2 * s, atol=1e-5)
    assert torch.allclose(SCHEDULE.add_noise(p.x_0, p.eps, t), x, atol=1e-5)  # both views agree
    assert p.fraction.unique().tolist() == [0.5]


def test_interpolation_mixes_the_gradients():
    x, t = draw((5, 1)), times_like(torch.zeros(5), 600)
    frozen, one = exact_gradient(x, t, 0)
    _, two = exact_gradient(x, t, 1)
    p = InterpolatedDenoiser(around(), 1, 0.3)(x, t, 0)
    s = SCHEDULE.alpha_sigma(t)[1][0]
    assert torch.allclose(p.eps, frozen.eps - s * (0.7 * one + 0.3 * two))
    assert torch.allclose(SCHEDULE.add_noise(p.x_0, p.eps, t), x)
    assert Clipped(InterpolatedDenoiser(around(), 1, 0.3))(x, t, 0).x_0.abs().max() <= 1


# Editing


@settings(max_examples=50, deadline=None)
@given(weight=st.floats(0, 1), seed=st.integers(0, 1000))
def test_slerp_turns_at_constant_speed_and_keeps_the_length(weight, seed):
    a, b = draw((2, 3, 4, 4), seed), draw((2, 3, 4, 4), seed + 1)
    length = a.flatten(1).norm(dim=1)
    b = b * expand_like(length / b.flatten(1).norm(dim=1), b)
    c = slerp(a, b, weight)
    assert torch.allclose(c.flatten(1).norm(dim=1), length)
    angle = lambda x, y: torch.cosine_similarity(x.flatten(1), y.flatten(1)).clamp(-1, 1).arccos()  # noqa: E731
    assert torch.allclose(angle(a, c), weight * angle(a, b), atol=1e-6)


def test_slerp_has_a_weight_for_each_pair_and_two_ends():
    a, b = draw((3, 2, 2)), draw((3, 2, 2), 1)
    mixed = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(mixed[0], a[0])
    assert torch.allclose(mixed[2], b[2])
    assert torch.allclose(mixed[1], slerp(a, b, 0.5)[1])


def test_slerp_between_parallel_vectors_is_straight():
    a = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)
    assert torch.isfinite(slerp(a, -a, 0.25)).all()
    both = slerp(torch.stack([a[0], a[0]]), torch.stack([a[0], a[1]]), 0.5)  # one straight, one not
    assert torch.allclose(both[1], slerp(a[:1], a[1:], 0.5)[0])


def test_a_manipulation_is_one_of_the_normalised_code():
    z, mean, std = draw((4, 9)), torch.arange(9.0, dtype=torch.float64), torch.linspace(0.5, 2, 9, dtype=torch.float64)
    direction = torch.zeros(9, dtype=torch.float64)
    direction[2] = -7  # its length does not matter
    moved = shift_codes(z, direction, 0.3, mean, std)
    step = (moved - z) / std
    assert torch.allclose(step[:, 2], torch.tensor(-0.3 * 3).double())  # sqrt(9) = 3
    assert step[:, [0, 1, *range(3, 9)]].abs().max() < 1e-12
    each = shift_codes(z, direction, torch.tensor([0.0, 0.1, 0.2, 0.3]), mean, std)
    assert torch.allclose(each[0], z[0])
    assert torch.allclose(each[3], moved[3])


def test_a_direction_without_length_is_refused():
    with pytest.raises(ValueError, match="length 0"):
        shift_codes(draw((2, 4)), torch.zeros(4), 0.3, torch.zeros(4), torch.ones(4))
