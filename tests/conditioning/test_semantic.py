import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn.functional import avg_pool2d, silu

from conditioning.base import ConditioningError
from conditioning.semantic import (
    SemanticConfig,
    SemanticEncoder,
    SemanticEncoderConfig,
    SingleBlock,
    StridedEncoder,
    StridedEncoderConfig,
    build_semantic,
    condition_of,
)

SINGLE = SemanticEncoderConfig(z_width=12, widths=(16, 32), attention_levels=(False, True), norm_num_groups=8)
DOUBLE = SINGLE.model_copy(update={"blocks": "double"})
STRIDED = StridedEncoderConfig(z_width=12, widths=(16, 32), attention=2, norm_num_groups=8)
CONFIGS = {"single": SINGLE, "double": DOUBLE, "strided": STRIDED}


def tiny(name, **more):
    torch.manual_seed(0)
    return build_semantic(CONFIGS[name], **{"resolution": 16, **more})


def pictures(side=16):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_become_codes_and_every_weight_learns(name):
    encoder = tiny(name)
    z = encoder(pictures())
    assert z.shape == (2, 12)
    assert (z[0] - z[1]).abs().max() > 1e-3
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    encoder(pictures()).square().sum().backward()
    silent = [name for name, p in encoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not [name for name in silent if "to_k.bias" not in name]  # (softmax does not see a key's bias)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_encoder_comes_back_exactly(name, tmp_path):
    encoder = tiny(name)
    encoder.save_pretrained(tmp_path)
    assert torch.equal(type(encoder).from_pretrained(tmp_path)(pictures()), encoder(pictures()))


def test_single_blocks_have_one_convolution():
    block, x = SingleBlock(16, 32, 8, down=True), torch.randn(2, 16, 8, 8)
    truth = block.skip(avg_pool2d(x, 2)) + block.conv(avg_pool2d(silu(block.norm(x)), 2))
    assert torch.equal(block(x), truth)
    count = {name: sum(p.numel() for p in tiny(name).parameters()) for name in CONFIGS}
    assert count["single"] < 0.75 * count["double"]


def test_the_published_strided_encoders():
    with torch.device("meta"):
        faces = build_semantic(StridedEncoderConfig(), resolution=128)
        small = build_semantic(StridedEncoderConfig(widths=(64, 128, 128, 128), attention=2), resolution=64)
    assert faces.out.weight.shape == (512, 4096)
    assert small.out.weight.shape == (512, 2048)
    convolutions = sum(i * o * 9 + o for i, o in ((3, 64), (64, 128), (128, 256), (256, 256), (256, 256)))
    norms, attention = 2 * (64 + 128 + 3 * 256), 4 * (256 * 256 + 256) + 2 * 256
    assert sum(p.numel() for p in faces.parameters()) == convolutions + norms + attention + 4096 * 512 + 512


def test_any_size_that_halves_suits_the_pooled_encoder_and_one_the_strided():
    assert tiny("single")(pictures(32)).shape == (2, 12)
    with pytest.raises(ConditioningError, match=r"pictures of side 16, got \(32, 32\)"):
        tiny("strided")(pictures(32))


@pytest.mark.parametrize(("name", "side"), [("single", 15), ("double", 15), ("strided", 18)])
def test_sides_that_cannot_be_halved_are_refused(name, side):
    with pytest.raises(ConditioningError, match=f"a picture of side {side} cannot be halved"):
        tiny(name, resolution=side)


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        (SemanticEncoderConfig, {"widths": (32, 64)}, "attention_levels has 4 levels and widths 2"),
        (
            SemanticEncoderConfig,
            {"norm_num_groups": 48},
            r"widths \[64, 128, 128, 128\] are not positive multiples of the 48",
        ),
        (StridedEncoderConfig, {"attention": 6}, "attention after 6 convolutions, but there are 5"),
        (StridedEncoderConfig, {"heads": 3}, "width 256 cannot be cut by heads 3"),
    ],
)
def test_mistakes_are_told_in_a_sentence(kind, fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        kind(**fields)


@pytest.mark.parametrize(("kind", "made"), [("diffae", SemanticEncoder), ("strided", StridedEncoder)])
def test_the_kind_chooses_the_encoder(kind, made):
    config = TypeAdapter(SemanticConfig).validate_python({"kind": kind})
    with torch.device("meta"):
        assert isinstance(build_semantic(config, resolution=64), made)


def test_codes_are_a_condition():
    assert condition_of(torch.zeros(3, 12)).vector.shape == (3, 12)
