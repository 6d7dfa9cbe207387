"""What the samplers converge to, and how fast, on Gaussians whose answer is a formula."""

from functools import partial

import pytest
import torch

from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.posterior import chain
from ldm_kit.diffusion.respacing import respacing_sections, trailing
from ldm_kit.diffusion.rng import initial_noise, step_noise
from ldm_kit.diffusion.samplers import ddim, ddpm, euler_maruyama, heun, run_scheduler
from ldm_kit.diffusion.schedule import Schedule, cosine, flow, linear, scaled_linear, zero_terminal
from ldm_kit.solvers.diffusers_solvers import multistep
from tests.diffusion.probe import last, law

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
SCHEDULES = {"linear": linear(), "zero": zero_terminal(scaled_linear()), "cosine": cosine(), "flow": flow()}
X = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
M, S = 0.7, 0.4


def flowed(schedule, x, t, t_end):
    """Where the probability-flow ODE takes x from time t to t_end: its place in the deviation stays."""
    (a, b), (s, r) = schedule.alpha_sigma(torch.tensor([t, t_end]))
    return b * M + (x - a * M) * ((b * S).square() + r.square()).sqrt() / ((a * S).square() + s.square()).sqrt()


def driven(name, denoiser, x, times):
    return run_scheduler(multistep(name, denoiser.schedule, times), denoiser, x, prediction_type="x0")


ODES = [
    (ddim, 1),
    (heun, 2),
    (partial(driven, "DPMSolverMultistepScheduler"), 2),
    (partial(driven, "UniPCMultistepScheduler"), 2),
]


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("sampler", "order"), ODES, ids=["ddim", "heun", "dpm++", "unipc"])
def test_order_of_convergence_to_the_probability_flow(sampler, order, kind):
    schedule = SCHEDULES[kind]
    truth = flowed(schedule, X, 900, 100)

    def error(steps):
        times = list(range(900, 99, -800 // steps))
        return (last(sampler(Gaussian(schedule, M, S), X, times)) - truth).square().mean().sqrt()

    measured = torch.log2(error(40) / error(80))
    assert order - 0.15 < measured < order + (0.15 if order == 1 else 0.8)  # a Gaussian is kind to multi-step solvers


@pytest.mark.parametrize("kind", ["linear", "zero", "cosine"])
def test_ddim_reaches_the_flow_and_the_flow_reaches_the_data(kind):
    schedule = SCHEDULES[kind]
    truth = flowed(schedule, X, 999, -1)
    found = last(ddim(Gaussian(schedule, M, S), X, trailing(1000, 1000)))
    assert (found - truth).square().mean().sqrt() < 0.01
    assert abs(truth.mean() - M - S * X.mean()) < 0.02


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", [ddpm, partial(ddpm, variance="large"), partial(ddim, eta=1.0), euler_maruyama])
def test_noisy_samplers_converge_weakly_with_order_1(sampler, kind):
    exact = Gaussian(SCHEDULES[kind], M, S)
    errors = []
    for steps in (50, 100, 200):
        mean, deviation = law(sampler, exact, trailing(1000, steps))
        errors.append(abs(mean - M) + abs(deviation - S))
    assert errors[-1] < 0.02
    assert errors[0] > 1.5 * errors[1] > 2.1 * errors[2]


def test_euler_maruyama_has_no_hidden_bias():
    for kind in ("linear", "cosine", "flow"):
        mean, deviation = law(euler_maruyama, Gaussian(SCHEDULES[kind], M, S), trailing(1000, 1000))
        assert abs(mean - M) < 2e-3
        assert abs(deviation - S) < 2e-3


@pytest.mark.parametrize("kind", SCHEDULES)
def test_ddpm_and_the_reverse_sde_are_one_process_in_the_limit(kind):
    means, stds = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.5])
    exact = Mixture(SCHEDULES[kind], means, stds, torch.tensor([0.25, 0.75]))
    noise, start = partial(step_noise, range(50)), initial_noise(range(50), (1,)).double()

    def apart(steps):
        times = trailing(1000, steps)
        one, two = (last(f(exact, start, times, noise=noise)) for f in (ddpm, euler_maruyama))
        return (one - two).square().mean().sqrt()

    coarse, fine = apart(40), apart(160)
    assert fine < 0.08
    assert coarse > 1.8 * fine


LONGER = Schedule(torch.cat([linear().a, torch.zeros(1).double()]), torch.cat([linear().s, torch.ones(1).double()]))
ROUND_TRIPS = {20: (1.16e-2, 0.81), 50: (2.34e-3, 0.92), 100: (6.4e-4, 0.966), 250: (1.1e-4, 0.991)}


def round_trip(steps):
    """MSE of decoding an encoded N(0.2, 0.3^2), and the code's deviation, as DiffAE's code walks.

    The picture counts as being at the grid's first time, and the last step goes to pure noise.
    """
    z = torch.linspace(-4, 4, 200).double()[:, None]
    weight = (-z.square() / 2).softmax(0)  # of a normal distribution
    exact, times = Gaussian(LONGER, 0.2, 0.3), respacing_sections(1000, f"ddim{steps}")
    code = last(ddim(exact, 0.2 + 0.3 * z, [*times[-2::-1], 1000]))
    back = last(ddim(exact, code, times))
    mse = (weight * (back - 0.2 - 0.3 * z).square()).sum()
    return mse.item(), (weight * (code - (weight * code).sum()).square()).sum().sqrt().item()


@pytest.mark.parametrize("steps", ROUND_TRIPS)
def test_ddim_there_and_back_errs_as_published_code_does(steps):
    mse, deviation = ROUND_TRIPS[steps]
    assert round_trip(steps) == (pytest.approx(mse, rel=0.04), pytest.approx(deviation, rel=0.015))  # of a sample


def test_the_round_trip_falls_with_the_square_of_the_steps():
    assert 13 < round_trip(125)[0] / round_trip(500)[0] < 16.5


def exact_fractions(exact, times):
    """The denoiser with the fraction at which the learned variance is that of q(x_next | x_t), data included."""
    links = {one.t: one for one in chain(exact.schedule, times)}

    def denoiser(x, t, cond=None):
        p, one = exact(x, t), links[int(t[0])]
        if one.t_next < 0:
            return p._replace(fraction=torch.zeros_like(x))
        a, s = exact.schedule.alpha_sigma(t[:1])
        of_data = one.coef_x0**2 * (S * s) ** 2 / ((a * S).square() + s.square())
        low, high = torch.tensor([one.variance, one.beta]).double().log()
        fraction = ((one.variance + of_data).log() - low) / (high - low)
        return p._replace(fraction=fraction.expand_as(x))

    denoiser.schedule = exact.schedule
    return denoiser


@pytest.mark.parametrize("kind", ["linear", "zero", "cosine"])
@pytest.mark.parametrize("steps", [4, 10, 50])
def test_the_right_learned_variance_leaves_no_error_of_discretisation(kind, steps):
    """Few steps then sample q(x_t) exactly; the variance has to come from the respaced chain for that."""
    times, exact = trailing(1000, steps), Gaussian(SCHEDULES[kind], M, S)
    learned = partial(ddpm, variance="learned_range")
    mean, deviation = law(learned, exact_fractions(exact, times), times[:-1])
    a, s = (float(c) for c in exact.schedule.alpha_sigma(torch.tensor(times[-2])))
    atol = 1e-6 if kind == "zero" else 0.02  # the others do not start in pure noise
    assert mean == pytest.approx(a * M, abs=atol)
    assert deviation == pytest.approx(((a * S) ** 2 + s**2) ** 0.5, abs=atol)
    small = law(ddpm, exact, times[:-1])[1]
    assert small < deviation - 0.002
