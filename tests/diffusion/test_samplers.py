from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.denoiser import times_like
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.respacing import leading, trailing
from ldm_kit.diffusion.rng import initial_noise, step_noise
from ldm_kit.diffusion.samplers import ddim, ddpm, heun, run_scheduler
from ldm_kit.diffusion.schedule import flow, linear, scaled_linear, zero_terminal

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = {**BETAS, "timestep_spacing": "trailing", "clip_sample": False}
TWO = Mixture(scaled_linear(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.5]), torch.tensor([0.25, 0.75]))
SCHEDULES = {"linear": linear(), "zero": zero_terminal(scaled_linear()), "flow": flow()}


def last(states):
    *_, state = states
    return state.x


def start(count=8, dtype=torch.float32):
    return initial_noise(range(count), (1,)).to(dtype)


def fresh(step, shape, generator):
    return torch.randn(8, *shape, generator=generator)


def by_hand(solver, steps, x, **options):
    """The loop of a diffusers pipeline, with the exact eps."""
    solver.set_timesteps(steps)
    x = x * solver.init_noise_sigma
    for t in solver.timesteps:
        seen = solver.scale_model_input(x, t)
        x = solver.step(TWO(seen, times_like(x, int(t))).eps, t, x, **options).prev_sample
        yield x


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", [ddim, heun])
def test_deterministic_samplers_recover_a_gaussian(sampler, kind):
    exact = Gaussian(SCHEDULES[kind], m=2.0, s=0.5)
    x = last(sampler(exact, torch.randn(20_000, 1).double(), trailing(1000, 250)))
    assert abs(x.mean() - 2.0) < 0.02
    assert abs(x.std() - 0.5) < 0.02


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", [ddpm, partial(ddim, eta=1.0)])
def test_stochastic_samplers_recover_a_gaussian(sampler, kind):
    exact = Gaussian(SCHEDULES[kind], m=2.0, s=0.5)
    noise = lambda step, shape: torch.randn(20_000, *shape)  # noqa: E731
    x = last(sampler(exact, torch.randn(20_000, 1).double(), trailing(1000, 250), noise=noise))
    assert abs(x.mean() - 2.0) < 0.02
    assert abs(x.std() - 0.5) < 0.03


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_grid_of_all_times_stays_finite(kind):
    exact, times = Gaussian(SCHEDULES[kind], m=2.0, s=0.5), trailing(1000, 1000)[-20:]
    for sampler in (partial(ddpm, variance="large"), ddpm, partial(ddim, eta=1.0), heun):
        noise = {} if sampler is heun else {"noise": lambda step, shape: torch.randn(4, *shape)}
        assert torch.isfinite(last(sampler(exact, torch.randn(4, 1), times, **noise))).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_that_of_diffusers_step_for_step(eta):
    noise = partial(fresh, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    theirs = by_hand(DDIMScheduler(**PLAIN), 20, start(), eta=eta, generator=generator)
    for state, x in zip(ddim(TWO, start(), trailing(1000, 20), eta=eta, noise=noise), theirs, strict=True):
        assert torch.allclose(state.x, x, atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [20, 1000])
def test_ddpm_is_that_of_diffusers_step_for_step(variance, steps):
    noise = partial(fresh, generator=torch.Generator().manual_seed(7))
    solver = DDPMScheduler(**BETAS, clip_sample=False, variance_type=variance)  # leading, so that it ends at t = 0
    generator = torch.Generator().manual_seed(7)
    theirs = by_hand(solver, steps, start(), generator=generator)
    ours = ddpm(TWO, start(), leading(1000, steps), noise=noise, variance=variance.removeprefix("fixed_"))
    for state, x in zip(ours, theirs, strict=True):
        assert torch.allclose(state.x, x, atol=1e-5 if steps == 20 else 1e-3)  # diffusers sums betas in float32


def test_ddim_with_eta_1_ddpm_and_euler_ancestral_are_one_process():
    seeds = range(8)
    noise, times = partial(step_noise, seeds), trailing(1000, 20)
    one, two = ddim(TWO, start(), times, eta=1.0, noise=noise), ddpm(TWO, start(), times, noise=noise)
    solver = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    solver.set_timesteps(20)
    x = start() * (solver.init_noise_sigma**2 + 1).sqrt()
    for step, (first, second) in enumerate(zip(one, two, strict=True)):
        assert torch.allclose(first.x, second.x, atol=1e-5)
        t = solver.timesteps[step]
        eps = TWO(solver.scale_model_input(x, t), times_like(x, int(t))).eps
        generators = [torch.Generator().manual_seed(0) for _ in seeds]
        x = solver.step(eps, t, x, generator=generators).prev_sample
        up = (
            (solver.sigmas[step + 1] / solver.sigmas[step]) ** 2
            * (solver.sigmas[step] ** 2 - solver.sigmas[step + 1] ** 2)
        ).sqrt()
        x = x + up * (noise(step, (1,)) - randn_tensor(x.shape, generator=[g.manual_seed(0) for g in generators]))
        assert torch.allclose(x / (solver.sigmas[step + 1] ** 2 + 1).sqrt(), first.x, atol=1e-4)


def test_a_driven_solver_is_the_one_called_by_hand():
    solver = DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing")
    solver.set_timesteps(20)
    ours = list(run_scheduler(solver, TWO, start(), prediction_type="eps"))
    other = DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing")
    for state, x in zip(ours, by_hand(other, 20, start()), strict=True):
        assert torch.allclose(state.x, x, atol=1e-6)
    assert [state.t for state in ours] == [*trailing(1000, 20)[1:]]


def test_ddim_there_and_back_errs_ever_less():
    exact, x_0 = Gaussian(linear(), m=0.5, s=0.5), 0.5 + 0.5 * torch.randn(2_000, 1).double()

    def mse(steps):
        times = trailing(1000, steps)[:-1]
        code = last(ddim(exact, x_0, [-1, *reversed(times)][1:]))
        return (last(ddim(exact, code, times)) - x_0).square().mean()

    coarse, fine = mse(50), mse(200)
    assert fine < 1e-3
    assert 8 < coarse / fine < 32  # 16 for an error of order 1 / N


def test_heun_there_and_back_is_of_second_order():
    exact, x_0 = Gaussian(linear(), m=0.5, s=0.5), 0.5 + 0.5 * torch.randn(2_000, 1).double()

    def mse(steps):
        times = trailing(1000, steps)[:-1]
        return (last(heun(exact, last(heun(exact, x_0, times[::-1])), times)) - x_0).square().mean()

    assert mse(40) < 1e-4
    assert mse(20) / mse(40) > 12


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 40), kind=st.sampled_from(sorted(SCHEDULES)), seed=st.integers(0, 1000))
def test_states_end_in_clean_data_with_the_prediction_that_led_there(steps, kind, seed):
    exact, times = Gaussian(SCHEDULES[kind], m=0.0, s=1.0), trailing(1000, steps)
    x = initial_noise([seed, seed + 1], (2,))
    for sampler in (ddim, partial(ddpm, noise=partial(step_noise, [1, 2])), heun):
        states = list(sampler(exact, x, times))
        assert [state.t for state in states] == times[1:]
        assert torch.allclose(states[-1].x, states[-1].prediction.x_0, atol=1e-6)


def test_noise_without_a_source_is_refused():
    with pytest.raises(ValueError, match=r"eta 0\.5 adds noise"):
        next(ddim(TWO, start(), [999, -1], eta=0.5))


def test_samplers_keep_no_graph():
    x = torch.randn(2, 1, requires_grad=True)
    assert not last(ddim(TWO, x, [999, 500, -1])).requires_grad


def test_the_step_from_pure_noise_with_eta_1_forgets_eps_exactly():
    schedule = zero_terminal(scaled_linear())

    def denoiser(x, t, cond=None):
        return Prediction(torch.zeros_like(x), torch.full_like(x, 1e30))

    denoiser.schedule = schedule
    for then in range(10, 990, 49):
        first, *_ = ddim(denoiser, torch.zeros(1, 1), [999, then], eta=1.0, noise=lambda step, shape: torch.zeros(1, 1))
        assert first.x.item() == 0
