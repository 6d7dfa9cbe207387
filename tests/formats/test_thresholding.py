"""Dynamic thresholding: what is saved with a model, and that plain diffusers samples the same pictures with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

from conditioning.none import NoCondition
from ldm_kit.config import UserError
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.methods.latent_config import LatentRun, SampleConfig
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saved_sampling import SAMPLING, SavedSampling
from ldm_kit.models.saving import scheduler_to_save
from ldm_kit.nets.unet import UNetConfig, build_unet
from ldm_kit.solvers import samplers

FIXTURES = Path(__file__).parent.parent / "fixtures" / "v0_1"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
NET = UNetConfig(widths=(8, 16), attention_levels=(False, False), heads=1, norm_num_groups=4)
SEED, STEPS = 3, 5
CASES = {"plain": {}, "low": {"dynamic_thresholding_ratio": 0.7}, "capped": {"sample_max_value": 1.5}}


def model(**options) -> Pipeline:
    """A model of pixels that predicts x_0 far outside of -1..1."""
    torch.manual_seed(1)
    unet = build_unet(NET, sample_size=8, channels=3, cross_width=None).eval()
    saved = SavedSampling.of(SAMPLING, SampleConfig(solver="ddim", steps=STEPS, **options))
    return Pipeline(None, unet, NoCondition(), ScheduleConfig(kind="linear"), "eps", saved=saved)


def sampled(pipeline: Pipeline, **options) -> np.ndarray:
    (pictures,) = pipeline.generate([""], [SEED], SamplingOptions(**options))
    return pictures[0].permute(1, 2, 0).double().numpy()


def by_diffusers(kind, folder, **call) -> np.ndarray:
    pipe = kind.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if kind is DDPMPipeline:
        pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(SEED)
    picture = pipe(generator=generator, num_inference_steps=STEPS, output_type="np", **call).images[0]
    return np.round(picture.astype(np.float64) * 255)


@pytest.mark.parametrize("case", CASES)
def test_diffusers_samples_the_same_with_ddim(case, tmp_path, layout):
    model(clip="dynamic", **CASES[case]).save(tmp_path / "model")
    ours = sampled(Pipeline.load(tmp_path / "model"))
    assert np.abs(ours - by_diffusers(DDIMPipeline, tmp_path / "model", use_clipped_model_output=True)).max() <= 1
    assert ours.std() > 5
    others = [{"clip": "clip"}, *({"clip": "dynamic", **other} for name, other in CASES.items() if name != case)]
    for other in others:
        assert np.abs(ours - sampled(model(**other))).max() > 3, other


def test_diffusers_samples_the_same_with_ddpm(tmp_path, monkeypatch):
    generator = torch.Generator()

    def noise(seeds, step, shape):
        """Of one picture's generator, after the noise it starts from, as diffusers draws it."""
        if step == 0:
            generator.manual_seed(SEED)
            torch.randn(1, *shape, generator=generator)
        return torch.randn(len(seeds), *shape, generator=generator)

    monkeypatch.setattr(samplers, "step_noise", noise)
    model(clip="dynamic", sample_max_value=2.0).save(tmp_path / "model")
    ours = sampled(Pipeline.load(tmp_path / "model"), solver="ddpm")
    assert np.abs(ours - by_diffusers(DDPMPipeline, tmp_path / "model")).max() <= 1
    assert np.abs(ours - sampled(model(clip="clip"), solver="ddpm")).max() > 3


def test_the_scheduler_clips_as_the_model_is_sampled():
    def saved(clip, pixels=True, kind="linear", prediction="eps"):
        options = {"clip": clip, "dynamic_thresholding_ratio": 0.9} if clip == "dynamic" else {"clip": clip}
        config = scheduler_to_save(
            ScheduleConfig(kind=kind), prediction, "small", pixels=pixels, sampling=options
        ).config
        return config.get("clip_sample"), config["thresholding"], config["dynamic_thresholding_ratio"]

    assert saved("auto") == saved("published") == saved("clip") == (True, False, 0.995)
    assert saved("none") == (False, False, 0.995)
    assert saved("dynamic") == (False, True, 0.9)
    assert saved("auto", pixels=False) == saved("dynamic", pixels=False) == (False, False, 0.995)
    assert saved("dynamic", kind="flow", prediction="flow") == (None, True, 0.9)  # of DPM-Solver++


def test_a_scheduler_of_diffusers_that_thresholds_is_followed(tmp_path):
    unet = UNet2DModel(**{k: v for k, v in model().unet.config.items() if not k.startswith("_")})
    scheduler = DDPMScheduler(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.95)
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "theirs")
    resolved = SamplingOptions().resolve(Pipeline.load(tmp_path / "theirs"))
    assert (resolved.clip, resolved.dynamic_thresholding_ratio, resolved.sample_max_value) == ("dynamic", 0.95, 1.5)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "plain")
    assert SamplingOptions().resolve(Pipeline.load(tmp_path / "plain")).clip == "clip"


def test_saved_thresholds_go_with_the_clipping():
    pipeline = model(clip="dynamic", dynamic_thresholding_ratio=0.9, sample_max_value=3.0)
    assert SamplingOptions().resolve(pipeline).dynamic_thresholding_ratio == 0.9
    assert SamplingOptions(clip="dynamic").resolve(pipeline).sample_max_value == 3.0
    clipped = SamplingOptions(clip="clip").resolve(pipeline)
    assert (clipped.clip, clipped.dynamic_thresholding_ratio, clipped.sample_max_value) == ("clip", 0.995, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_thresholding_ratio": 0.9}, "--dynamic_thresholding_ratio is for --clip dynamic, but --clip is auto"),
        ({"clip": "clip", "sample_max_value": 2}, "--sample_max_value is for --clip dynamic, but --clip is clip"),
        ({"clip": "dynamic", "dynamic_thresholding_ratio": 0}, "dynamic_thresholding_ratio"),
        ({"clip": "dynamic", "dynamic_thresholding_ratio": 1.1}, "dynamic_thresholding_ratio"),
        ({"clip": "dynamic", "sample_max_value": 0.9}, "sample_max_value"),
    ],
    ids=str,
)
def test_what_no_threshold_is(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**options)


def test_latents_are_not_thresholded():
    with pytest.raises(UserError, match="--clip dynamic is for pixels, but this model denoises latents"):
        SamplingOptions(clip="dynamic").resolve(Pipeline.load(FIXTURES / "latent"))
    tree = {"run": "r", "data": {"source": "digits"}, "condition": {"kind": "none"}, "unet": NET.model_dump()}
    tree["train"] = {"steps": 1, "batch_size": 1}
    LatentRun(**tree, sample={"clip": "dynamic"})
    with pytest.raises(ValueError, match=r"sample\.clip dynamic is for pixels, but this run denoises latents"):
        LatentRun(**tree, autoencoder="runs/ae", sample={"clip": "dynamic"})
