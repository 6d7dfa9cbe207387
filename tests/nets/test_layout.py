"""How networks are made to compute: nothing of it changes what they compute."""

from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from autoencoder.config import KLConfig
from autoencoder.config import build as build_autoencoder
from ldm_kit.nets.build import UNetConfig, build_unet
from ldm_kit.nets.half_unet import HalfUNetConfig, build_half_unet
from ldm_kit.nets.layout import rounded, suit
from ldm_kit.training.settings import TrainConfig

CPU = torch.device("cpu")


def manner(**more) -> TrainConfig:
    return TrainConfig(steps=1, batch_size=1, **more)


def unet() -> nn.Module:
    torch.manual_seed(0)
    config = UNetConfig(widths=(16, 32), attention=(False, True), heads=2, groups=8, dropout=0.1)
    return build_unet(config, sample_size=8, channels=4, cross_width=16)


def gradients(net: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)  # of dropout, which is made again too
    out = net(*inputs)
    out = out if isinstance(out, torch.Tensor) else out.sample
    out.square().mean().backward()
    return [weight.grad for weight in net.parameters() if weight.grad is not None]


def asked(kind: str):
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    match kind:
        case "unet":
            return unet().train(), (x, t, torch.randn(2, 5, 16))
        case "classifier":
            config = HalfUNetConfig(widths=(16, 32), attention=(False, True), layers=1, head_size=8, groups=8)
            return build_half_unet(config, sample_size=8, channels=4, classes=("a", "b")).train(), (x, t)
        case _:
            net = KLConfig(kind="kl", resolution=16, widths=(16, 16), latent_channels=4, norm_groups=8)
            return build_autoencoder(net).train(), (torch.randn(2, 3, 16, 16),)


@pytest.mark.parametrize("kind", ["unet", "classifier", "autoencoder"])
@pytest.mark.parametrize("how", [{"checkpointing": True}, {"channels_last": True}, {"channels_last": False}])
def test_gradients_stay(kind, how):
    plain, inputs = asked(kind)
    if "channels_last" in how:  # dropout's masks are drawn in the order of memory
        plain.eval()
    net = deepcopy(plain)
    suit(net, CPU, manner(**how))
    assert any(getattr(m, "gradient_checkpointing", False) for m in net.modules()) == how.get("checkpointing", False)
    expected, found = gradients(plain, *inputs), gradients(net, *inputs)
    assert len(found) == len(expected) > 0
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


def test_checkpointing_keeps_fewer_activations():
    assert held(checkpointing=True) < 0.7 * held(checkpointing=False)


def held(**how) -> int:
    """Numbers kept for the backward pass."""
    net, inputs = asked("unet")
    suit(net, CPU, manner(**how))
    sizes = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        net(*inputs)
    return sum(sizes)


def test_compile_marks_blocks_and_leaves_names_alone():
    net = unet()
    names = list(net.state_dict())
    suit(net, CPU, manner(compile=True))
    marked = {type(m) for m in net.modules() if m._compiled_call_impl is not None}
    assert marked == {ResnetBlock2D, BasicTransformerBlock}
    assert list(net.state_dict()) == names


@pytest.mark.slow
def test_compiled_blocks_compute_the_same():
    plain, inputs = asked("unet")
    net = deepcopy(plain)
    suit(plain.eval(), CPU, manner())
    suit(net.eval(), CPU, manner(compile=True))
    for a, b in zip(gradients(plain, *inputs), gradients(net, *inputs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("given", "device", "amx", "last"), [
    (None, "cuda", False, True), (None, "cpu", True, True), (None, "cpu", False, False),
    (True, "cpu", False, True), (False, "cuda", True, False),
])  # fmt: skip
def test_which_layout(given, device, amx, last, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    found = manner(channels_last=given).layout(torch.device(device))
    assert found is (torch.channels_last if last else torch.contiguous_format)


def test_rounded_weights_are_those_of_maps_and_convolutions_alone():
    net = unet()
    rounded(net, torch.bfloat16)
    for module in net.modules():
        kinds = {parameter.dtype for parameter in module.parameters(recurse=False)}
        assert kinds <= {torch.bfloat16 if isinstance(module, nn.Linear | nn.Conv2d) else torch.float32}


def test_an_autoencoder_is_suited_too():
    net, _ = asked("autoencoder")
    assert isinstance(net, AutoencoderKL)
    suit(net, CPU, manner(checkpointing=True))
    assert net.encoder.gradient_checkpointing
    assert net.decoder.gradient_checkpointing
