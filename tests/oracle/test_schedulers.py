"""Step for step against diffusers' schedulers, where those are right; where they are not, that they are not."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from ldm_kit.diffusion.analytic import Mixture
from ldm_kit.diffusion.denoiser import Clipped, times_like
from ldm_kit.diffusion.guidance import ClassifierGradient, ClassifierGuided
from ldm_kit.diffusion.posterior import chain
from ldm_kit.diffusion.prediction import expand_like, from_prediction
from ldm_kit.diffusion.respacing import respacing_sections, timesteps, trailing
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.samplers import ddim, ddpm, run_scheduler
from ldm_kit.diffusion.schedule import from_betas, linear
from ldm_kit.solvers.diffusers_solvers import multistep

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
BETAS = np.linspace(1e-4, 0.02, 1000, dtype=np.float32)  # the very numbers, so that only the steps are compared
SCHEDULE = from_betas(torch.from_numpy(BETAS))
MEANS = torch.linspace(-1, 1, 32).reshape(2, 4, 4)
TWO = Mixture(SCHEDULE, torch.stack([MEANS, -MEANS]), torch.tensor([0.3, 0.5]), torch.tensor([0.25, 0.75]))
START = initial_noise(range(3), (2, 4, 4)).double()
LABELS = torch.tensor([0, 1, 1])


def theirs(solver, denoiser, target, grid, **options):
    """The loop of a pipeline in float64; with a learned variance the network says 2 channels more."""
    solver.alphas_cumprod = SCHEDULE.a.square()  # theirs are summed in float32
    solver.timesteps, solver.num_inference_steps = torch.tensor(grid[:-1]), len(grid) - 1
    x = START
    for t in solver.timesteps:
        time = times_like(x, int(t))
        p = denoiser(x, time)
        out = from_prediction(target, p, *SCHEDULE.alpha_sigma(time))
        out = out if p.fraction is None else torch.cat([out, 2 * p.fraction - 1], dim=1)
        x = solver.step(out, int(t), x, **options).prev_sample
        yield x


def fresh(generator, step, shape):
    return torch.randn(3, *shape, generator=generator, dtype=torch.float64)


def noise():
    return partial(fresh, torch.Generator().manual_seed(7))


def same(ours, others, atol=1e-5):
    pairs = list(zip([state.x for state in ours], others, strict=True))
    for x, y in pairs:
        assert torch.allclose(x, y, atol=atol)
    return len(pairs)


def fractional(x, t, cond=None):
    """The mixture, with a learned variance that differs between pixels and leaves [0, 1] here and there."""
    return TWO(x, t)._replace(fraction=1.1 * torch.sigmoid(3 * x))


fractional.schedule = SCHEDULE


@pytest.mark.parametrize("target", [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(eta, spacing, target):
    ours, word = target
    grid = timesteps(1000, 25, spacing)
    solver = DDIMScheduler(trained_betas=BETAS, prediction_type=word, clip_sample=False)
    generator = torch.Generator().manual_seed(7)
    others = theirs(solver, TWO, ours, grid, eta=eta, generator=generator)
    assert same(ddim(TWO, START, grid, eta=eta, noise=noise()), others) == 25


def test_ddim_of_diffusers_misses_its_own_linspace_grid():
    """It steps down by T // steps from each time: to levels other than those at which it asks the network next."""
    grid = timesteps(1000, 28, "linspace")
    assert {t - u for t, u in pairwise(grid[:-1])} == {37}
    *_, wrong = theirs(DDIMScheduler(trained_betas=BETAS, clip_sample=False), TWO, "eps", grid)
    *_, ours = ddim(TWO, START, grid)
    assert (ours.x - wrong).abs().max() > 0.01


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "90,60,60,20,20"])
def test_ddpm(spacing, variance):
    """In any grid; but the last step, to which diffusers adds noise where it does not end at t = 0."""
    grid = respacing_sections(1000, spacing) if "," in spacing else timesteps(1000, 40, spacing)
    solver = DDPMScheduler(trained_betas=BETAS, variance_type=f"fixed_{variance}", clip_sample=False)
    solver.custom_timesteps = True
    others = list(theirs(solver, TWO, "eps", grid, generator=torch.Generator().manual_seed(7)))
    ours = list(ddpm(TWO, START, grid, noise=noise(), variance=variance))
    end = None if grid[-2] == 0 or variance == "small" else -1
    same(ours[:end], others[:end])


@pytest.mark.parametrize("spacing", ["250", "20", "90,60,60,20,20"])
def test_ddpm_with_a_learned_range(spacing):
    """All variances from the respaced chain, as guided-diffusion has them."""
    grid = respacing_sections(1000, spacing)
    solver = DDPMScheduler(trained_betas=BETAS, variance_type="learned_range", clip_sample=False)
    solver.custom_timesteps = True
    generator = torch.Generator().manual_seed(7)
    others = list(theirs(solver, fractional, "eps", grid, generator=generator))
    same(ddpm(fractional, START, grid, noise=noise(), variance="learned_range"), others)
    small = list(ddpm(fractional, START, grid, noise=noise()))
    assert (small[-1].x - others[-1]).abs().max() > 0.01


def test_the_learned_variance_of_diffusers_is_wrong_in_the_last_step():
    """It takes 1e-20 for the posterior's variance there, OpenAI's code that of the step before."""
    solver = DDPMScheduler(trained_betas=BETAS, variance_type="learned_range", timestep_spacing="linspace")
    solver.set_timesteps(250)
    (*_, one), half = chain(SCHEDULE, respacing_sections(1000, "250")), torch.tensor(0.5).double()
    wrong = solver._get_variance(0, predicted_variance=2 * half - 1).exp()
    assert wrong.item() == pytest.approx((1e-20 * one.beta) ** 0.5, rel=1e-3)
    assert one.reverse_variance("learned_range", half).item() == pytest.approx((one.variance_floor * one.beta) ** 0.5)


def test_algorithm_1_is_that_of_the_scheduler_with_a_shifted_step():
    grid = respacing_sections(1000, "50")
    solver = DDPMScheduler(trained_betas=BETAS, variance_type="learned_range", clip_sample=False)
    solver.custom_timesteps, solver.timesteps = True, torch.tensor(grid[:-1])
    solver.alphas_cumprod = SCHEDULE.a.square()
    gradient = ClassifierGradient(TWO.log_posterior, LABELS, 4.0)
    ours = ddpm(fractional, START, grid, noise=noise(), variance="learned_range", gradient=gradient)
    x, generator = START, torch.Generator().manual_seed(7)
    for t, state in zip(grid[:-1], ours, strict=True):
        time = times_like(x, t)
        p = fractional(x, time)
        out = torch.cat([p.eps, 2 * p.fraction - 1], dim=1)
        log_variance = solver._get_variance(t, predicted_variance=2 * p.fraction - 1)
        x = solver.step(out, t, x, generator=generator).prev_sample + log_variance.exp() * gradient(x, time)
        assert torch.allclose(state.x, x, atol=1e-5 if t > 0 else 1e-2)  # for the last see above


def test_algorithm_2_and_clipping_are_those_of_the_scheduler_fed_with_the_shifted_eps():
    grid, gradient = trailing(1000, 20), ClassifierGradient(TWO.log_posterior, LABELS, 2.0)
    guided = ClassifierGuided(Clipped(TWO, -0.8, 0.8), gradient)

    def by_hand(x, t, cond=None):
        p = TWO(x, t)
        a, s = (expand_like(c, x) for c in SCHEDULE.alpha_sigma(t))
        eps = (x - a * p.x_0.clamp(-0.8, 0.8)) / s
        return p._replace(eps=eps - s * gradient(x, t))

    solver = DDIMScheduler(trained_betas=BETAS, clip_sample=False)
    same(ddim(guided, START, grid), theirs(solver, by_hand, "eps", grid))


def test_clipping_without_deriving_eps_anew_goes_elsewhere():
    """The default of diffusers' DDIM; with use_clipped_model_output it is ours."""
    grid = trailing(1000, 10)
    ours = list(ddim(Clipped(TWO, -0.5, 0.5), START, grid))
    solver = DDIMScheduler(trained_betas=BETAS, clip_sample_range=0.5)
    same(ours, theirs(solver, TWO, "eps", grid, use_clipped_model_output=True))
    *_, wrong = theirs(solver, TWO, "eps", grid)
    *_, before = ours[:-1]
    *_, theirs_before, _ = theirs(solver, TWO, "eps", grid)
    assert (theirs_before - before.x).abs().max() > 0.01
    assert wrong.shape == START.shape


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_dpm_solver(steps):
    """On the grid that both have where T is a multiple of the steps."""
    grid = trailing(1000, steps)
    solver = DPMSolverMultistepScheduler(trained_betas=BETAS, timestep_spacing="trailing")
    solver.set_timesteps(steps)
    assert solver.timesteps.tolist() == grid[:-1]
    x, others = START.float(), []
    for t in solver.timesteps:
        x = solver.step(TWO(x, times_like(x, int(t))).eps, t, x).prev_sample
        others.append(x)
    solver = multistep("DPMSolverMultistepScheduler", SCHEDULE, grid)
    same(run_scheduler(solver, TWO, START.float(), prediction_type="x0"), others, atol=2e-5)


def test_the_table_is_ours():
    assert torch.allclose(SCHEDULE.a, linear().a, atol=1e-6)
