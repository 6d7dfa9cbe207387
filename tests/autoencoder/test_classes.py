"""First stages of every class: the protocol is what diffusers computes, and models of each are cached and sampled."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline

from autoencoder import saved
from autoencoder.base import Autoencode, AutoencoderError, affine, decode, encode, latent_shape, reduction
from autoencoder.classes import KINDS, kind_of
from ldm_kit import SamplingOptions, from_tensor, load, train
from ldm_kit.config import UserError


def tiny(**changes):
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    return AutoencoderTiny(**{**widths, **blocks, "latent_channels": 4, **changes}).eval()


def deep(**changes):
    torch.manual_seed(0)
    given = {"in_channels": 3, "latent_channels": 8, "attention_head_dim": 4}
    given |= {"encoder_block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 8, 16)}
    given |= {"encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1)}
    given |= {"encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())}
    return AutoencoderDC(**{**given, **changes}).eval()


def toy_split():
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return from_tensor(images, captions=["a", "b", "c"] * 4, heldout=0.2)


PICTURES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("build", [tiny, deep])
@torch.no_grad()
def test_latents_and_pictures_are_those_of_diffusers(build):
    vae = build(scaling_factor=0.5)
    output = vae.encode(PICTURES)
    raw = output.latents if isinstance(vae, AutoencoderTiny) else output.latent
    mean, logvar = encode(vae, PICTURES)
    torch.testing.assert_close(mean, raw * 0.5, rtol=0, atol=0)
    assert (logvar == -30).all()
    torch.testing.assert_close(decode(vae, mean), vae.decode(raw).sample, rtol=0, atol=0)


@pytest.mark.parametrize("build", [tiny, deep])
@torch.no_grad()
def test_the_reduction_is_that_of_the_networks(build):
    vae = build()
    assert reduction(vae) == 16 // encode(vae, PICTURES).mean.shape[-1] == 4
    assert latent_shape(vae, 16, 24) == (*encode(vae, PICTURES).mean.shape[1:2], 4, 6)
    with pytest.raises(AutoencoderError, match="18x16 px does not fit: this autoencoder needs multiples of 4"):
        latent_shape(vae, 18, 16)


def test_a_shift_is_undone():
    vae = tiny(shift_factor=0.25, scaling_factor=2.0)
    shift, scale = affine(vae)
    assert (shift.item(), scale.item()) == (0.25, 2.0)


@pytest.mark.parametrize("build", [tiny, deep])
def test_a_saved_one_opens_bit_for_bit(build, tmp_path):
    vae = build()
    vae.save_pretrained(tmp_path / "vae")
    opened = saved.load(tmp_path)
    assert type(opened) is type(vae)
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in vae.state_dict().items())


def test_what_diffusers_has_no_kind_for_is_refused():
    assert kind_of(torch.nn.Identity()) is None
    with pytest.raises(
        AutoencoderError, match="among AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC; got Ident"
    ):
        encode(torch.nn.Identity(), PICTURES)
    assert [*saved.CLASSES] == [kind.__name__ for kind in KINDS]


@pytest.mark.parametrize("build", [tiny, deep])
def test_only_kl_and_vq_are_trained(build):
    with pytest.raises(AutoencoderError, match="Only an AutoencoderKL or a VQModel can be trained, got Autoencoder"):
        Autoencode(build())


def config(folder, run, **more):
    net = {"widths": [8, 8], "layers_per_block": 1, "attention_levels": [False, True], "heads": 2, "norm_num_groups": 4}
    text = {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 520, "length": 8}
    return {
        "run": str(run),
        "autoencoder": str(folder),
        "unet": net,
        "condition": text,
        "optim": {"lr": 1e-3},
        "train": {"steps": 2, "batch_size": 4},
        "sample": {"solver": "ddim", "steps": 2},
        "log": {"tensorboard": False, "pictures": 2},
        **more,
    }


def normalised(vae, pictures):
    """The autoencoder with the scaling factor that gives its latents deviation 1, as its publisher would state it."""
    with torch.no_grad():
        vae.register_to_config(scaling_factor=1 / encode(vae, pictures).mean.std().item())
    return vae


@pytest.mark.parametrize("build", [tiny, deep])
def test_a_latent_model_trains_on_its_latents_and_opens_again(build, tmp_path):
    data = toy_split()
    vae = normalised(build(), torch.stack([data.train.picture(i) for i in range(4)]) / 127.5 - 1)
    vae.save_pretrained(tmp_path / "vae")
    folder = train(config(tmp_path / "vae", tmp_path / "run"), data=data)
    model = load(folder)
    pictures = next(model.generate(["a", "b"], [0, 1], SamplingOptions(solver="ddim", steps=2)))
    assert pictures.shape == (2, 3, 16, 16)
    assert type(model.vae) is type(vae)
    assert torch.equal(
        pictures, next(load(folder).generate(["a", "b"], [0, 1], SamplingOptions(solver="ddim", steps=2)))
    )


def test_with_a_tiny_one_it_opens_in_plain_diffusers_and_samples_the_same(tmp_path):
    data = toy_split()
    vae = normalised(tiny(), torch.stack([data.train.picture(i) for i in range(4)]) / 127.5 - 1)
    vae.save_pretrained(tmp_path / "vae")
    folder = train(config(tmp_path / "vae", tmp_path / "run"), data=data)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = pipeline(
        "a", num_inference_steps=2, guidance_scale=1.0, latents=noise, output_type="pt", height=16, width=16
    )
    own = next(load(folder).generate(["a"], [0], SamplingOptions(solver="ddim", steps=2, guidance_scale=1)))
    assert (plain.images[0] * 255 - own[0].float()).abs().max() <= 1


def test_stage_1_refuses_to_start_from_one(tmp_path):
    tiny().save_pretrained(tmp_path / "vae")
    net = {"kind": "kl", "resolution": 16, "widths": [8, 8], "norm_num_groups": 4}
    given = {"run": str(tmp_path / "run"), "method": "autoencoder", "autoencoder": net, "init": str(tmp_path / "vae")}
    with pytest.raises(
        UserError, match=r"has the class AutoencoderTiny, but autoencoder\.kind kl is of class AutoencoderKL"
    ):
        train({**given, "perceptual": {"spec": "none"}, "train": {"steps": 1, "batch_size": 4}}, data=toy_split())
