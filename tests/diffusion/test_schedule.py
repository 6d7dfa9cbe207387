from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ldm_kit.diffusion import schedule as schedules
from ldm_kit.diffusion.respacing import leading, linspace, trailing
from ldm_kit.diffusion.schedule import ScheduleConfig, build

THEIRS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", THEIRS)
def test_tables_are_those_of_diffusers(kind, zero):
    ours = build(ScheduleConfig(kind=kind, zero_terminal=zero))
    theirs = DDIMScheduler(**THEIRS[kind], rescale_betas_zero_snr=zero).alphas_cumprod
    assert torch.allclose(ours.a.square(), theirs.double(), atol=1e-6, rtol=0)
    assert torch.allclose(ours.a.square() + ours.s.square(), torch.ones(1000).double())


@pytest.mark.parametrize("kind", THEIRS)
def test_zero_terminal_ends_in_noise_and_keeps_the_first_time(kind):
    plain, zero = build(ScheduleConfig(kind=kind)), build(ScheduleConfig(kind=kind, zero_terminal=True))
    assert (zero.a[-1], zero.s[-1]) == (0, 1)
    assert torch.isclose(zero.a[0], plain.a[0])
    assert (zero.a.diff() < 0).all()


def test_betas_can_be_chosen():
    ours = build(ScheduleConfig(start=0.0015, end=0.0195, num_train_timesteps=500))
    theirs = DDIMScheduler(500, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear").alphas_cumprod
    assert torch.allclose(ours.a.square(), theirs.double(), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' np.array(tensor)
def test_flow_index_is_the_time_that_diffusers_solvers_emit():
    solver = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    solver.set_timesteps(4)
    assert solver.timesteps.tolist() == [999, 749, 499, 249] == trailing(1000, 4)[:-1]
    a, s = schedules.flow().alpha_sigma(solver.timesteps)
    assert torch.allclose(s.float(), solver.sigmas[:-1], atol=1e-3, rtol=0)
    assert torch.allclose(a + s, torch.ones(4).double())


def test_minus_one_is_clean_data():
    for kind in ("linear", "scaled_linear", "cosine", "flow"):
        a, s = build(ScheduleConfig(kind=kind)).alpha_sigma(torch.tensor([-1, 5]))
        assert (a[0], s[0]) == (1, 0)
        assert a[1] < 1


def test_snr_falls_from_infinity_to_zero():
    schedule = build(ScheduleConfig(zero_terminal=True))
    snr = schedule.snr(torch.arange(-1, 1000))
    assert snr[0] == float("inf")
    assert snr[-1] == 0
    assert (snr.diff() < 0).all()


@given(total=st.integers(2, 1200), data=st.data())
def test_grids_fall_strictly_to_clean_data(total, data):
    steps = data.draw(st.integers(1, total))
    for grid in (trailing, linspace, leading):
        times = grid(total, steps)
        assert len(times) == steps + 1
        assert times[-1] == -1
        assert total - 1 >= times[0]
        assert all(t > u for t, u in pairwise(times))
    assert trailing(total, steps)[0] == linspace(total, steps)[0] == total - 1


@pytest.mark.parametrize("spacing", [("trailing", trailing), ("leading", leading), ("linspace", linspace)])
@pytest.mark.parametrize("steps", [1, 4, 10, 50, 1000])
def test_grids_are_those_of_diffusers(spacing, steps):
    word, ours = spacing
    if (word, steps) == ("linspace", 1):
        pytest.skip("diffusers starts a single step at clean data")
    solver = DDIMScheduler(timestep_spacing=word)
    solver.set_timesteps(steps)
    assert ours(1000, steps)[:-1] == solver.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 1001])
def test_too_many_steps_are_refused_in_a_sentence(steps):
    for grid in (trailing, leading, linspace):
        with pytest.raises(ValueError, match=f"1000 training times in {steps} steps; expected 1 to 1000"):
            grid(1000, steps)


def test_constant_betas_are_the_latent_prior_of_diffae():
    prior = build(ScheduleConfig(kind="constant"))
    assert prior.a[-1].square().item() == pytest.approx(3.248e-4, rel=1e-3)
    assert prior.snr(torch.tensor([85, 87]))[0] > 1 > prior.snr(torch.tensor([85, 87]))[1]
    theirs = DDIMScheduler(trained_betas=[0.008] * 1000).alphas_cumprod
    assert torch.allclose(prior.a.square(), theirs.double(), atol=1e-5)
    half = build(ScheduleConfig(kind="constant", start=0.5, num_train_timesteps=3))
    assert torch.allclose(half.a.square(), torch.tensor([0.5, 0.25, 0.125]).double())


def test_given_betas_are_taken_as_they_are():
    ours = build(ScheduleConfig(kind="given", num_train_timesteps=3, betas=(0.1, 0.2, 1.0)))
    assert torch.allclose(ours.a.square(), torch.tensor([0.9, 0.72, 0.0]).double())
    assert (ours.a[-1], ours.s[-1]) == (0, 1)
    rescaled = build(ScheduleConfig(kind="given", num_train_timesteps=2, betas=(0.1, 0.2), zero_terminal=True))
    assert torch.allclose(rescaled.a.square(), torch.tensor([0.9, 0.0]).double())


def test_ends_are_scaled_as_guided_diffusion_does_only_on_request():
    plain, scaled = (
        build(ScheduleConfig(kind="linear", num_train_timesteps=100, scale_ends=wish)) for wish in (False, True)
    )
    assert torch.equal(plain.a, schedules.linear(100, 1e-4, 0.02).a)
    assert torch.equal(scaled.a, schedules.linear(100, 1e-3, 0.2).a)
    assert plain.s[-1] < 0.9 < 0.9999 < scaled.s[-1]
    assert torch.equal(build(ScheduleConfig(kind="linear", scale_ends=True)).a, schedules.linear().a)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "flow", "zero_terminal": True}, "flow already ends in noise"),
        ({"kind": "flow", "start": 0.1}, "the flow schedule has none such"),
        ({"kind": "cosine", "end": 0.1}, "the cosine schedule has none such"),
        ({"kind": "constant", "end": 0.1}, "the constant schedule has none such"),
        ({"kind": "given", "steps": 2, "betas": (0.1, 0.2), "start": 0.1}, "the given schedule has none such"),
        ({"kind": "given"}, "kind given needs them"),
        ({"kind": "linear", "steps": 2, "betas": (0.1, 0.2)}, "betas are for kind given"),
        ({"kind": "given", "betas": (0.1, 0.2)}, "betas lists 2 numbers for 1000 training timesteps; expected as many"),
        ({"kind": "given", "steps": 3, "betas": (0.1, 1.0, 0.2)}, r"outside \(0, 1\), or a 1 before the last"),
        ({"kind": "given", "steps": 2, "betas": (0.0, 0.2)}, r"outside \(0, 1\)"),
        ({"kind": "given", "steps": 2, "betas": (0.1, 1.2)}, r"outside \(0, 1\)"),
        ({"kind": "cosine", "scale_ends": True}, "scale_ends is for linear and scaled_linear"),
        ({"kind": "linear", "steps": 10, "scale_ends": True}, "expected below 1"),
    ],
)
def test_contradictions_are_refused(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ScheduleConfig(**fields)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "flow"])
def test_beta_is_the_variance_that_a_step_adds(kind):
    """Noise of x_s carried on to t, and beta, make up the noise of x_t; from clean data to t it is all of it."""
    schedule = build(ScheduleConfig(kind=kind))
    s, t = torch.tensor([-1, 0, 3, 500, 998]), torch.tensor([7, 1, 4, 900, 999])
    (a_s, s_s), (a_t, s_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    beta = schedule.beta(t, s)
    assert torch.allclose((a_t / a_s).square() * s_s.square() + beta, s_t.square(), rtol=1e-12)
    assert beta[0] == s_t[0].square()
    assert (schedule.beta(s, s) == 0).all()
    if kind != "flow":
        assert torch.allclose(beta, 1 - (a_t / a_s).square(), rtol=1e-9)


def test_betas_come_back():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    t = torch.arange(1000)
    assert torch.allclose(schedules.from_betas(betas).beta(t, t - 1), betas, rtol=1e-11)


def test_noise_is_added_at_each_samples_own_time():
    schedule, t = build(ScheduleConfig()), torch.tensor([-1, 10, 999])
    x_0, eps = torch.full((3, 2), 2.0), torch.full((3, 2), -1.0)
    a, s = schedule.alpha_sigma(t)
    x = schedule.add_noise(x_0, eps, t)
    assert x.dtype == torch.float32
    assert torch.allclose(x, (2 * a - s).float()[:, None].expand(3, 2))
    assert torch.equal(x[0], x_0[0])


def test_kinds_of_schedules_are_told_apart():
    assert build(ScheduleConfig(kind="flow")).is_flow
    assert not build(ScheduleConfig(kind="flow")).variance_preserving
    for config in (ScheduleConfig(), ScheduleConfig(kind="cosine"), ScheduleConfig(zero_terminal=True)):
        assert build(config).variance_preserving
        assert not build(config).is_flow
    exploding = schedules.Schedule(torch.ones(3).double(), torch.arange(3).double())
    assert not exploding.variance_preserving
