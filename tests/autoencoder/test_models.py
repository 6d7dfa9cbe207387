import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from pydantic import TypeAdapter, ValidationError

from autoencoder.base import Autoencode, AutoencoderError, decode, encode, latent_shape, posterior, sample
from autoencoder.config import AutoencoderConfig, build
from autoencoder.kl import KL_PRESETS, KLConfig
from autoencoder.vq import VQ_PRESETS, VQConfig

TINY = {"resolution": 16, "widths": (8, 16), "norm_num_groups": 4, "latent_channels": 2}


def tiny(kind, **more):
    torch.manual_seed(0)
    return build(TypeAdapter(AutoencoderConfig).validate_python({"kind": kind, **TINY, **more}))


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (KLConfig(preset="kl-f4"), 55.3),
        (KLConfig(preset="kl-f8"), 83.7),
        (KLConfig(preset="kl-f16"), 69.6),
        (VQConfig(preset="vq-f4"), 55.3),
        (VQConfig(preset="vq-f8"), 67.7),
    ],
)
def test_published_presets_have_the_published_size(config, millions):
    with torch.device("meta"):
        vae = build(config)
    assert sum(p.numel() for p in vae.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    "config", [*(KLConfig(preset=n) for n in KL_PRESETS), *(VQConfig(preset=n) for n in VQ_PRESETS)]
)
def test_every_preset_survives_its_own_dump(config):
    assert TypeAdapter(AutoencoderConfig).validate_python(config.model_dump(mode="json")) == config
    assert config.side * config.factor == config.resolution


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"preset": "kl-f9"}, "unknown preset 'kl-f9'"),
        ({"widths": (10, 20)}, "not multiples of norm_num_groups"),
        ({"attention_levels": (2,)}, "attention_levels"),
        ({"resolution": 15}, "not a multiple of the reduction factor 2"),
        ({"depth": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        KLConfig(**wrong)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_saved_folder_is_plain_diffusers(kind, tmp_path):
    vae, x = tiny(kind).eval(), torch.rand(2, 3, 16, 16) * 2 - 1
    vae.register_to_config(scaling_factor=0.5)
    vae.save_pretrained(tmp_path)
    loaded = (AutoencoderKL if kind == "kl" else VQModel).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        given = loaded.encode(x)
        z = given.latent_dist.mode() if kind == "kl" else given.latents
        torch.testing.assert_close(encode(vae, x).mean, z * 0.5)
        torch.testing.assert_close(decode(vae, z * 0.5), loaded.decode(z).sample)
    assert loaded.config.scaling_factor == 0.5
    assert not loaded.config.force_upcast


def test_all_ways_of_stating_a_normalisation_are_understood():
    vae, x = tiny("kl").eval(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        raw = posterior(vae, x)
        vae.register_to_config(scaling_factor=2.0, shift_factor=0.25)
        shifted = encode(vae, x)
        torch.testing.assert_close(shifted.mean, (raw.mean - 0.25) * 2)
        torch.testing.assert_close(torch.exp(shifted.logvar / 2), torch.exp(raw.logvar / 2) * 2)
        torch.testing.assert_close(decode(vae, shifted.mean), vae.decode(raw.mean).sample)
        vae.register_to_config(scaling_factor=1.0, latents_mean=[0.1, 0.2], latents_std=[2.0, 4.0])
        mean, std = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1), torch.tensor([2.0, 4.0]).view(1, 2, 1, 1)
        torch.testing.assert_close(encode(vae, x).mean, (raw.mean - mean) / std)


def test_one_forward_trains_the_whole_model():
    for kind in ("kl", "vq"):
        wrapped, x = Autoencode(tiny(kind)), torch.rand(2, 3, 16, 16)
        made = wrapped(x, torch.randn(2, *latent_shape(wrapped.vae, 16, 16)))
        (made.picture.square().mean() + made.codebook_loss).backward()
        assert made.picture.shape == x.shape
        assert (made.indices is None) == (kind == "kl")
        assert all(p.grad is not None for p in wrapped.parameters())


def test_a_vq_latent_is_a_point():
    moments = encode(tiny("vq"), torch.rand(1, 3, 16, 16))
    torch.testing.assert_close(sample(moments, torch.ones_like(moments.mean)), moments.mean, atol=1e-6, rtol=0)


def test_half_precision_weights_give_full_precision_moments():
    vae = tiny("kl").to(torch.bfloat16)
    moments = encode(vae, torch.rand(1, 3, 16, 16))
    assert moments.mean.dtype == torch.float32
    assert decode(vae, moments.mean).dtype == torch.float32


def test_strangers_are_turned_away():
    with pytest.raises(AutoencoderError, match="got Identity"):
        encode(torch.nn.Identity(), torch.rand(1, 3, 16, 16))
    with pytest.raises(AutoencoderError, match="multiples of 2"):
        latent_shape(tiny("kl"), 15, 16)
