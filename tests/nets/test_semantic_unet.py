import pytest
import torch
from pydantic import ValidationError

from ldm_kit.nets.semantic_unet import SemanticUNet, SemanticUNetConfig, build_semantic_unet
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
