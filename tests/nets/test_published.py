import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from pydantic import ValidationError

from ldm_kit.config import UserError, check, read, write
from ldm_kit.nets.presets import PRESETS
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.nets.adm import ADM, Whole

# name: side and channels of the latent, width of the tokens, millions of parameters (of the paper, or of spec 3.9)
SIZES = {
    "nano": (8, 4, 64, 6.6),
    "micro": (16, 4, 128, 39.5),
    "pixel32": (32, 3, 128, 24.2),
    "ldm4-unconditional": (64, 3, None, 274.06),
    "ldm4-imagenet": (64, 3, 512, 400.9),
    "ldm8-imagenet": (32, 4, 512, 395.0),
    "ldm4-text": (64, 3, 640, 403.6),
    "ldm8-text": (32, 4, 1280, 872.3),
    "ldm4-layout": (64, 3, 512, 246.3),
    "adm64": (64, 3, None, 295.1),
    "adm128": (128, 3, None, 420.5),
    "adm256": (256, 3, None, 552.8),
    "adm512": (512, 3, None, 557.8),
    "sd1": (64, 4, 768, 859.5),
    "sd2": (64, 4, 1024, 865.9),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_size(name):
    side, channels, cross_width, millions = SIZES[name]
    with torch.device("meta"):
        unet = build_unet(UNetConfig(preset=name), sample_size=side, channels=channels, cross_width=cross_width)
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert isinstance(unet, UNet2DModel if cross_width is None else UNet2DConditionModel)


@pytest.mark.parametrize(
    ("name", "side", "millions"), [("64", 64, 296), ("128", 128, 422), ("256", 256, 554), ("512", 512, 559)]
)
def test_adm_with_its_classes_and_variance_has_the_papers_size(name, side, millions):
    config = UNetConfig(preset=f"adm{name}")
    with torch.device("meta"):
        unet = build_unet(
            config, sample_size=side, channels=3, out_channels=6, cross_width=None, vector_width=config.time_width
        )
        theirs = Whole(**ADM[name], out_channels=6, classes=1000)
    ours = sum(p.numel() for p in unet.parameters()) + 1000 * config.time_width
    assert round(ours / 1e6) == millions
    narrow = 256 - config.widths[0] if name == "512" else 0  # sinusoids, which diffusers has as wide as the first level
    assert ours + narrow * config.time_width == sum(p.numel() for p in theirs.parameters())
    attended = [side // 2**level for level, attention in enumerate(config.attention_levels) if attention]
    assert attended == [32, 16, 8]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_an_unconditional_form(name):
    with torch.device("meta"):
        unet = build_unet(UNetConfig(preset=name), sample_size=64, channels=4, cross_width=None)
    for module in unet.modules():
        if isinstance(module, Attention):
            assert module.inner_dim == module.query_dim  # the head size divides every width


def test_the_defaults_are_nano():
    fields = UNetConfig(preset="nano").model_dump()
    assert {**fields, "preset": None} == UNetConfig().model_dump()


def test_a_field_that_is_set_wins_over_the_preset():
    config = UNetConfig(preset="sd1", layers_per_block=1, head_size=40)
    assert (config.layers_per_block, config.heads, config.head_size) == (1, None, 40)
    assert config.widths == UNetConfig(preset="sd1").widths
    assert config.heads_by_level() == (8, 16, 32, 32)


@pytest.mark.parametrize("fields", [{"preset": "ldm4-text"}, {"preset": "sd1", "head_size": 64}, {}])
def test_configs_survive_yaml(fields, tmp_path):
    config = UNetConfig(**fields)
    write(config, tmp_path / "unet.yaml")
    assert read(UNetConfig, tmp_path / "unet.yaml") == config


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"preset": "sd3"}, "unknown preset 'sd3'; known are nano, micro"),
        ({"widths": (32, 60)}, "attention_levels has 3 levels and widths 2"),
        (
            {"widths": (32, 60), "attention_levels": (False, True)},
            r"widths \[60\] are not positive multiples of the 8 groups",
        ),
        ({"heads": 4, "head_size": 32}, "expected either heads or head_size, got heads 4 and head_size 32"),
        ({"heads": 3}, r"widths \[128, 128, 128\] with attention cannot be cut by heads 3"),
        ({"head_size": 48}, "cannot be cut by head_size 48"),
        ({"head_size": 32, "equal_heads": True}, "equal_heads is for heads, but head_size is 32"),
        ({"width": (32,)}, "unknown key 'width'; nearest known: widths"),
    ],
)
def test_mistakes_are_told_in_a_sentence(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        check(UNetConfig, fields, "unet.yaml")
    with pytest.raises(ValidationError):
        UNetConfig(**fields)


def test_a_latent_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="side 10 cannot be halved 2 times; expected a multiple of 4"):
        build_unet(UNetConfig(), sample_size=10, channels=4, cross_width=8)
