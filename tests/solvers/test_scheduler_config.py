import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from ldm_kit.config import UserError
from ldm_kit.diffusion.schedule import ScheduleConfig, build
from ldm_kit.solvers.scheduler_config import (
    default_scheduler,
    from_scheduler_config,
    learns_variance,
    scheduler_config,
    to_scheduler,
)
from ldm_kit.solvers.table import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
CONFIGS = {
    "linear": ScheduleConfig(kind="linear"),
    "scaled": ScheduleConfig(start=0.0015, end=0.0195),
    "zero": ScheduleConfig(zero_terminal=True),
    "cosine": ScheduleConfig(kind="cosine"),
    "flow": ScheduleConfig(kind="flow"),
}
LISTED = {
    "constant": ScheduleConfig(kind="constant"),
    "given": ScheduleConfig(kind="given", num_train_timesteps=50, betas=tuple(torch.linspace(0.01, 0.3, 50).tolist())),
    "scaled ends": ScheduleConfig(kind="linear", num_train_timesteps=50, scale_ends=True),
    "to noise": ScheduleConfig(kind="given", num_train_timesteps=3, betas=(0.1, 0.5, 1.0)),
    "rescaled": ScheduleConfig(kind="constant", num_train_timesteps=40, start=0.05, zero_terminal=True),
}


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("kind", ["linear", "scaled", "zero", "cosine"])
def test_schedulers_have_our_table(name, kind):
    if (name, kind) == ("heun", "zero") or name == "sde":
        pytest.skip("refused")
    theirs = to_scheduler(name, CONFIGS[kind], "v").alphas_cumprod.double()
    assert torch.allclose(theirs, build(CONFIGS[kind]).a.square(), atol=1e-6, rtol=0)


def test_what_diffusers_cannot_express_is_refused():
    with pytest.raises(UserError, match=r"no euler-a that a flow model's pipeline can use; expected dpm\+\+ or unipc"):
        to_scheduler("euler-a", CONFIGS["flow"], "flow")
    with pytest.raises(UserError, match="heun cannot start from pure noise"):
        to_scheduler("heun", CONFIGS["zero"], "v")
    with pytest.raises(UserError, match="got x0"):
        to_scheduler("euler-a", CONFIGS["linear"], "x0")
    with pytest.raises(UserError, match="no solver 'lms' of ours"):
        to_scheduler("lms", CONFIGS["linear"], "v")


def test_constant_betas_are_told_from_a_list():
    words = scheduler_config(LISTED["constant"], "eps")
    assert words["trained_betas"] == [0.008] * 1000
    assert from_scheduler_config(words) == (ScheduleConfig(kind="constant", start=0.008), "eps")
    assert from_scheduler_config(scheduler_config(LISTED["given"], "v")) == (LISTED["given"], "v")


@pytest.mark.parametrize(("kind", "target"), [("flow", "v"), ("linear", "flow"), ("zero", "eps"), ("to noise", "eps")])
def test_targets_that_make_no_sense_are_refused(kind, target):
    with pytest.raises(UserError, match=r"does not go with|is undefined where the schedule ends in pure noise"):
        scheduler_config({**CONFIGS, **LISTED}[kind], target)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", [*CONFIGS, *LISTED])
def test_the_default_scheduler_survives_saving(kind, learned, tmp_path):
    config, target = {**CONFIGS, **LISTED}[kind], "flow" if kind == "flow" else "v"
    if learned and kind == "flow":
        with pytest.raises(UserError, match="no scheduler for a flow model with a learned variance"):
            default_scheduler(config, target, learned)
        return
    solver = default_scheduler(config, target, learned)
    plain = DPMSolverMultistepScheduler if kind == "flow" else DDIMScheduler
    assert type(solver) is (DDPMScheduler if learned else plain)
    solver.save_pretrained(tmp_path)
    words = type(solver).load_config(tmp_path)
    assert learns_variance(words) == learned
    assert words["timestep_spacing"] == ("linspace" if learned else "trailing")
    schedule, read = from_scheduler_config(words)
    assert read == target
    ours, again = build(config), build(schedule)
    if kind != "flow":
        assert torch.allclose(solver.alphas_cumprod.double(), ours.a.square(), atol=2e-6)
    assert torch.equal(ours.a, again.a)
    assert torch.equal(ours.s, again.s)


@given(
    kind=st.sampled_from(["linear", "scaled_linear", "cosine", "flow"]),
    steps=st.integers(10, 2000),
    zero=st.booleans(),
    target=st.sampled_from(["eps", "x0", "v", "flow"]),
)
def test_configs_there_and_back(kind, steps, zero, target):
    schedule = ScheduleConfig(kind=kind, num_train_timesteps=steps, zero_terminal=zero and kind != "flow")
    try:
        words = scheduler_config(schedule, target)
    except UserError:
        return
    again, read = from_scheduler_config(words)
    assert read == target
    assert torch.equal(build(again).a, build(schedule).a)


SD15 = {  # scheduler/scheduler_config.json of Stable Diffusion 1.5
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def test_stable_diffusion_is_understood():
    schedule, target = from_scheduler_config(SD15)
    assert target == "eps"
    assert torch.equal(build(schedule).a, build(ScheduleConfig()).a)


def test_flow_matching_schedulers_are_understood():
    solvers = [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ]
    for solver in solvers:
        schedule, target = from_scheduler_config(json.loads(solver.to_json_string()))
        assert (schedule.kind, schedule.num_train_timesteps, target) == ("flow", 1000, "flow")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"beta_schedule": "sigmoid"},
            "PNDMScheduler has beta_schedule 'sigmoid'; expected one of linear, scaled_linear",
        ),
        ({"beta_schedule": None}, "beta_schedule None"),
        ({"trained_betas": [0.1, 0.2]}, r"holds 2 betas \(trained_betas\) for 1000 training times; expected 1000"),
        ({"prediction_type": "score"}, "prediction_type 'score'; expected one of epsilon"),
        ({"variance_type": "learned"}, "predict a whole variance; expected learned_range"),
    ],
)
def test_what_we_cannot_express_is_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        from_scheduler_config({**SD15, **change})
