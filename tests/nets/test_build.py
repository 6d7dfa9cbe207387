from dataclasses import dataclass
from functools import partial

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.schedule import scaled_linear
from ldm_kit.nets.apply import apply_unet
from ldm_kit.nets.execution import set_attention, set_layout
from ldm_kit.nets.unet import UNetConfig, build_unet, zero_init_like_adm

TINY = UNetConfig(widths=(32, 64), attention_levels=(False, True), heads=4, norm_num_groups=8)


@dataclass
class Condition:
    tokens: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None


def crossed(config=TINY, channels=4, **more):
    torch.manual_seed(0)
    return build_unet(config, sample_size=8, channels=channels, cross_width=16, **more).eval()


def plain(config=TINY, channels=4, **more):
    torch.manual_seed(0)
    return build_unet(config, sample_size=8, channels=channels, cross_width=None, **more).eval()


def batch(size=3, channels=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, channels, 8, 8, generator=generator)
    tokens, mask = torch.randn(size, 5, 16, generator=generator), torch.arange(5) < torch.tensor([[5], [2], [1]])[:size]
    return x, torch.tensor([0, 500, 999])[:size], Condition(tokens, mask)


def worst(one, two):
    return (one - two).abs().max().item()


def test_levels_without_attention_have_none_and_heads_are_counted_as_asked():
    by_size = UNetConfig(widths=(32, 64, 128), attention_levels=(False, True, True), head_size=16)
    for config, heads in (
        (by_size, {4, 8}),
        (UNetConfig(**{**by_size.model_dump(), "heads": 4, "head_size": None}), {4}),
    ):
        unet = build_unet(config, sample_size=8, channels=4, cross_width=16)
        assert unet.config.down_block_types == ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        assert unet.config.up_block_types == ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
        assert {m.heads for m in unet.modules() if isinstance(m, Attention)} == heads


def test_one_head_is_as_wide_as_its_level_without_tokens():
    unet = build_unet(
        UNetConfig(preset="ldm4-imagenet", norm_num_groups=8, widths=(32, 64, 96, 160)),
        sample_size=8,
        channels=4,
        cross_width=None,
    )
    assert {m.heads for m in unet.modules() if isinstance(m, Attention)} == {1}


@pytest.mark.parametrize("build", [crossed, plain])
def test_saved_and_opened_by_diffusers_it_is_the_same(build, tmp_path):
    unet, (x, t, condition) = build(), batch()
    condition = condition if build is crossed else None
    unet.save_pretrained(tmp_path)
    again = type(unet).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(apply_unet(unet, x, t, condition), apply_unet(again, x, t, condition))


@torch.no_grad()
def test_masked_tokens_change_nothing():
    unet, (x, t, condition) = crossed(), batch()
    other = Condition(torch.where(condition.mask[..., None], condition.tokens, 100.0), condition.mask)
    assert torch.equal(apply_unet(unet, x, t, condition), apply_unet(unet, x, t, other))
    assert worst(apply_unet(unet, x, t, condition), apply_unet(unet, x, t, Condition(condition.tokens))) > 1e-3


@torch.no_grad()
def test_each_picture_has_its_own_time_and_condition():
    unet, (x, t, c) = crossed(), batch()
    whole = apply_unet(unet, x, t, c)
    for i in range(3):
        one = apply_unet(unet, x[i : i + 1], t[i : i + 1], Condition(c.tokens[i : i + 1], c.mask[i : i + 1]))
        assert worst(whole[i : i + 1], one) < 1e-5


@torch.no_grad()
def test_a_condition_of_one_row_serves_the_batch():
    unet, (x, t, c) = crossed(), batch()
    one = Condition(c.tokens[1:2], c.mask[1:2])
    three = Condition(c.tokens[1:2].repeat(3, 1, 1), c.mask[1:2].repeat(3, 1))
    assert torch.equal(apply_unet(unet, x, t, one), apply_unet(unet, x, t, three))


@torch.no_grad()
@pytest.mark.parametrize("build", [crossed, plain])
def test_concat_and_vector_are_used(build):
    unet = build(channels=7, out_channels=4, vector_width=128)
    x, t, c = batch()
    c = Condition(c.tokens, c.mask) if build is crossed else Condition()
    c.vector, c.concat = torch.randn(3, 128), torch.randn(3, 3, 8, 8)
    out = apply_unet(unet, x, t, c)
    assert out.shape == (3, 4, 8, 8)
    for name in ("vector", "concat"):
        changed = Condition(**{**vars(c), name: getattr(c, name) + 1})
        assert worst(out, apply_unet(unet, x, t, changed)) > 1e-3


@pytest.mark.parametrize(
    ("build", "condition", "sentence"),
    [
        (crossed, None, "UNet2DConditionModel needs a condition's tokens; got none"),
        (plain, Condition(torch.zeros(3, 5, 16)), "UNet2DModel cannot use a condition's tokens; got tokens"),
        (plain, Condition(vector=torch.zeros(3, 128)), "cannot use a condition's vector"),
        (partial(plain, vector_width=128), None, "needs a condition's vector"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(build, condition, sentence):
    x, t, _ = batch()
    with pytest.raises(ValueError, match=sentence):
        apply_unet(build(), x, t, condition)


def test_a_vector_without_tokens_must_fit_the_time_embedding():
    with pytest.raises(UserError, match=r"a vector 100 wide does not fit .* 128"):
        plain(vector_width=100)


@torch.no_grad()
def test_it_computes_in_the_dtype_of_its_weights():
    unet, (x, t, condition) = crossed().bfloat16(), batch()
    assert apply_unet(unet, x, t, condition).dtype == torch.bfloat16
    denoiser = NetworkDenoiser(partial(apply_unet, unet), scaled_linear(), "v")
    assert denoiser(x.double(), t, condition).x_0.dtype == torch.float64


@torch.no_grad()
@pytest.mark.parametrize("build", [crossed, plain])
def test_attention_kernels_agree(build):
    unet, (x, t, condition) = build(), batch()
    condition = condition if build is crossed else None
    outs = {}
    for kind in ("sdpa", "math"):
        set_attention(unet, "cpu", kind)
        outs[kind] = apply_unet(unet, x, t, condition)
    assert worst(outs["sdpa"], outs["math"]) < 1e-5


@pytest.mark.parametrize("build", [crossed, plain])
@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", AttnProcessor), ("cuda:0", AttnProcessor2_0), ("mps", AttnProcessor2_0)]
)
def test_auto_is_math_on_a_cpu_alone(build, device, kind):
    unet = build()
    set_attention(unet, device)
    assert {type(m.processor) for m in unet.modules() if isinstance(m, Attention)} == {kind}


@torch.no_grad()
@pytest.mark.parametrize(
    "build", [partial(crossed, TINY.model_copy(update={"linear_projection": True})), crossed, plain]
)
def test_channels_last_stays_and_changes_no_number(build):
    unet, (x, t, condition) = build(), batch()
    condition = None if build is plain else condition
    expected, seen = apply_unet(unet, x, t, condition), []
    set_layout(unet, torch.channels_last)
    for block in (*unet.down_blocks, *unet.up_blocks):
        block.register_forward_hook(lambda block, inputs, out: seen.append(out[0] if isinstance(out, tuple) else out))
    out = apply_unet(unet, x.to(memory_format=torch.channels_last), t, condition)
    assert worst(out, expected) < 1e-5
    assert len(seen) == 4
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in seen)


@torch.no_grad()
@pytest.mark.parametrize("build", [crossed, plain])
def test_zero_init_makes_every_block_the_identity(build):
    unet, (x, t, condition) = build(), batch()
    condition = condition if build is crossed else None
    zero_init_like_adm(unet)
    assert apply_unet(unet, x, t, condition).abs().max() == 0
    h, temb = torch.randn(2, 64, 4, 4), torch.randn(2, 128)
    more = {"encoder_hidden_states": torch.randn(2, 5, 16)} if build is crossed else {}
    assert torch.equal(unet.mid_block(h, temb, **more), h)


def test_a_zeroed_network_learns():
    unet, (x, t, condition) = crossed().train(), batch()
    zero_init_like_adm(unet)
    optimizer = torch.optim.Adam(unet.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = (apply_unet(unet, x, t, condition) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


ADM = {"time": "scale_shift", "resample": "resnet"}


def changed(**fields):
    return UNetConfig(**{**TINY.model_dump(), **fields})


def test_adm_has_scale_shift_residual_resampling_and_a_norm_before_every_attention():
    unet = plain(changed(**ADM), vector_width=128)
    assert unet.config.down_block_types == ("ResnetDownsampleBlock2D", "AttnDownBlock2D")
    assert unet.config.up_block_types == ("AttnUpBlock2D", "ResnetUpsampleBlock2D")
    blocks = [m for m in unet.modules() if isinstance(m, ResnetBlock2D)]
    assert all(m.time_emb_proj.out_features == 2 * m.out_channels for m in blocks)
    assert sum(m.down for m in blocks) == sum(m.up for m in blocks) == 1
    assert not [m for m in unet.modules() if isinstance(m, Downsample2D | Upsample2D) and m.use_conv]
    assert all(m.group_norm is not None for m in unet.modules() if isinstance(m, Attention))
    assert {m.eps for m in unet.modules() if isinstance(m, nn.GroupNorm)} == {1e-5}


def test_by_default_nothing_of_adm():
    unet = plain()
    assert unet.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D")
    assert unet.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D")
    blocks = [m for m in unet.modules() if isinstance(m, ResnetBlock2D)]
    assert all(m.time_emb_proj.out_features == m.out_channels for m in blocks)
    assert not any(m.down or m.up for m in blocks)


@torch.no_grad()
@pytest.mark.parametrize("fields", [ADM, {"time": "scale_shift"}, {"resample": "resnet"}, {"time_channels": 48}])
def test_each_choice_builds_saves_and_starts_at_zero(fields, tmp_path):
    unet, (x, t, _) = plain(changed(**fields)), batch()
    unet.save_pretrained(tmp_path)
    out = apply_unet(unet, x, t)
    assert torch.equal(apply_unet(UNet2DModel.from_pretrained(tmp_path).eval(), x, t), out)
    assert worst(out, apply_unet(unet, x, t.flip(0))) > 1e-3
    zero_init_like_adm(unet)
    assert apply_unet(unet, x, t).abs().max() == 0


@torch.no_grad()
def test_tokens_go_with_scale_shift_but_not_with_residual_resampling():
    unet, (x, t, condition) = crossed(changed(time="scale_shift")), batch()
    assert worst(apply_unet(unet, x, t, condition), apply_unet(unet, x, t.flip(0), condition)) > 1e-3
    assert {m.time_embedding_norm for m in unet.modules() if isinstance(m, ResnetBlock2D)} == {"scale_shift"}
    with pytest.raises(UserError, match=r"resample is resnet, but .* tokens .* expected conv"):
        crossed(changed(resample="resnet"))


def test_a_vector_is_as_wide_as_the_time_embedding():
    config = changed(time_channels=48)
    assert (config.time_width, TINY.time_width) == (48, 128)
    with pytest.raises(UserError, match=r"a vector 128 wide does not fit .* 48"):
        plain(config, vector_width=128)
    x, t, _ = batch()
    assert apply_unet(plain(config, vector_width=48), x, t, Condition(vector=torch.randn(3, 48))).shape == x.shape
