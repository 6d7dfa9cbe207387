import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from autoencoder.base import AutoencoderError, decode, encode, posterior, reconstruct, sample
from autoencoder.kl import KLConfig, build_kl
from autoencoder.statistics import LatentStatistics, fold, from_sums, latent_sums, measure
from autoencoder.vq import VQConfig, build_vq

TINY = {"resolution": 16, "widths": (8, 16), "norm_num_groups": 4, "latent_channels": 2}


@pytest.fixture
def batches():
    return list((torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1).split(2))


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return build_kl(KLConfig(**TINY)).eval()


@torch.no_grad()
def test_they_are_those_of_sampled_latents(vae, batches):
    statistics = measure(vae, batches)
    moments = encode(vae, torch.cat(batches))
    z = torch.stack([sample(moments, torch.randn_like(moments.mean)) for _ in range(300)])
    torch.testing.assert_close(statistics.mean.float(), z.mean((0, 1, 3, 4)), atol=0.01, rtol=0)
    torch.testing.assert_close(statistics.std.float(), z.std((0, 1, 3, 4)), atol=0.01, rtol=0)
    assert statistics.overall == pytest.approx(z.std().item(), abs=0.01)
    assert statistics.count == 6


def test_sums_of_parts_in_any_order_are_those_of_the_whole(vae, batches):
    whole, parts = measure(vae, [torch.cat(batches)]), from_sums(latent_sums(vae, x) for x in reversed(batches))
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.std, whole.std)
    assert parts.count == whole.count


@torch.no_grad()
@pytest.mark.parametrize("convolutions", [True, False])
def test_folding_is_the_affine_map_and_leaves_pictures_alone(vae, batches, convolutions):
    if not convolutions:
        config = dict(vae.config) | {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.3}
        vae = AutoencoderKL.from_config(config).eval()
    x, statistics = batches[0], measure(vae, batches)
    before, picture = encode(vae, x), decode(vae, encode(vae, x).mean)
    fold(vae, statistics)
    after = encode(vae, x)
    mean, std = (v.float().view(1, -1, 1, 1) for v in (statistics.mean, statistics.std))
    torch.testing.assert_close(after.mean, (before.mean - mean) / std, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.exp(after.logvar / 2), torch.exp(before.logvar / 2) / std)
    torch.testing.assert_close(decode(vae, after.mean), picture, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(posterior(vae, x).mean, after.mean)
    assert vae.config.scaling_factor == 1.0
    assert vae.config.shift_factor is None
    again = measure(vae, batches)
    torch.testing.assert_close(again.mean, torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(again.std, torch.ones(2).double(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_folded_model_is_plain_diffusers(vae, batches, tmp_path):
    fold(vae, measure(vae, batches))
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encode(batches[0]).latent_dist.mean, encode(vae, batches[0]).mean)


@torch.no_grad()
def test_vq_latents_get_one_factor_and_keep_their_codes(batches):
    vae = build_vq(VQConfig(**TINY, codes=16)).eval()
    picture = reconstruct(vae, posterior(vae, batches[0]).mean)
    fold(vae, measure(vae, batches))
    assert vae.config.scaling_factor != 1
    assert measure(vae, batches).overall == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(decode(vae, encode(vae, batches[0]).mean), picture)


@torch.no_grad()
def test_broken_latents_are_named(vae, batches):
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias[2:] = -30
    with pytest.raises(AutoencoderError, match=r"channels \[0, 1\]"):
        measure(vae, batches)
    with pytest.raises(AutoencoderError, match=r"channels \[1\]"):
        fold(vae, LatentStatistics(torch.zeros(2).double(), torch.tensor([1.0, torch.nan]).double(), 1))
    with pytest.raises(AutoencoderError, match="at least one batch"):
        measure(vae, [])
