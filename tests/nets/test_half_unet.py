import math

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.functional import avg_pool2d, silu

from ldm_kit.config import UserError, check
from ldm_kit.nets.arguments import network_arguments
from ldm_kit.nets.half_unet import AttentionPool2d, HalfUNet, HalfUNetConfig, build_half_unet

TINY = HalfUNetConfig(
    widths=(8, 16), attention_levels=(False, True), layers_per_block=1, head_size=8, norm_num_groups=4
)
NAMES = ("ant", "bee", "cow")


def tiny(config=TINY, *, seed=0, disturb=True) -> HalfUNet:
    """With every weight moved away from its start, so that all paths matter."""
    torch.manual_seed(seed)
    net = build_half_unet(config, sample_size=8, channels=4, classes=NAMES).eval()
    if disturb:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def batch(size=3):
    x = torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 500, 999])[:size]


PUBLISHED = {  # side -> multipliers, layers, parameters; "65 M", "43 M", "54 M" are what is said of the first three
    64: ((1, 2, 3, 4), 4, 65_438_568),
    128: ((1, 1, 2, 3, 4), 2, 42_568_040),
    256: ((1, 1, 2, 2, 4, 4), 2, 54_096_360),
    512: ((0.5, 1, 1, 2, 2, 4, 4), 2, 54_448_360),
}


@pytest.mark.parametrize("side", PUBLISHED)
def test_the_published_classifiers_have_as_many_parameters(side):
    multipliers, layers, count = PUBLISHED[side]
    with torch.device("meta"):
        net = HalfUNet(
            sample_size=side,
            in_channels=3,
            classes=tuple(map(str, range(1000))),
            widths=[int(128 * m) for m in multipliers],
            attention=[side / 2**level <= 32 for level in range(len(multipliers))],
            layers=layers,
            time_width=128,
        )
        logits = net(torch.zeros(2, 3, side, side), torch.zeros(2))
    assert sum(p.numel() for p in net.parameters()) == count
    assert logits.shape == (2, 1000)


@torch.no_grad()
@pytest.mark.parametrize("head_size", [4, 12, None])
def test_attention_pooling_is_its_formula(head_size):
    torch.manual_seed(0)
    pool, h = AttentionPool2d(3, 12, 5, head_size), torch.randn(2, 12, 3, 3)
    size = head_size or 12
    for i in range(2):
        places = [h[i, :, y, x] for y in range(3) for x in range(3)]
        tokens = torch.stack([torch.stack(places).mean(0), *places]) + pool.position
        q, k, v = pool.to_q(tokens), pool.to_k(tokens), pool.to_v(tokens)
        heads = []
        for first in range(0, 12, size):
            part = slice(first, first + size)
            weights = (q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(1)
            heads.append((weights @ v[:, part])[0])
        torch.testing.assert_close(pool(h)[i], pool.to_out(torch.cat(heads)), rtol=1e-5, atol=1e-6)


def test_positions_start_as_small_as_said():
    torch.manual_seed(0)
    assert AttentionPool2d(16, 400, 2, None).position.std().item() == pytest.approx(1 / 20, rel=0.02)


@torch.no_grad()
def test_a_halving_block_is_adms():
    torch.manual_seed(0)
    net = tiny()
    block = net.down_blocks[0].downsamplers[0]
    h, time = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    inner = block.conv1(avg_pool2d(silu(block.norm1(h)), 2))
    scale, shift = block.time_emb_proj(silu(time))[:, :, None, None].chunk(2, dim=1)
    inner = block.conv2(silu(block.norm2(inner) * (1 + scale) + shift))
    torch.testing.assert_close(block(h, time), avg_pool2d(h, 2) + inner)


def test_blocks_are_adms():
    net = tiny()
    resnets = [m for m in net.modules() if isinstance(m, ResnetBlock2D)]
    attentions = [m for m in net.modules() if isinstance(m, Attention)]
    assert len(resnets) == 1 + 1 + 1 + 2, "a block and a halving one, the last level's, the middle's"
    assert len(attentions) == 1 + 1
    assert all(m.time_embedding_norm == "scale_shift" for m in resnets)
    assert all(m.group_norm is not None and m.heads == 2 and m.residual_connection for m in attentions)
    assert not any(m.use_conv for m in net.modules() if isinstance(m, Downsample2D))
    assert {(m.eps, m.num_groups) for m in net.modules() if isinstance(m, nn.GroupNorm)} == {(1e-5, 4)}
    assert torch.equal(net.time_proj(torch.zeros(1)), torch.tensor([[1.0] * 4 + [0.0] * 4])), "cosines first"


def test_one_head_is_as_wide_as_its_level():
    net = tiny(TINY.model_copy(update={"attention_levels": (True, True), "head_size": None}))
    assert {m.heads for m in net.modules() if isinstance(m, Attention)} == {1}
    assert net.pool.heads == 1


@torch.no_grad()
def test_it_starts_as_adm_does():
    net = tiny(disturb=False)
    h, time = torch.randn(2, 16, 4, 4), torch.randn(2, 32)
    assert torch.equal(net.mid_block(h, time), h)
    assert all(m.conv2.weight.abs().max() == 0 for m in net.modules() if isinstance(m, ResnetBlock2D))
    assert net(*batch()).std() > 1e-3, "only what ends a residual branch is zero"


@torch.no_grad()
def test_each_picture_has_its_own_time():
    net, (x, t) = tiny(), batch()
    whole = net(x, t)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)
    assert (net(x, t.flip(0)) - whole)[[0, 2]].abs().max() > 1e-3


def test_the_gradient_by_the_picture_is_that_of_finite_differences():
    net, (x, t) = tiny().double(), batch()
    x = x.double().requires_grad_()

    def chosen(x):
        return net(x, t).log_softmax(1)[:, 1].sum()

    (gradient,) = torch.autograd.grad(chosen(x), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 1e-4).all()
    for seed in range(3):
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            slope = (chosen(x + 1e-5 * way) - chosen(x - 1e-5 * way)) / 2e-5
        torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-5, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("time_width", [None, 12])
def test_saved_and_opened_it_is_the_same(time_width, tmp_path):
    torch.manual_seed(0)
    arguments = network_arguments(TINY.model_copy(update={"dropout": 0.3}))
    net = HalfUNet(sample_size=8, in_channels=4, classes=NAMES, time_width=time_width, **arguments).eval()
    net.save_pretrained(tmp_path)
    again = HalfUNet.from_pretrained(tmp_path).eval()
    assert torch.equal(net(*batch()), again(*batch()))
    assert tuple(again.config.classes) == NAMES
    assert again.time_embedding.linear_1.in_features == (time_width or 8)
    assert {m.p for m in again.modules() if isinstance(m, nn.Dropout)} >= {0.3}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}


@torch.no_grad()
def test_it_computes_in_the_dtype_of_its_weights():
    assert tiny().bfloat16()(*batch()).dtype == torch.bfloat16


def test_an_input_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="a latent of side 7 cannot be halved 1 times; expected a multiple of 2"):
        build_half_unet(TINY, sample_size=7, channels=4, classes=NAMES)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attention_levels": [True]}, "attention_levels has 1 levels and widths 2; expected one each"),
        ({"widths": [8, 18]}, r"widths \[18\] are not positive multiples of the 4 groups"),
        (
            {"widths": [12, 16], "attention_levels": [True, True]},
            r"widths \[12\] with attention cannot be cut by head_size 8",
        ),
        (
            {"widths": [8, 12], "attention_levels": [False, False]},
            r"widths \[12\] with attention cannot be cut",
        ),  # the middle
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        check(HalfUNetConfig, {**TINY.model_dump(), **changed}, "the test")
