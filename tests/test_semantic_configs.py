"""The configs of semantic models: their networks build on what the others leave behind."""

import pytest
import torch
from torch import nn

from conditioning.labels import ClassConfig
from conditioning.none import NoConfig
from conditioning.pretrained import PretrainedTextConfig
from conditioning.semantic import build_semantic
from conditioning.text import TextConfig
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.diffusion.schedule import build
from ldm_kit.methods.diffae import DiffAERun
from ldm_kit.methods.latent import LatentRun
from ldm_kit.methods.pdae import PDAERun
from ldm_kit.methods.prior import PriorRun
from ldm_kit.nets.code_unets import build_code_unet
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.shift_unet import ShiftUNet
from ldm_kit.nets.unet import build_unet
from tests.test_configs import MINILM_WIDTH, SEMANTIC, STAGE_2, latents_of, named

EMBEDDED = 1280  # dimensions of the embeddings of EfficientNet-Lite0


def of(kind: type) -> list:
    return [path for path in SEMANTIC if isinstance(SEMANTIC[path], kind)]


def known(run: str) -> DiffAERun | PDAERun | LatentRun:
    (found,) = [config for config in STAGE_2.values() if config.run == run]
    assert isinstance(found, DiffAERun | PDAERun | LatentRun)
    return found


def encoder_of(config: DiffAERun | PDAERun) -> nn.Module:
    channels = 3 if isinstance(config.data, OpenMojiConfig) else config.data.channels
    encoder = build_semantic(config.encoder, resolution=config.data.resolution, channels=channels)
    z = encoder(torch.zeros(2, channels, config.data.resolution, config.data.resolution))
    assert z.shape == (2, config.encoder.z_width)
    return encoder


@pytest.mark.parametrize("path", of(DiffAERun), ids=named)
def test_diffaes_build_on_their_autoencoders_latents(path):
    config = SEMANTIC[path]
    channels, side = latents_of(config)
    with torch.device("meta"):
        encoder_of(config)
        shape = {"sample_size": side, "channels": channels, "z_width": config.encoder.z_width}
        unet = build_code_unet(config.unet, config.code, **shape)
    assert all(parameter.is_meta for parameter in unet.parameters())


@pytest.mark.parametrize("path", of(PDAERun), ids=named)
def test_pdaes_build_on_an_unconditional_model_of_the_same_pictures(path):
    config = SEMANTIC[path]
    base = known(config.base)
    assert base.data == config.data
    assert build(base.schedule).a[-1] > 0
    channels, side = latents_of(base)
    with torch.device("meta"):
        encoder_of(config)
        unet = build_unet(base.unet, sample_size=side, channels=channels, out_channels=channels, cross_width=None)
        shift = ShiftUNet(base=unet, z_width=config.encoder.z_width)
    assert shift.conv_out.out_channels == channels


@pytest.mark.parametrize("path", of(PriorRun), ids=named)
def test_priors_build_on_a_semantic_model_of_the_same_pictures(path):
    config = SEMANTIC[path]
    model = known(config.model)
    assert model.data == config.data
    if isinstance(model, LatentRun):  # a decoder of image embeddings
        assert [each.kind for each in model.condition.members if each.reads_pictures] == ["image"]
        z_width = EMBEDDED
    else:
        z_width = model.encoder.z_width
    with torch.device("meta"):
        mlp = SkipMLP(z_width=z_width, condition_width=told_width(config, z_width), **config.net.model_dump())
        assert mlp(torch.zeros(2, z_width), torch.zeros(2)).shape == (2, z_width)


def told_width(config: PriorRun, z_width: int) -> int | None:
    match config.condition:
        case NoConfig():
            return None
        case PretrainedTextConfig():
            return MINILM_WIDTH
        case ClassConfig(width=width):
            return width or z_width
        case TextConfig(width=width):
            return width


def test_there_is_one_of_every_method_and_a_tiny_one():
    tiny = {"diffae_tiny", "pdae_tiny", "prior_tiny", "prior_text_tiny"}
    large = {
        f"openmoji32_{name}" for name in ("diffae_pixels", "diffae_latents", "prior", "prior_text", "pdae_latents")
    }
    assert {path.stem for path in SEMANTIC if path.parent.name == "semantic"} == {*tiny, "encdiff_shapes"}
    assert {path.stem for path in SEMANTIC if path.parent.name == "gpu"} == large
    assert all(config.train.steps < 10 for path, config in SEMANTIC.items() if path.stem in tiny)
