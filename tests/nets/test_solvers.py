import json
from functools import cache

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_kit.config import UserError
from ldm_kit.diffusion.analytic import Gaussian, Mixture
from ldm_kit.diffusion.denoiser import times_like
from ldm_kit.diffusion.prediction import from_prediction
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.schedule import ScheduleConfig, build, trailing
from ldm_kit.solvers.samplers import (
    SAMPLER_NAMES,
    default_scheduler,
    from_scheduler_config,
    learns_variance,
    sample,
    scheduler_config,
    to_scheduler,
)

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
    "given": ScheduleConfig(kind="given", steps=50, betas=tuple(torch.linspace(0.01, 0.3, 50).tolist())),
    "scaled ends": ScheduleConfig(kind="linear", num_train_timesteps=50, scale_ends=True),
    "to noise": ScheduleConfig(kind="given", num_train_timesteps=3, betas=(0.1, 0.5, 1.0)),
    "rescaled": ScheduleConfig(kind="constant", num_train_timesteps=40, start=0.05, zero_terminal=True),
}
NOISE = initial_noise(range(200), (1,)).double()
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
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_solver_recovers_a_gaussian(name, kind):
    exact, seeds = Gaussian(build(CONFIGS[kind]), m=2.0, s=0.5), range(60)
    x = last(draw(name, exact, initial_noise(seeds, (300,)), 150, seeds=seeds))
    assert abs(x.mean() - 2.0) < 0.03
    assert abs(x.std() - 0.5) < 0.035  # the small variance is too small by O(1 / steps)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_a_picture_does_not_depend_on_its_batch_mates(name, kind):
    exact, seeds = mixture(kind), [5, 3, 8, 1]
    whole = last(draw(name, exact, initial_noise(seeds, (1,)), 12, seeds=seeds))
    for i, seed in enumerate(seeds):
        alone = last(draw(name, exact, initial_noise([seed], (1,)), 12, seeds=[seed]))
        assert torch.allclose(whole[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_a_solver_takes_the_condition(name):
    exact, seeds = mixture("zero"), range(2_000)
    x = last(draw(name, exact, initial_noise(seeds, (1,)), 30, 0, seeds=seeds))
    assert abs(x.mean() + 1) < 0.05


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(SAMPLER_NAMES), kind=st.sampled_from(sorted(CONFIGS)), steps=st.integers(1, 40))
def test_any_number_of_steps_is_walked_and_finite(name, kind, steps):
    states = list(draw(name, mixture(kind), initial_noise([0, 1], (1,)), steps, seeds=[0, 1]))
    assert len(states) == steps
    assert states[-1].t == -1
    assert torch.isfinite(states[-1].x).all()
    assert states[-1].x.dtype == torch.float32


@pytest.mark.parametrize("kind", ["flow", "zero", "linear"])
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_as_many_steps_as_training_times_are_finite(name, kind):
    few = CONFIGS[kind].model_copy(update={"steps": 30})
    exact = Gaussian(build(few), m=0.0, s=1.0)
    assert torch.isfinite(last(draw(name, exact, initial_noise([0], (4,)), 30, seeds=[0]))).all()


@pytest.mark.parametrize("name", ["heun", "dpm++", "unipc"])
@pytest.mark.parametrize("kind", ["zero", "linear", "flow"])
def test_higher_order_beats_ddim_at_few_steps(name, kind):
    errors = {n: (last(draw(n, mixture(kind), NOISE, 20)) - truth(kind)).square().mean() for n in ("ddim", name)}
    assert errors[name] < errors["ddim"] / 2


@pytest.mark.parametrize("name", SAMPLER_NAMES)
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
        x = solver.step(from_prediction(target, exact(x, time), *exact.schedule.at(time)), t, x).prev_sample
    apart = {"linear": 1e-4, "cosine": 1e-3, "zero": 5e-3, "flow": 5e-3}[
        kind
    ]  # a = 0 is 2^-12 there, times are rounded
    assert torch.allclose(last(draw(name, exact, noise, 20)), x, atol=apart)


@pytest.mark.parametrize("name", SAMPLER_NAMES)
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
    with pytest.raises(UserError, match=r"expected|cannot predict"):
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
