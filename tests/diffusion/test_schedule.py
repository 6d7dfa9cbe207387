from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ldm_kit.diffusion import schedule as schedules
from ldm_kit.diffusion.schedule import ScheduleConfig, build, leading, linspace, trailing

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
    ours = build(ScheduleConfig(start=0.0015, end=0.0195, steps=500))
    theirs = DDIMScheduler(500, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear").alphas_cumprod
    assert torch.allclose(ours.a.square(), theirs.double(), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' np.array(tensor)
def test_flow_index_is_the_time_that_diffusers_solvers_emit():
    solver = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    solver.set_timesteps(4)
    assert solver.timesteps.tolist() == [999, 749, 499, 249] == trailing(1000, 4)[:-1]
    a, s = schedules.flow().at(solver.timesteps)
    assert torch.allclose(s.float(), solver.sigmas[:-1], atol=1e-3, rtol=0)
    assert torch.allclose(a + s, torch.ones(4).double())


def test_minus_one_is_clean_data():
    for kind in ("linear", "scaled_linear", "cosine", "flow"):
        a, s = build(ScheduleConfig(kind=kind)).at(torch.tensor([-1, 5]))
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


@pytest.mark.parametrize(
    "fields", [{"kind": "flow", "zero_terminal": True}, {"kind": "flow", "start": 0.1}, {"kind": "cosine", "end": 0.1}]
)
def test_contradictions_are_refused(fields):
    with pytest.raises(ValidationError):
        ScheduleConfig(**fields)
