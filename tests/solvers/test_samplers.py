from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.denoiser import times_like
from ldm_kit.diffusion.prediction import from_prediction
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.solvers.samplers import sample
from ldm_kit.solvers.scheduler_config import to_scheduler
from ldm_kit.solvers.table import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
CONFIGS = {
    "linear": ScheduleConfig(kind="linear"),
    "scaled": ScheduleConfig(start=0.0015, end=0.0195),
    "zero": ScheduleConfig(zero_terminal=True),
    "cosine": ScheduleConfig(kind="cosine"),
    "flow": ScheduleConfig(kind="flow"),
}
NOISE = initial_noise(range(200), (1,)).double()
OF_DENOISERS = [name for name in SAMPLERS if name != "consistency"]  # which takes x_0 for the end of a trajectory
STOCHASTIC = ("ddpm", "ddpm-large", "euler-a", "sde")


def mixture(kind):
    means, stds = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.5])
    return Mixture(build(CONFIGS[kind]), means, stds, torch.tensor([0.25, 0.75]))


@cache
def truth(kind):
    return last(draw("ddim", mixture(kind), NOISE, 1000))


def draw(name, denoiser, noise, steps, cond=None, **options):
    return sample(name, denoiser, noise, trailing(len(denoiser.schedule), steps), cond, **options)


def last(states):
    *_, state = states
    return state.x


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", OF_DENOISERS)
def test_every_solver_recovers_a_gaussian(name, kind):
    exact, seeds = Gaussian(build(CONFIGS[kind]), m=2.0, s=0.5), range(60)
    x = last(draw(name, exact, initial_noise(seeds, (300,)), 150, seeds=seeds))
    assert abs(x.mean() - 2.0) < 0.03
    assert abs(x.std() - 0.5) < 0.035  # the small variance is too small by O(1 / steps)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_picture_does_not_depend_on_its_batch_mates(name, kind):
    exact, seeds = mixture(kind), [5, 3, 8, 1]
    whole = last(draw(name, exact, initial_noise(seeds, (1,)), 12, seeds=seeds))
    for i, seed in enumerate(seeds):
        alone = last(draw(name, exact, initial_noise([seed], (1,)), 12, seeds=[seed]))
        assert torch.allclose(whole[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_solver_takes_the_condition(name):
    exact, seeds = mixture("zero"), range(2_000)
    x = last(draw(name, exact, initial_noise(seeds, (1,)), 30, 0, seeds=seeds))
    assert abs(x.mean() + 1) < 0.05


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SAMPLERS)), kind=st.sampled_from(sorted(CONFIGS)), steps=st.integers(1, 40))
def test_any_number_of_steps_is_walked_and_finite(name, kind, steps):
    states = list(draw(name, mixture(kind), initial_noise([0, 1], (1,)), steps, seeds=[0, 1]))
    assert len(states) == steps
    assert states[-1].t == -1
    assert torch.isfinite(states[-1].x).all()
    assert states[-1].x.dtype == torch.float32


@pytest.mark.parametrize("kind", ["flow", "zero", "linear"])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_as_many_steps_as_training_times_are_finite(name, kind):
    few = CONFIGS[kind].model_copy(update={"num_train_timesteps": 30})
    exact = Gaussian(build(few), m=0.0, s=1.0)
    assert torch.isfinite(last(draw(name, exact, initial_noise([0], (4,)), 30, seeds=[0]))).all()


@pytest.mark.parametrize("name", ["heun", "dpm++", "unipc"])
@pytest.mark.parametrize("kind", ["zero", "linear", "flow"])
def test_higher_order_beats_ddim_at_few_steps(name, kind):
    errors = {n: (last(draw(n, mixture(kind), NOISE, 20)) - truth(kind)).square().mean() for n in ("ddim", name)}
    assert errors[name] < errors["ddim"] / 2


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_mistakes_are_told_in_a_sentence(name):
    exact, noise = mixture("linear"), torch.randn(2, 1)
    with pytest.raises(ValueError, match="1000 training times in 1001 steps; expected 1 to 1000"):
        draw(name, exact, noise, 1001, seeds=[0, 1])
    with pytest.raises(ValueError, match="unknown solver 'plms'; known are ddpm, ddpm-large, ddim"):
        draw("plms", exact, noise, 10)
    if name in STOCHASTIC:
        with pytest.raises(ValueError, match=f"{name} adds noise and needs one seed for each of 2 pictures, got"):
            draw(name, exact, noise, 10, seeds=[1])


@pytest.mark.parametrize("kind", ["linear", "zero", "cosine", "flow"])
@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_solve_is_the_scheduler_that_a_pipeline_would_use(name, kind):
    config, exact = CONFIGS[kind], mixture(kind)
    target = "flow" if kind == "flow" else "v"
    solver = to_scheduler(name, config, target)
    solver.set_timesteps(20)
    x = noise = initial_noise(range(8), (1,))
    for t in solver.timesteps:
        time = times_like(x, int(t))
        x = solver.step(from_prediction(target, exact(x, time), *exact.schedule.alpha_sigma(time)), t, x).prev_sample
    apart = {"linear": 1e-4, "cosine": 1e-3, "zero": 5e-3, "flow": 5e-3}[
        kind
    ]  # a = 0 is 2^-12 there, times are rounded
    assert torch.allclose(last(draw(name, exact, noise, 20)), x, atol=apart)
