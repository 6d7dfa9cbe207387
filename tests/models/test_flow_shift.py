"""The shift of a flow model's times: diffusers' formula, sampling grids, training times, and what is refused."""

import json
import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.diffusion.respacing import shifted_time, shifted_timesteps, trailing
from ldm_kit.diffusion.timesteps import TimestepSamplingConfig, sample_timesteps
from ldm_kit.editing.inversion import sampling_times
from ldm_kit.methods import check_run
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import FILE, SAMPLING, SavedSampling
from tests.world import through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2


@pytest.fixture
def flow(world) -> Pipeline:
    return Pipeline.load(world.model("flow") / "model")


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 7.25])
def test_the_formula_is_that_of_flow_match_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    times = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    assert torch.allclose(shifted_time(times, shift), scheduler.sigmas.double(), atol=1e-6)
    assert shifted_time(0.25, shift) == pytest.approx(float(shifted_time(torch.tensor(0.25), shift)))
    assert (shifted_time(0.0, shift), shifted_time(1.0, shift)) == (0.0, 1.0)


@pytest.mark.parametrize("area", [0.5, 2.0, 9.0])
def test_the_shift_by_area_is_diffusers_linear_one(area):
    """Esser et al. 2024, eq. 23 with sqrt(m / n), as `time_shift_type` linear with that mu."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    times = np.linspace(1e-3, 1, 50)
    expected = scheduler.time_shift(area**0.5, 1.0, times)
    assert np.allclose([shifted_time(float(t), area**0.5) for t in times], expected)


def test_two_shifts_multiply():
    assert shifted_time(shifted_time(0.3, 2.0), 3.0) == pytest.approx(shifted_time(0.3, 6.0))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_are_those_of_diffusers_solver_to_rounding(shift):
    solver = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    solver.set_timesteps(10)
    times = shifted_timesteps(trailing(1000, 10), 1000, shift)
    assert times[-1] == -1
    assert np.abs(np.array(times[:-1]) - solver.timesteps.numpy()).max() <= 2  # whose times are rounded otherwise


def test_timesteps_that_fall_together_are_refused():
    assert shifted_timesteps([9, 5, 0, -1], 10, 1.0) == [9, 5, 0, -1]
    assert shifted_timesteps([9, 5, 0, -1], 10, 0.5) == [8, 3, 0, -1]
    with pytest.raises(ValueError, match="1000 steps of 1000 training times fall together"):
        shifted_timesteps(trailing(1000, 1000), 1000, 3.0)


def test_options_shift_the_times_of_flow_models_alone(flow, world):
    plain = SamplingOptions(steps=5).resolve(flow)
    shifted = SamplingOptions(steps=5, flow_shift=3.0).resolve(flow)
    assert plain.timesteps == tuple(trailing(1000, 5))
    assert shifted.timesteps == tuple(shifted_timesteps(trailing(1000, 5), 1000, 3.0))
    pictures = [next(flow.generate(["red square 1"], [0], options)) for options in (plain, shifted)]
    assert not torch.equal(*pictures)
    other = Pipeline.load(world.model("text") / "model")
    for given in ({"flow_shift": 3.0}, {"resolution_shift": True}):
        with pytest.raises(UserError, match=rf"--{next(iter(given))} is for flow models, and this one has .*linear"):
            SamplingOptions(steps=5, **given).resolve(other)
        with pytest.raises(ValueError, match=rf"--{next(iter(given))} is for our own solvers"):
            SamplingOptions(solver="diffusers:EulerDiscreteScheduler", **given)
    with pytest.raises(UserError, match=r"--flow_shift 3: 900 steps of 1000 training times fall together"):
        SamplingOptions(steps=900, flow_shift=3.0).resolve(flow)


def test_the_shift_by_resolution_follows_height_and_width(flow):
    def times(**options):
        return SamplingOptions(steps=5, **options).resolve(flow).timesteps

    assert times(resolution_shift=True) == times()
    assert times(resolution_shift=True, height=32, width=32) == times(flow_shift=2.0)
    assert times(resolution_shift=True, height=32) == times(flow_shift=2**0.5)
    assert times(resolution_shift=True, height=32, width=32, flow_shift=1.5) == times(flow_shift=3.0)
    assert times(height=32, width=32) == times(), "only where it is asked for"


def test_img2img_shifts_its_share_of_the_times(flow):
    options = SamplingOptions(steps=4, flow_shift=3.0).resolve(flow)
    assert sampling_times(flow, options, 0.5) == shifted_timesteps(trailing(500, 4), 500, 3.0)
    assert sampling_times(flow, options) == list(options.timesteps)


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
@pytest.mark.parametrize("stratified", [False, True])
def test_training_times_are_shifted(density, stratified):
    config = TimestepSamplingConfig(density=density, stratified=stratified)
    positions = torch.arange(4000)
    plain = sample_timesteps(config, 0, positions, 400, 1000)
    shifted = sample_timesteps(config.model_copy(update={"shift": 3.0}), 0, positions, 400, 1000)
    expected = shifted_time((plain.double() + 0.5) / 1000, 3.0) * 1000
    assert (shifted.double() + 0.5 - expected).abs().max() < 3, "a bin is up to three times as wide"
    assert (shifted >= plain).all()
    assert 0 <= shifted.min() <= shifted.max() <= 999


def config(world, **changes):
    return {**world.ldm("flow", "shifted"), **changes}


def test_configs_that_do_not_fit_are_refused(world):
    linear = {"schedule": {"kind": "linear"}, "prediction_type": "v"}
    for changes, message in (
        (
            {**linear, "timestep_sampling": {"shift": 3.0}},
            "timestep_sampling.shift is 3, which is for schedule.kind flow",
        ),
        ({**linear, "sample": {"steps": 2, "flow_shift": 3.0}}, "sample.flow_shift is for schedule.kind flow"),
        ({**linear, "sample": {"steps": 2, "resolution_shift": True}}, "sample.resolution_shift is for schedule.kind"),
    ):
        with pytest.raises(UserError, match=message):
            check_run(config(world, **changes), "a config")
    check_run(config(world, timestep_sampling={"shift": 3.0}), "a config")


def test_a_run_saves_its_shift_for_us_and_for_diffusers(world, tmp_path):
    tree = config(world, run=str(tmp_path / "run"), timestep_sampling={"shift": 2.0})
    tree["sample"] = {"steps": 5, "solver": "dpm++", "flow_shift": 3.0, "guidance_scale": 1.0}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree))
    outcome = through("train_ldm", path)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "run" / "model"
    pipeline = Pipeline.load(folder)
    resolved = SamplingOptions().resolve(pipeline)
    assert resolved.timesteps == tuple(shifted_timesteps(trailing(1000, 5), 1000, 3.0))
    assert "flow_shift 3" in resolved.note
    foreign = SamplingOptions(solver="diffusers:DPMSolverMultistepScheduler").resolve(pipeline)
    assert (foreign.flow_shift, foreign.steps) == (1.0, 5)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["flow_shift"] == 3.0
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(4)]
    call = {"num_inference_steps": 5, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "latent"}
    expected = theirs("red square 1", generator=generator, **call).images
    shifted, unshifted = (
        [*pipeline.states(["red square 1"], [4], options.resolve(pipeline))][-1].x
        for options in (SamplingOptions(), SamplingOptions(flow_shift=1.0))
    )
    error, other = ((x - expected).square().mean().sqrt().item() for x in (shifted, unshifted))
    assert error < other / 2, "but for the rounding of times, the shift is that of diffusers"


def test_a_model_of_others_has_the_shift_of_its_scheduler(world, tmp_path):
    folder = shutil.copytree(world.model("flow") / "model", tmp_path / "model")
    (folder / FILE).unlink()
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "scheduler" / "scheduler_config.json"
    own = json.loads(path.read_text())
    for changes, shift in (
        ({}, None),
        ({"flow_shift": 2.5}, 2.5),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 3.0),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}, None),
        ({"use_flow_sigmas": False, "flow_shift": 2.5}, None),
    ):
        path.write_text(json.dumps({**own, **changes}))
        expected = {} if shift is None else {SAMPLING: {"flow_shift": shift}}
        assert SavedSampling.read(folder).sections == expected


def test_help_needs_no_torch():
    code = "import sys, ldm_kit.models.sampler_options, ldm_kit.models.sizes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
