import inspect

import pytest
import torch
from diffusers import schedulers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.guidance import ClassifierGradient, ClassifierGuided
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.schedule import flow, linear, scaled_linear, zero_terminal
from ldm_kit.solvers.samplers import sample

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy 2
SCHEDULES = {"linear": linear(), "zero": zero_terminal(scaled_linear()), "flow": flow()}
PRESERVING = ["DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete"]
PRESERVING += ["EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep"]
FLOW = ["DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "SASolver", "UniPCMultistep"]
FITTING = [(name, kind) for name in PRESERVING for kind in ("linear", "zero")] + [(name, "flow") for name in FLOW]


def last(states):
    *_, state = states
    assert state.t == -1
    return state.x


def draw(name, denoiser, noise, steps=40, **options):
    return sample(f"diffusers:{name}Scheduler", denoiser, noise, trailing(1000, steps), **options)


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_schedulers_of_diffusers_recover_a_gaussian(name, kind):
    exact, seeds = Gaussian(SCHEDULES[kind], m=2.0, s=0.5), range(10)
    x = last(draw(name, exact, initial_noise(seeds, (500,)), seeds=seeds))
    assert x.dtype == torch.float32
    assert abs(x.mean() - 2.0) < 0.06
    assert abs(x.std() - 0.5) < 0.07


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_a_picture_does_not_depend_on_its_batch_mates(name, kind):
    exact, seeds = Gaussian(SCHEDULES[kind], m=2.0, s=0.5), [4, 1, 7]
    whole = last(draw(name, exact, initial_noise(seeds, (4,)), 8, seeds=seeds))
    alone = last(draw(name, exact, initial_noise([1], (4,)), 8, seeds=[1]))
    assert torch.allclose(whole[1], alone[0], atol=1e-6)


@pytest.mark.parametrize("name", ["DDPM", "EulerAncestralDiscrete", "SASolver"])
def test_other_seeds_add_other_noise(name):
    exact, noise = Gaussian(linear(), m=2.0, s=0.5), initial_noise([1, 1], (4,))
    x = last(draw(name, exact, noise, 8, seeds=[1, 2]))
    assert (x[0] - x[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", PRESERVING)
def test_guidance_works_with_all_of_them(name):
    """The exact classifier takes one component out of two, as it stands in clean data."""
    two = Mixture(linear(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.3]), torch.tensor([0.7, 0.3]))
    gradient = ClassifierGradient(two.log_posterior, torch.ones(100, dtype=torch.long), 1.0)
    x = last(draw(name, ClassifierGuided(two, gradient), initial_noise(range(100), (1,)), 25, seeds=range(100)))
    assert (x > 0).double().mean() > 0.97
    assert abs(x.mean() - 1) < 0.12


def test_eta_reaches_ddim_and_no_other():
    exact, seeds = Gaussian(linear(), m=2.0, s=0.5), [1, 2]
    x = [last(draw("DDIM", exact, initial_noise(seeds, (4,)), 8, seeds=seeds, eta=eta)) for eta in (0.0, 1.0)]
    assert (x[0] - x[1]).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"DDPMScheduler has no eta, got 0\.5"):
        draw("DDPM", exact, initial_noise(seeds, (4,)), seeds=seeds, eta=0.5)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_class_is_driven_or_refused_in_a_sentence(kind):
    """Those for other models, for whole sequences, or with times between the integers are refused."""
    exact, names = Gaussian(SCHEDULES[kind], m=0.0, s=1.0), [n for n in dir(schedulers) if n.endswith("Scheduler")]
    refused = []
    for name in names:
        kind_of = getattr(schedulers, name)
        if not (inspect.isclass(kind_of) and issubclass(kind_of, SchedulerMixin)):
            continue
        try:
            states = draw(name.removesuffix("Scheduler"), exact, initial_noise([1], (4,)), 6, seeds=[1])
        except ValueError as error:
            refused.append((name, str(error)))
        else:
            assert torch.isfinite(last(states)).all()
    assert all(name in said for name, said in refused)
    wanted = {"CMStochasticIterativeScheduler", "RePaintScheduler", "ScoreSdeVpScheduler", "CogVideoXDDIMScheduler"}
    assert wanted <= dict(refused).keys()
    assert len(refused) < len(names) - 4


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Nothing", "diffusers has no scheduler NothingScheduler; expected a class such as"),
        ("CMStochasticIterative", "cannot be built from our betas and driven"),
        ("CogVideoXDDIM", "does not keep the betas that it is given"),
        ("KDPM2Discrete", "walks times that are not whole, falling and below 1000"),
        ("DDIMInverse", "walks times that are not whole, falling and below 1000"),
    ],
)
def test_what_cannot_be_driven_is_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw(name, Gaussian(linear(), 0.0, 1.0), initial_noise([1], (4,)), seeds=[1])
    with pytest.raises(ValueError, match="needs one seed for each of 1 pictures, got None"):
        draw("DDPM", Gaussian(linear(), 0.0, 1.0), initial_noise([1], (4,)))
