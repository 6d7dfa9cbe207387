"""A NaN or an infinity anywhere on the way to a picture: one sentence that names part and step, and nothing written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conditioning.factory import build as build_conditioner
from conditioning.labels import ClassConfig
from ldm_kit.config import UserError
from ldm_kit.diffusion.finite import POLL, FiniteCheck, NonFiniteError
from ldm_kit.editing.inversion import encode_image
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.half_unet import HalfUNetConfig, build_half_unet
from ldm_kit.solvers.table import SAMPLERS
from tests.editing.models import semantic, shifted
from tests.methods.semantic_toys import LINEAR, base
from tests.world import through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PICTURES = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def spoil(component: Path, name: str | None = None) -> None:
    """Write one NaN into the first weights of a saved component, or into those of a name."""
    (path,) = component.glob("*.safetensors")
    tensors = load_file(path)
    tensors[name or sorted(tensors)[0]].view(-1)[0] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def generate(pipeline: Pipeline, prompt: str = "", **options) -> torch.Tensor:
    return next(pipeline.generate([prompt], [0], SamplingOptions(**{"steps": 3, **options})))


@pytest.mark.parametrize("solver", list(SAMPLERS))
def test_every_sampler_names_the_u_net_and_the_first_step(tmp_path, solver):
    spoil(base(tmp_path / "model", "learned") / "unet")
    with pytest.raises(NonFiniteError, match=r"^the U-Net gives numbers .* at step 1 of sampling \(time 199\)"):
        generate(Pipeline.load(tmp_path / "model"), solver=solver)


def test_guidance_and_its_parts_are_told_apart(tmp_path):
    model = Pipeline.load(base(tmp_path / "model", "classes"))
    with pytest.raises(NonFiniteError, match=r"^guidance gives numbers .* at step 1 of"):
        generate(model, "t", guidance_scale=1e39)
    spoil(base(tmp_path / "worse", "classes") / "unet")
    guided = model.with_guides(autoguidance_model=Pipeline.load(tmp_path / "worse"))
    with pytest.raises(NonFiniteError, match=r"^the guide model's U-Net gives"):
        generate(guided, "t", guidance_scale=1)
    spoil(tmp_path / "model" / "class_encoder")
    with pytest.raises(NonFiniteError, match=r"^the encoder of prompts or classes gives"):
        generate(Pipeline.load(tmp_path / "model"), "b")


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_a_classifiers_gradient(tmp_path, solver):
    model = Pipeline.load(base(tmp_path / "model", "classes"))
    config = HalfUNetConfig(widths=(8,), attention_levels=(False,), head_size=None, norm_num_groups=4)
    net = build_half_unet(config, sample_size=8, channels=3, classes=["b", "t"])
    classifier = NoisyClassifier(net.eval(), ("b", "t"), LINEAR, None)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^the classifier's gradient gives .* at step 1"):
        generate(model.with_guides(classifier), "b", solver=solver, guidance_scale=1)


def test_guidance_that_leaves_the_range_at_a_later_step(tmp_path):
    """Every number is finite at first; latents are not clipped, and are multiplied by the scale at every step."""
    model = base(tmp_path / "model", "classes")
    clip = Pipeline.load(model)
    with pytest.raises(NonFiniteError, match=r" at step [2-9] of sampling \(time \d+\)"):
        generate(clip, "t", guidance_scale=1e30, clip="none", steps=9, solver="ddim")


@pytest.mark.parametrize(("part", "call"), [("decoder", generate), ("encoder", lambda m: encode_image(m, PICTURES))])
def test_the_first_stage(tmp_path, part, call):
    folder = base(tmp_path / "model", "latents")
    spoil(folder / "vqvae", f"{part}.conv_in.bias")
    model = Pipeline.load(folder)
    with pytest.raises(NonFiniteError, match=f"^the first stage's {part} gives numbers"):
        call(model)


def test_fp16_leaves_a_decoder_in_float32_that_asks_for_it(tmp_path, monkeypatch):
    """Activations beyond 65504 are infinite in float16; `force_upcast` in the VAE's config keeps them finite."""
    model = replace(Pipeline.load(base(tmp_path / "model", "latents")), precision=torch.float16)
    latents = torch.randn(1, *model.latent_shape)
    expected = replace(model, precision=None).pictures(latents)
    with torch.no_grad():  # 1e6 in the middle, and back
        model.vae.decoder.conv_in.weight *= 1e6
        model.vae.decoder.conv_in.bias *= 1e6
    model.vae.register_to_config(force_upcast=False)
    with pytest.raises(NonFiniteError, match=r"^the first stage's decoder gives"):
        model.pictures(latents)
    model.vae.register_to_config(force_upcast=True)
    assert model.pictures(latents).shape == expected.shape


@pytest.mark.parametrize("part", ["encoder", "unet", "prior/mlp"])
def test_a_semantic_model(tmp_path, part):
    classes = build_conditioner(ClassConfig(kind="class", form="vector"), classes=["a", "b"], time_width=8)
    folder = semantic(tmp_path / "model", conditioner=classes)
    spoil(folder / part)
    model = SemanticModel.load(folder)
    pictures, z = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 8)
    calls = {
        "encoder": [("the semantic encoder", lambda: model.encode(pictures))],
        "unet": [
            (r"the U-Net .* at step 1 of inverting \(time 0\)", lambda: model.invert(pictures, z, 2)),
            (r"the U-Net .* at step 1 of decoding \(time 100\)", lambda: model.decode(z, None, 2)),
        ],
        "prior/mlp": [(r"the prior's network \(mlp\) .* at step 1 of sampling a code", lambda: model.sample_z([0], 2))],
    }
    for sentence, call in calls[part]:
        with pytest.raises(NonFiniteError, match=sentence):
            call()


@pytest.mark.parametrize("part", ["shift", "base"])
def test_pdae_names_its_own_network_or_its_base(tmp_path, part):
    folder = shifted(tmp_path / "model", base(tmp_path / "base"))
    model = SemanticModel.load(folder)
    network = model.decoder.shift if part == "shift" else model.decoder.base.unet
    with torch.no_grad():
        (network.conv_out.bias if part == "base" else [*network.parameters()][-1]).fill_(float("nan"))
    expected = {"shift": "the gradient estimator", "base": "the base model's U-Net"}[part]
    with pytest.raises(NonFiniteError, match=f"^{expected}.* at step 1 of decoding"):
        model.decode(torch.zeros(1, 8), None, 3)
    with pytest.raises(NonFiniteError, match=r"^the base model's U-Net" if part == "base" else "^the gradient"):
        model.decode(torch.zeros(1, 8), None, 3, stop=0.5)


@pytest.mark.parametrize("command", ["sample", "img2img", "inpaint", "reprompt"])
def test_no_command_writes_a_picture(tmp_path, command):
    """Not even the folder is made; the status is 2."""
    model, out = base(tmp_path / "model", "classes"), tmp_path / "new" / "out"
    spoil(model / "unet")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    image = ("--image", tmp_path / "picture.png", "--steps", 3, "--out", out, "--model", model)
    arguments = {
        "sample": ("sample", model, "b", "--steps", 3, "--out", out),
        "img2img": ("edit", "img2img", *image, "--prompt", "b"),
        "inpaint": ("edit", "inpaint", *image, "--prompt", "b", "--mask", tmp_path / "mask.png"),
        "reprompt": ("edit", "reprompt", *image, "--source", "b", "--prompt", "t"),
    }
    done = through(*arguments[command])
    assert done.status == 2
    assert len(done.errors) == 1
    assert "the U-Net gives numbers that are not finite" in done.errors[0]
    assert "at step 1 of" in done.errors[0]
    assert not (tmp_path / "new").exists()
    assert "pictures in" not in done.out


def test_notes_are_looked_at_late_on_an_accelerator_and_the_first_bad_one_is_named():
    class Deferred(torch.Tensor):
        """A tensor that says it is on an accelerator."""

        @property
        def device(self):
            return torch.device("cuda")

    check = FiniteCheck()
    good, bad = (torch.full((2,), value).as_subclass(Deferred) for value in (1.0, float("inf")))
    check.note("one", good)
    check.note("two", bad)
    check.note("three", bad)
    with pytest.raises(UserError, match=r"^two gives"):
        check.verify()
    check.verify()  # nothing is left
    for i in range(POLL - 1):
        check.note(f"part {i}", bad if i == 3 else good)
    with pytest.raises(UserError, match=r"^part 3 gives"):
        check.note("the last", good)
