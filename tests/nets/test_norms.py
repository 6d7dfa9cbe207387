"""Norms under autocast: their precision, which layers are exchanged, and what float32 costs in memory."""

from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from autoencoder.config import KLConfig, build
from benchmarks.gpu.kept import kept_bytes
from ldm_kit.nets.execution import configure_network, prepare_loaded
from ldm_kit.nets.norms import FullGroupNorm, FullLayerNorm, HalfGroupNorm, HalfLayerNorm, set_norms
from ldm_kit.nets.shift_unet import ShiftUNet
from ldm_kit.nets.unet import UNetConfig, build_unet
from ldm_kit.training.config import TrainConfig

HALF = {"cuda": (HalfGroupNorm, HalfLayerNorm), "cpu": (nn.GroupNorm, nn.LayerNorm)}
FULL = {"cuda": (nn.GroupNorm, nn.LayerNorm), "cpu": (FullGroupNorm, FullLayerNorm)}


class OwnNorm(nn.LayerNorm):
    """A subclass, which may compute anything."""


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.GroupNorm(2, 8, eps=1e-3), nn.LayerNorm(4, eps=1e-2), nn.Conv2d(8, 8, 1), OwnNorm(4))
    for norm in (net[0], net[1]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return net


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(("precision", "expected"), [("auto", HALF), ("float32", FULL)])
def test_layers_are_exchanged_where_autocast_does_otherwise_itself(device, precision, expected):
    net = layers()
    names = list(net.state_dict())
    for _ in range(2):
        set_norms(net, device, precision)
        assert (type(net[0]), type(net[1])) == expected[device]
    assert (type(net[2]), type(net[3])) == (nn.Conv2d, OwnNorm)
    assert list(net.state_dict()) == names


def test_a_layer_can_go_back():
    net = layers()
    for device, precision in (("cuda", "auto"), ("cpu", "float32"), ("cpu", "auto")):
        set_norms(net, device, precision)
    assert (type(net[0]), type(net[1])) == (nn.GroupNorm, nn.LayerNorm)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_input_gives_16_bit_output_of_the_same_values(index, dtype):
    norm = layers()[index]
    x = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(1)).mul(5).add(2).to(dtype)
    expected = norm(x.float())
    set_norms(norm, "cuda")
    for enabled in (True, False):
        with torch.autocast("cpu", dtype, enabled=enabled):
            out = norm(x)
        assert out.dtype is dtype
        torch.testing.assert_close(out.float(), expected, rtol=3 * torch.finfo(dtype).eps, atol=0.05)


@pytest.mark.parametrize("index", [0, 1])
def test_float32_input_stays_float32(index):
    plain = layers()[index]
    x = torch.randn(3, 8, 4, 4)
    for device, precision in (("cuda", "auto"), ("cpu", "float32")):
        norm = deepcopy(plain)
        set_norms(norm, device, precision)
        assert torch.equal(norm(x), plain(x))


@pytest.mark.parametrize("index", [0, 1])
def test_float32_norms_return_float32_under_autocast(index):
    norm = layers()[index]
    x = torch.randn(3, 8, 4, 4).bfloat16()
    expected = norm(x.float())
    set_norms(norm, "cpu", "float32")
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype is torch.float32
    assert torch.equal(out, expected)


def test_weights_without_affine():
    for norm in (nn.GroupNorm(2, 8, affine=False), nn.LayerNorm(4, elementwise_affine=False)):
        x = torch.randn(3, 8, 4, 4).bfloat16()
        expected = norm(x)
        set_norms(norm, "cuda")
        torch.testing.assert_close(norm(x), expected)


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    net = build(KLConfig(resolution=32, widths=(16, 16), latent_channels=4, norm_num_groups=8))
    assert isinstance(net, AutoencoderKL)
    return net


def test_gradients_reach_float32_weights_and_agree():
    plain, x = autoencoder(), torch.randn(2, 3, 32, 32)
    half = deepcopy(plain)
    set_norms(half, "cuda")
    assert {type(m) for m in half.modules() if isinstance(m, nn.GroupNorm)} == {HalfGroupNorm}
    for net in (plain, half):
        with torch.autocast("cpu", torch.bfloat16):
            net.decode(net.encode(x).latent_dist.mode()).sample.float().square().mean().backward()
    for a, b in zip(plain.parameters(), half.parameters(), strict=True):
        if a.grad is not None:
            assert b.grad is not None
            assert b.grad.dtype is torch.float32
            assert (b.grad - a.grad).norm() <= 0.1 * a.grad.norm() + 1e-4


def test_float32_norms_keep_half_as_much_again():
    net, x = autoencoder(), torch.randn(2, 3, 32, 32)
    half, full = (kept_bytes(net, x, norms) for norms in ("auto", "float32"))
    assert 1.4 < full / half < 2


def test_the_frozen_network_of_a_shift_unet_is_set_too():
    config = UNetConfig(widths=(16, 32), attention_levels=(False, True), heads=2, norm_num_groups=8)
    base = build_unet(config, sample_size=8, channels=4, cross_width=16)
    shift = ShiftUNet(base=base, z_width=4)
    for device, precision, kind in (("cuda", "auto", HalfGroupNorm), ("cpu", "float32", FullGroupNorm)):
        set_norms(shift, device, precision)
        for net in (shift, base):
            assert {type(m) for m in net.modules() if isinstance(m, nn.GroupNorm)} == {kind}


def test_the_configs_choice_reaches_networks():
    config = TrainConfig(steps=1, batch_size=1, norms="float32")
    trained, loaded = autoencoder(), autoencoder()
    configure_network(trained, "cpu", config)
    prepare_loaded(loaded, "cpu", config)
    for net in (trained, loaded):
        assert {type(m) for m in net.modules() if isinstance(m, nn.GroupNorm)} == {FullGroupNorm}
    prepare_loaded(loaded, "cpu")
    assert {type(m) for m in loaded.modules() if isinstance(m, nn.GroupNorm)} == {nn.GroupNorm}
