from functools import partial

import pytest
import torch
from pydantic import ValidationError

from conditioning.base import Condition
from conditioning.semantic import SemanticEncoder
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.schedule import linear
from ldm_kit.nets.semantic_unet import SemanticUNet, SemanticUNetConfig, apply_semantic, build_semantic_unet
from tests.nets.originals import perturbed

CONFIG = SemanticUNetConfig(
    widths=(16, 32), attention_levels=(False, True), layers_per_block=1, time_width=24, norm_num_groups=8, dropout=0.0
)


def tiny(seed=0, **more):
    torch.manual_seed(seed)
    return build_semantic_unet(CONFIG, **{"sample_size": 8, "channels": 3, "z_width": 10, **more})


def inputs(batch=2):
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(batch, 3, 8, 8, generator=generator), torch.randn(batch, 10, generator=generator)
    return x, torch.tensor([3, 900])[:batch], z


def test_it_starts_at_zero_and_then_listens_to_time_and_code():
    unet, (x, t, z) = tiny(), inputs()
    assert unet(x, t, z).abs().max() == 0
    perturbed(unet)
    out = unet(x, t, z)
    assert out.abs().max() > 0.1
    assert (unet(x, t, -z) - out).abs().max() > 0.01
    assert (unet(x, t.flip(0), z) - out).abs().max() > 0.01


def test_the_code_gets_no_gradient_in_the_first_two_steps():
    unet, encoder = tiny(), SemanticEncoder(z_width=10, widths=(16, 16), attention=(False, False), groups=8)
    optimiser = torch.optim.Adam([*unet.parameters(), *encoder.parameters()], lr=1e-3)
    x, t, _ = inputs()
    seen = []
    for _ in range(3):
        z = encoder(x)
        z.retain_grad()
        loss = (unet(x, t, z) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(z.grad.abs().max().item())
    assert seen[:2] == [0, 0]
    assert seen[2] > 0


def test_every_block_hears_the_code():
    unet, (x, t, z) = perturbed(tiny()), inputs()
    unet(x, t, z).sum().backward()
    heard = {name: p.grad.abs().max() for name, p in unet.named_parameters() if "semantic.weight" in name}
    assert len(heard) == 10  # 1 + 1 blocks down and one that halves, 2 between, 2 + 2 up and one that doubles
    assert all(grad > 0 for grad in heard.values())


def test_a_saved_unet_comes_back_exactly(tmp_path):
    unet = perturbed(tiny(out_channels=6))
    unet.save_pretrained(tmp_path)
    assert torch.equal(SemanticUNet.from_pretrained(tmp_path)(*inputs()), unet(*inputs()))
    assert unet(*inputs()).shape == (2, 6, 8, 8)


def test_checkpointing_changes_no_gradient():
    def gradients(checkpointing):
        unet = perturbed(tiny()).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(*inputs()).square().sum().backward()
        return [p.grad for p in unet.parameters()]

    for plain, kept in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, kept, atol=1e-6)


def test_it_runs_under_autocast_and_in_bfloat16():
    unet = perturbed(tiny())
    exact = unet(*inputs())
    with torch.autocast("cpu", torch.bfloat16):
        assert (unet(*inputs()) - exact).abs().max() < 0.05 * exact.abs().max()
    half = unet.to(torch.bfloat16)(*inputs())
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()


def test_one_code_serves_a_batch_and_its_width_is_free():
    unet, (x, t, z) = perturbed(tiny()), inputs()
    assert torch.equal(unet(x, t, z[:1]), unet(x, t, z[:1].expand(2, -1)))


@pytest.mark.parametrize("shape", [(2, 11), (3, 10), (2, 10, 1)])
def test_codes_of_another_shape_are_refused(shape):
    x, t, _ = inputs()
    with pytest.raises(ValueError, match=r"expected codes \[2, 10\], got"):
        tiny()(x, t, torch.zeros(shape))


def test_it_is_a_denoiser_under_a_condition():
    unet, (x, t, z) = perturbed(tiny()), inputs()
    p = NetworkDenoiser(partial(apply_semantic, unet), linear(), "eps")(x, t, Condition(vector=z))
    assert torch.equal(p.eps, unet(x, t, z))
    with pytest.raises(ValueError, match="needs a condition's vector"):
        apply_semantic(unet, x, t, Condition())


def test_latents_and_several_heads():
    config = CONFIG.model_copy(update={"heads": 4})
    unet = perturbed(build_semantic_unet(config, sample_size=4, channels=8, z_width=512))
    assert unet(torch.randn(2, 8, 4, 4), torch.tensor(5), torch.randn(2, 512)).shape == (2, 8, 4, 4)
    assert unet.unet.mid_block.attentions[0].heads == 4


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"widths": (32, 64, 64, 64)}, "attention_levels has 3 levels and widths 4"),
        ({"widths": (32, 64, 80)}, r"widths \[80\] are not positive multiples of the 32 groups"),
        ({"heads": 3}, r"widths \[128, 128\] with attention cannot be cut by heads 3"),
    ],
)
def test_mistakes_are_told_in_a_sentence(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        SemanticUNetConfig(**fields)


def test_a_picture_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="a picture of side 9 cannot be halved 1 times"):
        tiny(sample_size=9)
