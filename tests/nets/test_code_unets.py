"""The U-Nets that decode a semantic code: what the one of vectors and the one of tokens have in common."""

from functools import partial

import pytest
import torch

from conditioning.base import Condition
from conditioning.semantic import SemanticEncoder
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.schedule import linear
from ldm_kit.nets.code_unets import CodeConfig, VectorCodeConfig, build_code_unet
from ldm_kit.nets.semantic_unet import SemanticUNet, SemanticUNetConfig, apply_semantic
from ldm_kit.nets.token_unet import TokenCodeConfig, TokenUNet
from tests.nets.originals import perturbed

CONFIG = SemanticUNetConfig(
    widths=(16, 32), attention_levels=(True, False), layers_per_block=1, heads=2, time_width=24, norm_num_groups=8,
    dropout=0.0,
)  # fmt: skip
CODE = TokenCodeConfig(width=6, hidden=(5, 7))
N = 10  # numbers in a code


@pytest.fixture(params=[VectorCodeConfig(), CODE], ids=lambda code: code.kind)
def code(request) -> CodeConfig:
    return request.param


def tiny(code: CodeConfig):
    torch.manual_seed(0)
    return build_code_unet(CONFIG, code, sample_size=8, channels=3, z_width=N)


def inputs():
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 3, 8, 8, generator=generator), torch.randn(2, N, generator=generator)
    return x, torch.tensor([3, 900]), z


def test_the_code_gets_no_gradient_in_the_first_two_steps(code):
    unet, encoder = tiny(code), SemanticEncoder(z_width=N, widths=(16, 16), attention=(False, False), groups=8)
    optimiser = torch.optim.Adam([*unet.parameters(), *encoder.parameters()], lr=1e-3)
    x, t, _ = inputs()
    seen = []
    for _ in range(3):
        z = encoder(x)
        z.retain_grad()
        optimiser.zero_grad()
        (unet(x, t, z) - x).square().mean().backward()
        optimiser.step()
        seen.append(z.grad.abs().min().item())
    assert seen[:2] == [0, 0]
    assert seen[2] > 0


def test_checkpointing_changes_no_gradient(code):
    def gradients(checkpointing):
        unet = perturbed(tiny(code)).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(*inputs()).square().sum().backward()
        return [p.grad for p in unet.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)


def test_it_runs_under_autocast_and_in_bfloat16(code):
    unet = perturbed(tiny(code))
    exact = unet(*inputs())
    with torch.autocast("cpu", torch.bfloat16):
        assert (unet(*inputs()) - exact).abs().max() < 0.05 * exact.abs().max()
    half = unet.to(torch.bfloat16)(*inputs())
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("shape", [(2, N + 1), (3, N), (2, N, 1)])
def test_codes_of_another_shape_are_refused(code, shape):
    x, t, _ = inputs()
    with pytest.raises(ValueError, match=r"expected codes \[2, 10\], got"):
        tiny(code)(x, t, torch.zeros(shape))


def test_one_code_serves_a_batch(code):
    unet, (x, t, z) = perturbed(tiny(code)), inputs()
    assert torch.equal(unet(x, t, z[:1]), unet(x, t, z[:1].expand(2, -1)))


def test_it_is_a_denoiser_under_a_condition(code):
    unet, (x, t, z) = perturbed(tiny(code)), inputs()
    p = NetworkDenoiser(partial(apply_semantic, unet), linear(), "eps")(x, t, Condition(vector=z))
    assert torch.equal(p.eps, unet(x, t, z))
    with pytest.raises(ValueError, match="needs a condition's vector"):
        apply_semantic(unet, x, t, Condition())


def test_the_kind_of_code_chooses_the_network_and_both_have_the_same_levels():
    shape = {"sample_size": 8, "channels": 3, "z_width": N}
    config = CONFIG.model_copy(update={"dropout": 0.25})
    vector, tokens = build_code_unet(config, VectorCodeConfig(), **shape), build_code_unet(config, CODE, **shape)
    assert (type(vector), type(tokens)) == (SemanticUNet, TokenUNet)
    assert vector.unet.config["dropout"] == 0.25
    names = ("block_out_channels", "layers_per_block", "norm_num_groups", "dropout", "resnet_time_scale_shift")
    assert {name: tokens.unet.config[name] for name in names} == {name: vector.unet.config[name] for name in names}
    assert tokens.unet.config["time_embedding_dim"] == vector.unet.config["time_embedding_dim"] - N
    assert tokens.unet.mid_block.attentions[0].transformer_blocks[0].attn2.heads == 2


def test_sides_that_cannot_be_halved_are_refused(code):
    with pytest.raises(UserError, match="a picture of side 9 cannot be halved 1 times; expected a multiple of 2"):
        build_code_unet(CONFIG, code, sample_size=9, channels=3, z_width=N)
