"""Guidance as a saved model has it, in numbers: nothing is trained here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm_kit.diffusion.denoiser import times_like
from ldm_kit.diffusion.prediction import from_prediction
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
MODEL = Path(__file__).parent.parent / "fixtures" / "v0_1" / "pixels"


@torch.no_grad()
def test_rescale_is_of_what_the_network_predicts():
    """With the whole contrast taken back, v deviates as that of the condition does, and eps in another way."""
    pipeline, names = replace(Pipeline.load(MODEL), target="v"), ["red", "blue"]  # whatever it was trained on
    options = SamplingOptions(guidance_scale=9.0, clip="none", guidance_rescale=1.0).resolve(pipeline)
    x, t, cond = initial_noise([3, 4], pipeline.latent_shape), times_like(torch.zeros(2), 60), pipeline.condition(names)
    rescaled, plain = pipeline.guided_denoiser(names, options)(x, t, cond), pipeline.denoiser()(x, t, cond)
    one, other = (from_prediction("v", p, *pipeline.schedule.alpha_sigma(t)) for p in (rescaled, plain))
    torch.testing.assert_close(one.flatten(1).std(1), other.flatten(1).std(1), rtol=1e-4, atol=0)
    assert not torch.allclose(rescaled.eps.flatten(1).std(1), plain.eps.flatten(1).std(1), rtol=1e-3)
    assert (one - other).abs().max() > 1e-2
