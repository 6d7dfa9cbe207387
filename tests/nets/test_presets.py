"""Every preset against the published network of its name: channels, heads, and what it computes, at an eighth size."""

from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.attention_processor import Attention
from torch import nn

from ldm_kit.convert.guided_diffusion_layout import Heads, convert_tensor, denoiser_layout, original_name
from ldm_kit.nets.adm import AdmUNet
from ldm_kit.nets.presets import PRESETS
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.nets import adm
from tests.nets.adm import ADM, Whole, restless
from tests.nets.compvis import TokenUNet

LEVELS = {"base": 192, "multiples": (1, 2, 3, 5), "layers": 2, "attention": (1, 2, 3)}
SD = {"base": 320, "multiples": (1, 2, 4, 4), "layers": 2, "attention": (0, 1, 2)}
# As their own configs say: model_channels, channel_mult, num_res_blocks, levels of attention_resolutions, num_heads or
# num_head_channels; `context`, the width of the tokens. Table 11 of ADM's paper has 4 heads at 128 px, else 64 channels
PUBLISHED: dict[str, dict[str, Any]] = {
    "nano": {"base": 64, "multiples": (1, 2, 2), "layers": 1, "attention": (1, 2), "heads": 4, "context": 64},
    "micro": {"base": 128, "multiples": (1, 2, 2), "layers": 2, "attention": (1, 2), "heads": 4, "context": 128},
    "pixel32": {"base": 64, "multiples": (1, 2, 4), "layers": 2, "attention": (1, 2), "heads": 4, "context": 128},
    "ldm4-unconditional": {**LEVELS, "base": 224, "multiples": (1, 2, 3, 4), "head_size": 32},
    "ldm4-imagenet": {**LEVELS, "heads": 1, "context": 512},
    "ldm8-imagenet": {"base": 256, "multiples": (1, 2, 4), "layers": 2, "attention": (0, 1, 2), "head_size": 32}
    | {"context": 512},
    "ldm4-text": {**LEVELS, "head_size": 32, "context": 640},
    "ldm8-text": {**SD, "heads": 8, "context": 1280},
    "ldm4-layout": {**LEVELS, "base": 128, "multiples": (1, 2, 3, 4), "head_size": 32, "context": 512, "depth": 3},
    "adm64": {**ADM["64"], "head_size": 64},
    "adm128": {**ADM["128"], "heads": 4},
    "adm256": {**ADM["256"], "head_size": 64},
    "adm512": {**ADM["512"], "head_size": 64},
    "sd1": {**SD, "heads": 8, "context": 768},
    "sd2": {**SD, "head_size": 64, "context": 1024, "linear": True},
}
EIGHTH = 8
T = torch.tensor([0, 417])


def form(name: str, config: UNetConfig) -> dict[str, Any]:
    """Tokens, or for ADM a class vector and a learned variance, as the network was published."""
    context = PUBLISHED[name].get("context")
    vector = config.time_width if name.startswith("adm") else None
    return {"cross_width": context, "vector_width": vector, "out_channels": 3 if vector is None else 6}


@pytest.mark.parametrize("name", PRESETS)
def test_every_level_has_the_published_channels_and_heads(name):
    original, config = PUBLISHED[name], UNetConfig(preset=name)
    with torch.device("meta"):
        unet = build_unet(config, sample_size=64, channels=3, **form(name, config))
    widths = [int(original["base"] * multiple) for multiple in original["multiples"]]
    assert list(unet.config["block_out_channels"]) == widths
    assert [i for i, attention in enumerate(config.attention_levels) if attention] == list(original["attention"])
    assert config.layers_per_block == original["layers"]
    assert config.norm_num_groups == {"nano": 8, "micro": 16, "pixel32": 8}.get(name, 32)
    heads = {module.inner_dim: module.heads for module in unet.modules() if isinstance(module, Attention)}
    attended = {widths[i] for i in (*original["attention"], -1)}
    size = original.get("head_size")
    assert heads == {width: original["heads"] if size is None else width // size for width in attended}


def eighth(name: str) -> UNetConfig:
    """The preset with an eighth of the channels everywhere, and so the same heads."""
    fields = UNetConfig(preset=name).model_dump()
    fields["widths"] = tuple(width // EIGHTH for width in fields["widths"])
    for key in ("head_size", "time_channels", "norm_num_groups"):
        fields[key] = fields[key] and fields[key] // EIGHTH
    return UNetConfig.model_validate({**fields, "preset": None, "dropout": 0.0})


def original_of(name: str, groups: int, out: int, patch: pytest.MonkeyPatch) -> Whole:
    """The published network, with an eighth of the channels."""
    patch.setattr(adm, "norm", lambda channels: nn.GroupNorm(groups, channels))
    small = {
        key: value // EIGHTH if key in ("base", "head_size", "context") else value
        for key, value in PUBLISHED[name].items()
    }
    if "context" in small:
        return restless(TokenUNet(**small))
    kind = {"out_channels": out, "classes": 5} if name.startswith("adm") else {"shift": False, "resnet": False}
    whole = Whole(**small, **kind)
    if name == "adm512":  # of whose sinusoids diffusers has half, as many as its first level has channels
        whole.base = whole.widths_down[0]
        whole.time_embed[0] = nn.Linear(whole.base, whole.time)
    return restless(whole)


def weights_for(unet: nn.Module, original: Whole, heads: Heads) -> dict[str, torch.Tensor]:
    state = original.state_dict()
    if isinstance(original, TokenUNet):
        return convert_ldm_unet_checkpoint(
            {f"model.diffusion_model.{key}": value for key, value in state.items()}, unet.config
        )
    layout = denoiser_layout(state)
    expected = unet.state_dict()
    found = {name: convert_tensor(name, state[original_name(name, layout)], heads) for name in expected}
    return {name: value.reshape(expected[name].shape) for name, value in found.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_computes_what_the_published_network_does(name, monkeypatch):
    config = eighth(name)
    shape = form(name, config)
    shape["cross_width"] = shape["cross_width"] and shape["cross_width"] // EIGHTH
    side = min(2 * config.factor, 64)
    unet = build_unet(config, sample_size=side, channels=3, **shape).eval()
    original = original_of(name, config.norm_num_groups, shape["out_channels"], monkeypatch)
    unet.load_state_dict(weights_for(unet, original, Heads(config.head_size or 1, config.heads)))
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, side, side, generator=draw)
    if shape["cross_width"] is not None:
        tokens = torch.randn(2, 5, shape["cross_width"], generator=draw)
        found, expected = unet(x, T, tokens).sample, original(x, T, tokens)
    elif shape["vector_width"] is not None:
        y = torch.tensor([3, 1])
        found, expected = unet(x, T, original.label_emb(y)).sample, original(x, T, y)
    else:
        found, expected = unet(x, T).sample, original(x, T)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_diffusers_class_is_taken_where_it_has_the_heads():
    def kind(**fields: Any) -> type:
        with torch.device("meta"):
            return type(build_unet(UNetConfig(**fields), sample_size=64, channels=3, cross_width=None))

    assert kind(preset="adm128") is AdmUNet
    assert kind(preset="adm128", head_size=64) is not AdmUNet
    assert kind(equal_heads=True, heads=4) is not AdmUNet  # 128 channels at every level with attention
