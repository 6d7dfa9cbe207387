"""Whole semantic models: what they say after saving and loading, how they walk, and what is refused in a sentence."""

import getpass
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conditioning.none import NoCondition
from conditioning.semantic import SemanticEncoderConfig, build_semantic, condition_of
from ldm_kit.config import UserError
from ldm_kit.data.images import to_unit
from ldm_kit.diffusion.analytic import Gaussian
from ldm_kit.diffusion.denoiser import Clipped, NetworkDenoiser
from ldm_kit.diffusion.pdae import stochastic_code
from ldm_kit.diffusion.respacing import respacing_sections
from ldm_kit.diffusion.samplers import ddim
from ldm_kit.diffusion.schedule import ScheduleConfig, linear
from ldm_kit.models.decoders import CodeDecoder
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.prior import CodePrior, strided
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.code_unets import CodeConfig, VectorCodeConfig, build_code_unet
from ldm_kit.nets.execution import prepare_loaded
from ldm_kit.nets.mlp_skip import SkipMLP
from ldm_kit.nets.semantic_unet import SemanticUNetConfig
from ldm_kit.nets.token_unet import TokenCodeConfig
from tests.methods.semantic_toys import ENCODER, UNET, base
from tests.nets.originals import perturbed

WEIGHTS = "diffusion_pytorch_model.safetensors"
LINEAR = ScheduleConfig(kind="linear")
KINDS = ("pixels", "latents", "tokens", "latent tokens")
TOKENS = TokenCodeConfig(width=4, hidden=(8,))


def made(vae: Any = None, code: CodeConfig = VectorCodeConfig()) -> SemanticModel:  # noqa: B008
    torch.manual_seed(0)
    shape = {"sample_size": 8, "channels": 3} if vae is None else {"sample_size": 4, "channels": 4}
    unet = perturbed(build_code_unet(SemanticUNetConfig(**UNET), code, **shape, z_width=8))
    encoder = perturbed(build_semantic(SemanticEncoderConfig(**ENCODER), resolution=8))
    for net in (encoder, unet):
        prepare_loaded(net, "cpu")
    return SemanticModel(encoder, CodeDecoder(unet, vae, LINEAR, "eps"), torch.randn(8), torch.rand(8) + 0.5)


def model_of(kind: str, folder: Path) -> SemanticModel:
    """Build a model in memory; its autoencoder, if any, is that of a saved model."""
    vae = Pipeline.load(base(folder / "base", "latents")).vae if "latent" in kind else None
    return made(vae, TOKENS if "token" in kind else VectorCodeConfig())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models in memory, by kind."""
    return {kind: model_of(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def shown(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("kind", KINDS)
def test_load_of_save_says_the_same_bits(kind, tmp_path, layout):
    model = model_of(kind, tmp_path)
    model.save(tmp_path / "run" / "model")
    again = SemanticModel.load(tmp_path / "run")
    z = model.encode(shown())
    assert torch.equal(again.encode(shown()), z)
    assert torch.equal(again.invert(shown(), z, 5), model.invert(shown(), z, 5))
    assert torch.equal(again.decode(z, None, 5), model.decode(z, None, 5))
    assert torch.equal(again.mean, model.mean)
    assert torch.equal(again.std, model.std)
    assert (again.resolution, again.channels, again.z_width) == (8, 3, 8)
    assert again.latent_shape == ((4, 4, 4) if "latent" in kind else (3, 8, 8))
    assert not any(p.requires_grad for net in (again.encoder, again.decoder.unet) for p in net.parameters())
    assert not again.decoder.unet.training


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_is_free_of_traces(models, kind, tmp_path):
    models[kind].save(tmp_path / "model")
    files = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.*")}
    nets = ("encoder", "unet") + (("vae",) if "latent" in kind else ())
    expected = {f"{net}/{name}" for net in nets for name in ("config.json", WEIGHTS)}
    assert files == expected | {"model_index.json", "statistics.safetensors", "scheduler/scheduler_config.json"}
    traces = {str(tmp_path), str(Path.home()), os.getcwd()} | ({getpass.getuser()} - {"root"})
    for path in (tmp_path / "model").rglob("*.json"):
        assert not [trace for trace in traces if trace in path.read_text()]
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "ldm_kit.SemanticModel"


def test_codes_are_the_encoders_of_the_picture(models):
    model = models["latents"]
    with torch.no_grad():
        truth = model.encoder(to_unit(shown()))
    assert torch.equal(model.encode(shown()), truth)
    torch.testing.assert_close(model.encode(shown(), batch=2), truth)
    assert model.encode(shown(0)).shape == (0, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_clipped_both_ways_and_latents_never(models, kind):
    model, z = models[kind], models[kind].encode(shown())
    denoiser = model.decoder.denoiser()
    x = 3 * model.noise(range(3))
    p = denoiser(x, torch.tensor([10, 500, 999]), condition_of(z))
    assert (p.x_0.abs().max() <= 1) == ("latent" not in kind)
    plain = NetworkDenoiser(lambda x, t, c: model.decoder.unet(x, t, c.vector), linear(), "eps")
    chosen = plain if "latent" in kind else Clipped(plain)
    grid = respacing_sections(1000, "ddim10")
    with torch.no_grad():
        x_0 = model._latents(shown()) if "latent" in kind else to_unit(shown())
        *_, up = stochastic_code(chosen, x_0, grid[-2::-1], condition_of(z))
        *_, down = ddim(chosen, model.noise(range(3)), grid, condition_of(z))
    assert torch.equal(model.invert(shown(), z, 10), up.x)
    assert torch.equal(model.decode(z, None, 10), model._pictures(down.x))


class Exact(torch.nn.Module):
    """In the U-Net's place: the exact eps of a Gaussian."""

    config = {"sample_size": 8, "channels": 3, "z_width": 8}  # noqa: RUF012

    def forward(self, x, t, z):
        return Gaussian(linear(), m=0.2, s=0.3)(x.double(), t).eps.float()


@pytest.mark.parametrize(("steps", "mse"), [(50, 2.34e-3), (250, 1.1e-4)])
def test_decoding_the_inferred_noise_errs_as_was_measured(steps, mse):
    model = made()
    model.decoder.unet = Exact()
    x = 0.2 + 0.3 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
    z = model.encode(pictures)
    inferred = model.invert(pictures, z, steps)
    back = model.decode(z, inferred, steps)
    assert (to_unit(back) - to_unit(pictures)).square().mean().item() == pytest.approx(mse, rel=0.15)
    random = model.decode(z, None, steps)
    assert (to_unit(random) - to_unit(pictures)).square().mean() > 0.1


def test_pictures_depend_on_their_own_seed_alone(models):
    model = models["pixels"]
    z = model.encode(shown())
    assert torch.equal(model.noise([4, 9])[1], model.noise([9])[0])
    assert not torch.equal(model.noise([4]), model.noise([9]))
    some = model.decode(z, None, 4, seeds=[7, 8, 9])
    assert torch.equal(some, model.decode(z, model.noise([7, 8, 9]), 4))
    assert not torch.equal(some, model.decode(z, None, 4))
    assert torch.equal(model.decode(z, None, 4), model.decode(z, None, 4, seeds=[0, 1, 2]))
    apart = model.decode(z, None, 4, batch=1, seeds=[7, 8, 9])
    assert (apart.int() - some.int()).abs().max() <= 1
    assert model.decode(z[:0], None, 4).shape == (0, 3, 8, 8)


def test_progress_covers_all_batches(models):
    model, heard = models["pixels"], []
    z = model.encode(shown())
    model.invert(shown(), z, 3, batch=2, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(i, 6) for i in range(1, 7)]
    model.decode(z, None, 3, batch=2, progress=lambda done, total: heard.append((done, total)))
    assert heard[6:] == heard[:6]


def test_half_precision_stays_near(models, tmp_path):
    models["pixels"].save(tmp_path)
    half, z = SemanticModel.load(tmp_path, precision=torch.bfloat16), models["pixels"].encode(shown())
    assert torch.equal(half.encode(shown()), z)
    noise = half.noise(range(3))
    one, other = (
        m.decoder.denoiser()(noise, torch.tensor([900] * 3), condition_of(z)).eps for m in (half, models["pixels"])
    )
    assert 0 < (one - other).abs().max() < 0.1 * other.abs().max()


def test_steps_are_diffaes_where_there_is_a_stride_and_even_ones_elsewhere():
    assert strided(1000, 20) == [*range(950, -1, -50), -1]
    assert strided(1000, 250) == [*range(996, -1, -4), -1]
    even = strided(1000, 60)
    assert even == [*(round(999 * i / 59) for i in reversed(range(60))), -1]


def test_sampled_codes_have_the_mean_and_deviation_of_the_training_sets(models):
    prior = CodePrior(SkipMLP(z_width=8, hidden=8, layers=2), NoCondition(), ScheduleConfig(kind="constant"))
    model = replace(models["pixels"], prior=prior)
    torch.testing.assert_close(model.sample_z(range(3), 4), prior.sample(range(3), 4) * model.std + model.mean)


def told(call, *given, **named):
    with pytest.raises(UserError) as refused:
        call(*given, **named)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_does_not_fit_is_refused_in_a_sentence(models):
    model, pictures = models["latents"], shown()
    z = model.encode(pictures)
    assert "uint8 [N, 3, 8, 8], got uint8 [3, 3, 8, 7]" in told(model.encode, pictures[..., :7])
    assert "got uint8 [3, 1, 8, 8]" in told(model.encode, pictures[:, :1])
    assert "got float32 [3, 3, 8, 8]" in told(model.invert, pictures.float(), z)
    assert "expected 3 codes of 8 numbers each, got [2, 8]" in told(model.invert, pictures, z[:2])
    assert "got [3, 7]" in told(model.decode, z[:, :7])
    assert "got noise [3, 3, 8, 8]; expected [3, 4, 4, 4]" in told(model.decode, z, torch.zeros(3, 3, 8, 8))
    assert "got noise [2, 4, 4, 4]" in told(model.decode, z, None, 4, seeds=[1, 2])
    assert "cannot walk 1000 training times in 1001" in told(model.decode, z, None, 1001)
    assert "1000 training times in 0" in told(model.invert, pictures, z, 0)
    assert "stop is 0.3" in told(model.decode, z, None, 4, stop=0.3)
    assert "has no prior" in told(model.sample_z, [0])


def test_folders_that_are_not_whole_are_refused_in_a_sentence(models, tmp_path):
    folder = tmp_path / "model"
    models["pixels"].save(folder)
    assert "is no saved model" in told(SemanticModel.load, tmp_path / "nothing")
    index = json.loads((folder / "model_index.json").read_text())

    def changed(**more):
        (folder / "model_index.json").write_text(json.dumps({**index, **more}))
        said = told(SemanticModel.load, folder)
        (folder / "model_index.json").write_text(json.dumps(index))
        return said

    assert "which has no semantic codes" in changed(_class_name="LDMPipeline")
    assert "encoder is ['os', 'system'], expected SemanticEncoder or StridedEncoder" in changed(
        encoder=["os", "system"]
    )
    assert "no other code is run" in changed(unet=["somewhere", "SemanticUNet"])
    assert "vae is ['diffusers', 'AsymmetricAutoencoderKL']" in changed(vae=["diffusers", "AsymmetricAutoencoderKL"])
    path = folder / "statistics.safetensors"
    weights = load_file(path)
    save_file({**weights, "mean": torch.zeros(3)}, path)
    assert "expected mean and std of 8 numbers each" in told(SemanticModel.load, folder)
    path.write_bytes(b"nothing")
    assert "cannot read" in told(SemanticModel.load, folder)
    save_file(weights, path)
    models["latents"].encoder.save_pretrained(folder / "encoder")
    SemanticModel.load(folder)
    other = build_semantic(SemanticEncoderConfig(**{**ENCODER, "z_width": 6}), resolution=8)
    other.save_pretrained(folder / "encoder")
    assert "the decoder takes codes of 8 numbers, the encoder's have 6" in told(SemanticModel.load, folder)
    (folder / "unet" / WEIGHTS).unlink()
    assert "cannot open" in told(SemanticModel.load, folder)
