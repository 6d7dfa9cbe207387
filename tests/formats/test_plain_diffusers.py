"""What we save opens in plain diffusers, where ldm_kit is not even installed, and draws the same pictures."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_kit.diffusion import rng
from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.respacing import trailing
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.solvers import samplers
from tests.world import World

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PROMPT, NEGATIVE, SEED = "red square 1", "blue square 3", 7
STEPS = 5  # divides 1000: else the step of diffusers' DDIM misses its own next time by one
PLAIN = {"num_inference_steps": STEPS}
TEXT = {"prompt": PROMPT, **PLAIN}
JOBS = {  # name -> (model, pipeline, scheduler or None for the saved one, call)
    "one": ("text", "StableDiffusionPipeline", None, {**TEXT, "guidance_scale": 1.0}),
    "guided": ("text", "StableDiffusionPipeline", None, {**TEXT, "guidance_scale": 15.0}),
    "negative": (
        "text",
        "StableDiffusionPipeline",
        None,
        {**TEXT, "guidance_scale": 15.0, "negative_prompt": NEGATIVE},
    ),
    "dpm++": ("text", "StableDiffusionPipeline", "DPMSolverMultistepScheduler", {**TEXT, "guidance_scale": 2.0}),
    "unipc": ("text", "StableDiffusionPipeline", "UniPCMultistepScheduler", {**TEXT, "guidance_scale": 2.0}),
    "flow": ("flow", "StableDiffusionPipeline", None, {**TEXT, "guidance_scale": 2.0}),
    "flow unipc": ("flow", "StableDiffusionPipeline", "UniPCMultistepScheduler", {**TEXT, "guidance_scale": 2.0}),
    "plain": ("plain", "LDMPipeline", None, PLAIN),
    "plain_vq": ("plain_vq", "LDMPipeline", None, PLAIN),
    "plain_flow": ("plain_flow", "LDMPipeline", None, PLAIN),
    "pixels": ("pixels", "DDIMPipeline", None, {**PLAIN, "use_clipped_model_output": True}),
    "pixels, noisy": ("pixels", "DDIMPipeline", None, {**PLAIN, "use_clipped_model_output": True, "eta": 1.0}),
    "pixels ddpm": ("pixels", "DDPMPipeline", "DDPMScheduler", PLAIN),
    "learned": ("learned", "DDPMPipeline", None, PLAIN),
    "img2img": ("text", "StableDiffusionImg2ImgPipeline", None, TEXT),
    "inpaint": ("text", "StableDiffusionInpaintPipeline", None, TEXT),
    "pixels by default": ("pixels", "DDIMPipeline", None, PLAIN),
    "pixels, steps that do not divide": (
        "pixels",
        "DDIMPipeline",
        None,
        {"num_inference_steps": 15, "use_clipped_model_output": True},
    ),
    "steps that do not divide": ("text", "StableDiffusionPipeline", None, {**TEXT, "num_inference_steps": 15}),
    "any": ("text", "DiffusionPipeline", None, {**TEXT, "guidance_scale": 1.0, "latents": None}),
}
OURS = {  # what we draw for the same job
    "one": SamplingOptions(steps=STEPS, solver="ddim", guidance_scale=1.0),
    "guided": SamplingOptions(steps=STEPS, solver="ddim", guidance_scale=15.0),
    "negative": SamplingOptions(steps=STEPS, solver="ddim", guidance_scale=15.0, negative_prompt=NEGATIVE),
    "dpm++": SamplingOptions(steps=STEPS, solver="dpm++", guidance_scale=2.0),
    "unipc": SamplingOptions(steps=STEPS, solver="unipc", guidance_scale=2.0),
    "flow": SamplingOptions(steps=STEPS, solver="dpm++", guidance_scale=2.0),
    "plain": SamplingOptions(steps=STEPS, solver="ddim"),
    "plain_vq": SamplingOptions(steps=STEPS, solver="ddim"),
    "pixels": SamplingOptions(steps=STEPS, solver="ddim"),
    "pixels, noisy": SamplingOptions(steps=STEPS, solver="ddim", eta=1.0),
    "pixels ddpm": SamplingOptions(steps=STEPS, solver="ddpm"),
    "learned": SamplingOptions(steps=STEPS, solver="ddpm", spacing="linspace"),
}


@pytest.fixture(scope="module")
def theirs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Every job's picture as diffusers draws it in another interpreter, another folder and without our packages."""
    place = tmp_path_factory.mktemp("elsewhere")
    jobs = [
        {"name": name, "folder": str(world.model(model) / "model"), "pipeline": kind, "solver": solver, "call": call}
        for name, (model, kind, solver, call) in JOBS.items()
    ]
    (place / "jobs.json").write_text(json.dumps([{**job, "seed": SEED} for job in jobs]))
    script = Path(__file__).with_name("open_plainly.py")
    command = [sys.executable, "-I", str(script), "jobs.json", "out.npz"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(place / "out.npz") as found:
        return dict(found)


def grey(picture: np.ndarray) -> np.ndarray:
    """0..1 as grey levels."""
    return np.round(picture.astype(np.float64) * 255)


def _prompt(pipeline: Pipeline) -> str:
    return PROMPT if pipeline.conditioner.null is not None else ""


def drawn(folder: Path, wish: SamplingOptions) -> np.ndarray:
    """Our picture, [h, w, 3] in grey levels."""
    pipeline = Pipeline.load(folder)
    (pictures,) = pipeline.generate([_prompt(pipeline)], [SEED], wish)
    return pictures[0].permute(1, 2, 0).double().numpy()


@pytest.fixture
def one_stream(monkeypatch):
    """Noise of steps as diffusers' pipelines draw it: of one picture's generator, after the noise it starts from."""
    generator = torch.Generator().manual_seed(SEED)

    def noise(seeds, step, shape):
        if step == 0:
            generator.manual_seed(SEED)
            torch.randn(1, *shape, generator=generator)
        return torch.randn(len(seeds), *shape, generator=generator)

    monkeypatch.setattr(samplers, "step_noise", noise)


@pytest.mark.usefixtures("one_stream")
@pytest.mark.parametrize("name", OURS)
def test_the_same_picture(world, theirs, name):
    ours, their = drawn(world.model(JOBS[name][0]) / "model", OURS[name]), grey(theirs[name])
    assert ours.shape == their.shape == (16, 16, 3)
    assert np.abs(ours - their).max() <= 1
    assert ours.std() > 5, "an even picture would prove nothing"


def walk(pipeline: Pipeline, denoiser: Denoiser, steps: int) -> np.ndarray:
    """Sample as diffusers' DDIM does: each step goes down by T // steps, whatever the next time is."""
    total = pipeline.schedule_config.num_train_timesteps
    x, cond = rng.initial_noise([SEED], pipeline.latent_shape), pipeline.condition([_prompt(pipeline)])
    with torch.no_grad():
        for t in trailing(total, steps)[:-1]:
            *_, state = ddim(denoiser, x, [t, max(t - total // steps, -1)], cond)
            x = state.x
    return pipeline.pictures(x)[0].permute(1, 2, 0).double().numpy()


@dataclass
class ClippedAlone(Denoiser):
    """x_0 clipped, and eps as it was."""

    denoiser: Denoiser

    @property
    def schedule(self):
        return self.denoiser.schedule

    def __call__(self, x, t, cond=None):
        x_0, eps, *_ = self.denoiser(x, t, cond)
        return Prediction(x_0.clamp(-1, 1), eps)


@pytest.mark.parametrize("name", ["pixels by default", "pixels, steps that do not divide", "steps that do not divide"])
def test_when_the_picture_is_another_and_why(world, theirs, name):
    """docs/concepts/sampling.md names both: DDIMPipeline clips x_0 alone by default, and steps by T // steps."""
    model, _, _, call = JOBS[name]
    pipeline, steps = Pipeline.load(world.model(model) / "model"), call["num_inference_steps"]
    resolved = SamplingOptions(steps=steps, solver="ddim").resolve(pipeline)
    if name == "pixels by default":
        denoiser: Denoiser = ClippedAlone(pipeline.denoiser())
    elif model == "pixels":
        denoiser = pipeline.guided_denoiser([""], resolved)
    else:
        options = SamplingOptions(steps=steps, solver="ddim", guidance_scale=7.5)  # StableDiffusionPipeline's default
        denoiser = pipeline.guided_denoiser([PROMPT], options.resolve(pipeline))
    assert np.abs(walk(pipeline, denoiser, steps) - grey(theirs[name])).max() <= 1


@pytest.mark.parametrize("name", JOBS)
def test_every_solver_runs(theirs, name):
    assert np.isfinite(theirs[name]).all()
    assert theirs[name].shape == (16, 16, 3)
    assert theirs[name].std() > 0.01


def test_guidance_and_negative_prompts_matter(theirs):
    for a, b in (("one", "guided"), ("guided", "negative")):
        assert np.abs(grey(theirs[a]) - grey(theirs[b])).max() > 3


def test_the_noise_is_that_of_diffusers(world):
    pipeline = Pipeline.load(world.model("text") / "model")
    given = torch.randn(1, *pipeline.latent_shape, generator=torch.Generator().manual_seed(SEED))
    *_, one = pipeline.states([PROMPT], [SEED], SamplingOptions(steps=3, solver="ddim").resolve(pipeline))
    *_, two = pipeline.states([PROMPT], [SEED], SamplingOptions(steps=3, solver="ddim").resolve(pipeline), noise=given)
    assert torch.equal(one.x, two.x)
