"""Autoencoder runs that start from trained weights, of the whole or of the decoder alone."""

import shutil

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file

from autoencoder.base import decode, encode, reconstruct
from autoencoder.config import build
from autoencoder.kl import KLConfig
from autoencoder.saved import load
from autoencoder.vq import VQConfig
from ldm_kit import train
from ldm_kit.config import UserError
from ldm_kit.methods import train as training
from ldm_kit.methods.autoencoder import Autoencoding
from ldm_kit.methods.train import open_method
from tests.training.helpers import KL, SHAPE, VQ, picture_folder, play, reset, settings

TREES = {"kl": KL, "vq": VQ}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An AutoencoderKL and a VQModel as diffusers saves them, with a normalisation that is not ours."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(5)
    for name, config in (("kl", KLConfig(**SHAPE)), ("vq", VQConfig(codes=32, **SHAPE))):
        vae = build(config)
        vae.register_to_config(scaling_factor=0.4)
        vae.save_pretrained(folder / name)
    return {name: folder / name for name in TREES}


def opened(tree, pictures, init, *overrides) -> Autoencoding:
    more = ("train.attention=sdpa", "train.channels_last=false", *overrides)
    return open_method(settings(tree, pictures, pictures.parent / "run", f"init={init}", *more))  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), [("kl", AutoencoderKL), ("vq", VQModel)])
def test_it_starts_with_what_diffusers_computes(pictures, models, name, kind):
    vae, theirs = opened(TREES[name], pictures, models[name]).vae.eval(), kind.from_pretrained(models[name]).eval()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = theirs.encode(x).latent_dist.mean if name == "kl" else theirs.encode(x).latents
    assert torch.equal(vae.encode(x).latent_dist.mean if name == "kl" else vae.encode(x).latents, z)
    assert torch.equal(reconstruct(vae, z), reconstruct(theirs, z))
    assert vae.config.scaling_factor == 0.4


@torch.no_grad()
@pytest.mark.parametrize("name", TREES)
def test_the_decoder_alone_is_trained_and_latents_stay_bit_equal(pictures, models, tmp_path, name):
    """The codes of the VQ run would otherwise move by averages and be revived."""
    reset()
    more = (f"init={models[name]}", "train_decoder_only=true", "train.steps=4", "log.pictures=2")
    with torch.enable_grad():
        model = train(settings(TREES[name], pictures, tmp_path / "run", *more))
    before, after = load(models[name]), load(model)
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for ours, theirs in zip(encode(after, x), encode(before, x), strict=True):
        assert torch.equal(ours, theirs)
    z = encode(before, x).mean
    assert (decode(after, z) - decode(before, z)).abs().max() > 1e-4
    old, new = before.state_dict(), after.state_dict()
    moved = {key.partition(".")[0] for key in old if not torch.equal(old[key], new[key])}
    assert moved == {"decoder"}


@pytest.mark.parametrize("name", TREES)
def test_it_resumes_bit_for_bit_without_the_autoencoder_that_it_started_from(pictures, models, tmp_path, name):
    shutil.copytree(models[name], tmp_path / "model")

    def config(run):
        more = (f"init={tmp_path / 'model'}", "train.steps=4", "train.checkpoint_every=2")
        return settings(TREES[name], pictures, tmp_path / run, *more)

    whole = play(config("whole"))
    part = play(config("run"), until=2)
    shutil.rmtree(tmp_path / "model")
    rest = play(config("run"), "latest")
    assert part.lines + rest.lines == whole.lines
    assert rest.weights == whole.weights


@pytest.mark.parametrize(
    ("name", "tree", "overrides", "said"),
    [
        (
            "kl",
            KL,
            ("autoencoder.widths=[8, 32]",),
            r": its AutoencoderKL has block_out_channels \[8, 16\], but this run's autoencoder.widths gives \[8, 32\]",
        ),
        ("kl", KL, ("autoencoder.latent_channels=3",), "autoencoder.latent_channels gives 3"),
        ("kl", KL, ("autoencoder.middle_attention=true",), "autoencoder.middle_attention gives True"),
        ("vq", VQ, ("autoencoder.codes=64",), "autoencoder.codes gives 64"),
        ("vq", KL, (), "has the class VQModel, but autoencoder.kind kl is of class AutoencoderKL"),
    ],
    ids=str,
)
def test_another_architecture_is_refused_before_the_pictures_are_read(
    pictures, models, monkeypatch, name, tree, overrides, said
):
    monkeypatch.setattr(training, "load", lambda *a, **k: pytest.fail("the pictures were read"))
    with pytest.raises(UserError, match=said) as refused:
        opened(tree, pictures, models[name], *overrides)
    assert "\n" not in str(refused.value)


def test_tensors_of_no_use_are_named(pictures, models, tmp_path):
    shutil.copytree(models["kl"], tmp_path / "more")
    path = tmp_path / "more" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="has 1 tensors of no use: extra"):
        opened(KL, pictures, tmp_path / "more")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train_decoder_only=true",), "expected its name as init"),
        (("train_decoder_only=true", "init=x", "equivariance={}"), "leave one of them out"),
    ],
)
def test_settings_that_contradict_are_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        settings(KL, "pictures", "run", *overrides)  # type: ignore[arg-type]
