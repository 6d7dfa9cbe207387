"""EncDiff's U-Net: each number of a code has its own token, and the U-Net attends to all tokens."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from pydantic import ValidationError
from torch import nn

from ldm_kit.nets.code_unets import build_code_unet
from ldm_kit.nets.execution import set_layout
from ldm_kit.nets.semantic_unet import SemanticUNetConfig
from ldm_kit.nets.token_unet import ScalarTokens, TokenCodeConfig, TokenUNet
from tests.nets.originals import perturbed

CONFIG = SemanticUNetConfig(
    widths=(16, 32),
    attention_levels=(True, False),
    layers_per_block=1,
    heads=2,
    time_width=24,
    norm_num_groups=8,
    dropout=0.0,
)
CODE = TokenCodeConfig(width=6, hidden=(5, 7))
N = 10  # numbers in a code


def tiny(seed=0, **more):
    torch.manual_seed(seed)
    return build_code_unet(CONFIG, CODE, **{"sample_size": 8, "channels": 3, "z_width": N, **more})


def inputs(batch=2):
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(batch, 3, 8, 8, generator=generator), torch.randn(batch, N, generator=generator)
    return x, torch.tensor([3, 900])[:batch], z


def tokens_of(seed=0):
    torch.manual_seed(seed)
    return ScalarTokens(N, 6, (5, 7))


@torch.no_grad()
def test_each_token_is_a_plain_mlp_of_its_own_number():
    tokens, z = tokens_of(), inputs()[2]
    result = tokens(z)
    assert result.shape == (2, N, 6)
    for i in range(N):
        mlp = nn.Sequential(nn.Linear(1, 5), nn.ELU(), nn.Linear(5, 7), nn.ELU(), nn.Linear(7, 6))
        for layer, weight, bias in zip(mlp[::2], tokens.weights, tokens.biases, strict=True):
            layer.weight.copy_(weight[i].T)
            layer.bias.copy_(bias[i, 0])
        torch.testing.assert_close(result[:, i], mlp(z[:, i : i + 1]))


def test_another_number_changes_its_own_token_alone():
    tokens, z = tokens_of(), inputs()[2]
    before = tokens(z)
    for i in range(N):
        swapped = z.clone()
        swapped[:, i] = z.flip(0)[:, i]
        changed = (tokens(swapped) != before).flatten(2).any(2)
        assert changed.nonzero()[:, 1].tolist() == [i, i]


def test_equal_numbers_get_different_tokens():
    first = tokens_of()(torch.ones(1, N))[0]
    assert torch.pdist(first).min() > 1e-3


def test_tokens_vary_as_their_numbers_do_from_the_start():
    torch.manual_seed(0)
    tokens = ScalarTokens(200, 16, (64, 128))
    for weight, bias, inputs_ in zip(tokens.weights, tokens.biases, (1, 64, 128), strict=True):
        for parameter in (weight, bias):
            assert parameter.abs().max() <= (3 / inputs_) ** 0.5
            assert parameter.std().item() == pytest.approx(inputs_**-0.5, rel=0.05)
    assert 0.3 < tokens(torch.randn(300, 200)).std(0).mean() < 1


def test_tokens_keep_their_digits_under_autocast():
    tokens, z = tokens_of(), inputs()[2]
    exact = tokens(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokens(z), exact)


def test_it_starts_at_zero_and_then_listens_to_time_and_every_number():
    unet, (x, t, z) = tiny(), inputs()
    assert isinstance(unet, TokenUNet)
    assert unet(x, t, z).abs().max() == 0
    perturbed(unet)
    out = unet(x, t, z)
    assert out.abs().max() > 0.1
    assert (unet(x, t.flip(0), z) - out).abs().max() > 0.01
    z.requires_grad_(True)
    unet(x, t, z).square().sum().backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0


def test_only_transformers_hear_the_code_and_all_of_them_do():
    unet, (x, t, z) = perturbed(tiny()), inputs()
    unet(x, t, z).square().sum().backward()
    blocks = {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}
    widths = [block.attn2.to_q.in_features for block in blocks.values()]
    assert sorted(widths) == [16, 16, 16, 32]  # 1 down, 2 up, 1 between
    assert all(block.attn2.to_k.in_features == CODE.width for block in blocks.values())
    assert all(block.attn2.to_v.weight.grad.abs().max() > 0 for block in blocks.values())
    with torch.no_grad():
        for block in blocks.values():
            for parameter in block.attn2.to_out.parameters():
                parameter.zero_()
        assert torch.equal(unet(x, t, z), unet(x, t, -z))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_saved_unet_comes_back_exactly(tmp_path, layout):
    unet = perturbed(TokenUNet(**{**dict(tiny().config), "out_channels": 6}))
    unet.save_pretrained(tmp_path)
    again = TokenUNet.from_pretrained(tmp_path)
    for net in (unet, again):
        set_layout(net, layout)
    assert torch.equal(again(*inputs()), unet(*inputs()))
    assert unet(*inputs()).shape == (2, 6, 8, 8)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hidden": (64, 0)}, r"hidden widths \[0\] are not positive"),
        ({"hidden": ()}, "at least 1 item"),
        ({"width": 0}, "greater than or equal to 1"),
    ],
)
def test_mistakes_are_told_in_a_sentence(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TokenCodeConfig(**fields)
