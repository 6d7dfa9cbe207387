import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.functional import silu

from ldm_kit.config import UserError
from ldm_kit.nets.adagn import SemanticProjection, give_z

BOTH = {"in_channels": 16, "temb_channels": 24, "groups": 8, "time_embedding_norm": "scale_shift"}


def block(time_width=8, z_width=24, *, z_shift=False, **more):
    torch.manual_seed(0)
    made = ResnetBlock2D(**{**BOTH, "out_channels": 32, **more})
    give_z(made, time_width, z_width, z_shift=z_shift)
    return made


@pytest.mark.parametrize("z_shift", [False, True])
@pytest.mark.parametrize("move", [{}, {"up": True}, {"down": True}])
def test_a_block_computes_the_papers_formula(z_shift, move):
    made, x, time, z = block(z_shift=z_shift, **move), torch.randn(2, 16, 8, 8), torch.randn(2, 8), torch.randn(2, 24)
    resample = made.upsample or made.downsample or nn.Identity()
    h = made.conv1(resample(silu(made.norm1(x))))
    scale, shift = made.time_emb_proj.time(silu(time))[:, :, None, None].chunk(2, 1)
    said = made.time_emb_proj.semantic(silu(z))[:, :, None, None]
    gain, offset = said.chunk(2, 1) if z_shift else (said, 0)
    h = (1 + gain) * ((1 + scale) * made.norm2(h) + shift) + offset
    truth = made.conv_shortcut(resample(x)) + made.conv2(silu(h))
    assert torch.allclose(made(x, torch.cat([time, z], 1)), truth, atol=1e-5)


def test_the_projection_is_exact_under_autocast():
    projection, both = SemanticProjection(8, 24, 16), torch.randn(2, 32)
    exact = projection(both)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(projection(both), exact)
    half = SemanticProjection(8, 24, 16, dtype=torch.bfloat16)
    assert half(both.bfloat16()).dtype == torch.bfloat16  # what follows has weights in bfloat16 too


def test_every_block_of_a_unet_is_given_a_code():
    unet = UNet2DModel(block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, **KINDS)
    give_z(unet, 64, 5)
    blocks = [m for m in unet.modules() if isinstance(m, ResnetBlock2D)]
    assert len(blocks) == 8
    for made in blocks:
        assert made.time_embedding_norm == "scale_shift"
        assert made.time_emb_proj.semantic.weight.shape == (made.out_channels, 5)


KINDS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}


def test_kept_projections_change_nothing_yet():
    plain = ResnetBlock2D(**{**BOTH, "temb_channels": 8})
    x, time, z = torch.randn(2, 16, 4, 4), torch.randn(2, 8), torch.randn(2, 3)
    before = plain(x, time)
    give_z(plain, 8, 3, z_shift=True, keep_time=True)
    assert torch.allclose(plain(x, torch.cat([time, z], 1)), before, atol=1e-6)


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(UserError, match="a Linear without any ResnetBlock2D"):
        give_z(nn.Linear(2, 2), 8, 8)
    with pytest.raises(UserError, match="without a time embedding"):
        give_z(ResnetBlock2D(in_channels=8, groups=8, temb_channels=None), 8, 8)
