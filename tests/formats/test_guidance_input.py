"""A saved model with the guidance scale as input gives the same pictures in plain diffusers, at every scale."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn

from conditioning.text import TextConditioner, TextConfig
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.unet import UNetConfig, build_unet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PROMPT, SEED, STEPS = "red square", 7, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with random weights, those of the scale included."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    text = TextConfig(width=16, layers=1, heads=2, vocabulary=520, length=8)
    conditioner = TextConditioner.build(text, captions=["red square", "blue circle"])
    config = UNetConfig(widths=(8, 16), attention_levels=(False, True), heads=2, norm_num_groups=4)
    unet = build_unet(config, sample_size=8, channels=4, cross_width=16, guidance_width=32)
    nn.init.normal_(unet.time_embedding.cond_proj.weight)
    path = tmp_path_factory.mktemp("saved") / "model"
    Pipeline(vae.eval(), unet.eval(), conditioner.eval(), ScheduleConfig(kind="scaled_linear"), "v").save(path)
    return path


@pytest.fixture(scope="module")
def pictures(folder):
    """Pictures of diffusers and of ours, [h, w, 3] in grey levels, by scale."""
    theirs, ours = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True), Pipeline.load(folder)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))
    found = {}
    for scale in (1.0, 2.5, 7.0):
        call = {"prompt": PROMPT, "num_inference_steps": STEPS, "latents": noise, "output_type": "np"}
        options = SamplingOptions(steps=STEPS, solver="ddim", guidance_scale=scale)
        (mine,) = ours.generate([PROMPT], [SEED], options)
        picture = theirs(**call, guidance_scale=scale).images[0]
        found[scale] = (np.round(picture.astype(np.float64) * 255), mine[0].permute(1, 2, 0).double().numpy())
    return found


@pytest.mark.parametrize("scale", [1.0, 2.5, 7.0])
def test_the_same_picture_at_the_same_scale(pictures, scale):
    theirs, ours = pictures[scale]
    assert theirs.shape == ours.shape == (16, 16, 3)
    assert np.abs(ours - theirs).max() <= 1
    assert ours.std() > 5, "an even picture would prove nothing"


def test_scales_give_different_pictures(pictures):
    """More different than rounding, so that a scale taken one too high or too low would show."""
    for one, other in ((1.0, 2.5), (2.5, 7.0)):
        assert np.abs(pictures[one][1] - pictures[other][1]).max() > 3
