"""What a saved folder says that it is: a class of diffusers only where every scheduler of its pipeline works."""

import json
from pathlib import Path

import diffusers
import pytest
from diffusers import DDPMScheduler

from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.saving import pipeline_class, write_index
from ldm_kit.nets.unet import UNetConfig, build_unet

RUNS = Path(__file__).parent.parent / "fixtures" / "v0_1"
UNET = UNetConfig(widths=(16, 16), attention_levels=(False, True), heads=2, norm_num_groups=8)


@pytest.mark.parametrize(
    ("latents", "text", "learned", "kind"),
    [
        (True, True, False, "StableDiffusionPipeline"),
        (True, True, True, "ldm_kit.Pipeline"),
        (True, False, False, "LDMPipeline"),
        (True, False, True, "ldm_kit.Pipeline"),
        (False, False, True, "DDPMPipeline"),  # which has that scheduler alone
    ],
)
def test_a_learned_variance_is_no_pipeline_of_any_scheduler(latents, text, learned, kind):
    channels = 4 if latents else 3
    unet = build_unet(
        UNET,
        sample_size=8,
        channels=channels,
        out_channels=channels * (1 + learned),
        cross_width=16 if text else None,
    )
    vae = Pipeline.load(RUNS / "latent").vae if latents else None
    entries = {"text_encoder": ("transformers", "CLIPTextModel")} if text else {}
    assert pipeline_class(vae, unet, DDPMScheduler(), entries) == kind


def test_the_index_names_the_release_of_diffusers(tmp_path):
    """Without it StableDiffusionInpaintPipeline.from_pretrained ends in a KeyError."""
    write_index(tmp_path, {"_class_name": "X"})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == {"_class_name": "X", "_diffusers_version": diffusers.__version__}


def test_a_base_whose_null_condition_was_never_trained(tmp_path):
    from ldm_kit.config import UserError
    from ldm_kit.models.base_model import BaseModel

    pipeline = Pipeline.load(RUNS / "latent")
    pipeline.save(tmp_path / "model")
    (tmp_path / "model" / "sampling.json").write_text('{"sampling": {"condition_dropout": 0.0}}')
    with pytest.raises(UserError, match="cannot be a base: its null condition was never trained"):
        BaseModel.open(tmp_path / "model")
