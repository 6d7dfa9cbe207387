"""The guidance scale as a U-Net's input: diffusers' embedding, and weights at which the scale changes nothing."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from conditioning.condition import Condition
from ldm_kit.config import UserError
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.guidance_embedding import guidance_embedding, takes_guidance_scale
from ldm_kit.nets.unet import UNetConfig, build_unet

CONFIG = UNetConfig(widths=(8, 16), attention_levels=(False, True), heads=2, norm_num_groups=4)
SHAPE = {"sample_size": 8, "channels": 2}
X, T = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 7, 900])
TOKENS = Condition(tokens=torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1)))
SCALES = torch.tensor([1.0, 3.0, 8.0])


@pytest.fixture(scope="module")
def unet():
    return build_unet(CONFIG, **SHAPE, cross_width=16, guidance_width=32).eval()


@pytest.mark.parametrize("width", [4, 256])
def test_the_embedding_is_that_of_diffusers_pipelines(width):
    """Which take the scale less 1."""
    scales = [1.0, 1.3, 2.0, 7.5, 8.0]
    expected = torch.cat(
        [
            StableDiffusionPipeline.get_guidance_scale_embedding(None, torch.tensor([scale - 1]), width)  # type: ignore[arg-type]
            for scale in scales
        ]
    )
    embedding = guidance_embedding(torch.tensor(scales, dtype=torch.float64), width)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, expected, rtol=0, atol=2e-3)  # angles are up to 7000 in float32
    assert torch.equal(embedding[0], torch.cat([torch.zeros(width // 2), torch.ones(width // 2)]))


@torch.no_grad()
def test_a_new_input_changes_nothing(unet):
    plain = build_unet(CONFIG, **SHAPE, cross_width=16).eval()
    assert (takes_guidance_scale(unet), takes_guidance_scale(plain)) == (True, False)
    missing, unexpected = unet.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["time_embedding.cond_proj.weight"], [])
    expected = apply_unet(plain, X, T, TOKENS)
    for scale in (None, SCALES):
        assert torch.equal(apply_unet(unet, X, T, TOKENS, scale=scale), expected)


@torch.no_grad()
def test_a_trained_input_matters_sample_by_sample_and_is_1_if_left_out(unet):
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, generator=torch.Generator().manual_seed(2))
    out = apply_unet(unet, X, T, TOKENS, scale=SCALES)
    torch.testing.assert_close(out[:1], apply_unet(unet, X, T, TOKENS)[:1])
    torch.testing.assert_close(out[2:], apply_unet(unet, X, T, TOKENS, scale=torch.tensor([8.0]))[2:])
    assert (out - apply_unet(unet, X, T, TOKENS)).abs().flatten(1).max(1).values[1:].min() > 1e-3


def test_a_network_without_the_input_takes_no_scale():
    plain = build_unet(CONFIG, **SHAPE, cross_width=16)
    with pytest.raises(ValueError, match="takes no guidance scale"):
        apply_unet(plain, X, T, TOKENS, scale=SCALES)
    with pytest.raises(UserError, match="a U-Net with tokens, but this one has none") as refused:
        build_unet(CONFIG, **SHAPE, cross_width=None, guidance_width=32)
    assert "\n" not in str(refused.value)
