"""Models on CUDA against the same models on the CPU: sampling, saving, likelihood, inversion, encoding, editing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from autoencoder.base import encode
from ldm_kit.data.images import to_unit
from ldm_kit.data.latents import cached, fingerprint
from ldm_kit.data.sources import load
from ldm_kit.diffusion import likelihood, rng
from ldm_kit.diffusion.float64 import exact
from ldm_kit.editing.inversion import encode_image, invert_latents
from ldm_kit.methods import check_run
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from tests.editing.models import semantic
from tests.gpu.devices import CPU, needs_cuda, rehearsed
from tests.world import World, through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PROMPTS: dict[str, list[str | int]] = {
    "text": ["red square", "blue square", "", "green square"],
    "class": ["red", "blue", "green", "red"],
    "plain_flow": [""] * 4,
    "plain_vq": [""] * 4,
    "class_pixels": ["red", "blue", "green", "red"],
    "learned": [""] * 4,
}
LEVELS = 4  # of 255, by which a picture may differ where it differs most; the mean by a twentieth of it


def assert_alike(found: Tensor, expected: Tensor, levels: float = LEVELS) -> None:
    assert found.dtype == expected.dtype == torch.uint8
    assert found.device.type == "cpu"
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= levels
    assert difference.float().mean() <= levels / 20


def sampled(pipeline: Pipeline, name: str, **options) -> Tensor:
    given = SamplingOptions(steps=4, **options)
    return torch.cat([*pipeline.generate(PROMPTS[name], [1, 2, 3, 4], given, 3)])


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "ddpm"])
@pytest.mark.parametrize("name", PROMPTS)
def test_pictures_are_those_of_the_cpu(name, solver, device, world: World):
    folder = world.model(name) / "model"
    if name == "plain_flow" and solver == "ddpm":
        pytest.skip("ddpm is for variance-preserving schedules")
    scale = {} if PROMPTS[name][0] == "" else {"guidance_scale": 2.0}
    found, expected = (sampled(Pipeline.load(folder, at), name, solver=solver, **scale) for at in (device, CPU))
    assert_alike(found, expected)
    assert len(torch.unique(expected)) > 20, "a picture of one colour shows nothing"


@rehearsed
def test_class_pictures_are_those_of_the_cpu(device, world: World):
    folder = world.model("class_pixels") / "model"
    found, expected = (sampled(Pipeline.load(folder, at), "class_pixels") for at in (device, CPU))
    assert_alike(found, expected)


@rehearsed
def test_noise_and_times_do_not_depend_on_the_device(device):
    position = torch.arange(100, 4196)
    integers = rng.bits(3, "noise", position, 5)
    assert torch.equal(rng.bits(3, "noise", position.to(device), 5).cpu(), integers)
    uniform = rng.uniform(3, "time", position)
    assert torch.equal(rng.uniform(3, "time", exact(position.to(device))).cpu(), uniform)
    normal = rng.normal(3, "noise", position, (3, 5))
    torch.testing.assert_close(rng.normal(3, "noise", position.to(device), (3, 5)).cpu(), normal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["text", "class_pixels"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_pictures(name, dtype, device, world: World):
    if dtype == torch.float16:
        needs_cuda(device)
    folder = world.model(name) / "model"
    found, expected = sampled(Pipeline.load(folder, device, dtype), name), sampled(Pipeline.load(folder), name)
    assert (found.float() - expected.float()).abs().mean() < 6


@pytest.mark.parametrize("name", ["text", "plain_vq", "learned"])
def test_what_cuda_saves_the_cpu_opens(name, device, world: World, tmp_path):
    here = Pipeline.load(world.model(name) / "model", device)
    here.save(tmp_path / "saved")
    there = Pipeline.load(tmp_path / "saved")
    assert there.device.type == "cpu"
    for key, value in here.unet.state_dict().items():
        assert torch.equal(value.cpu(), there.unet.state_dict()[key])
    assert_alike(sampled(here, name), sampled(there, name))
    assert_alike(sampled(there.to(device), name), sampled(here.to(CPU), name))


def heldout(world: World, count: int = 4) -> Tensor:
    config = check_run(world.ldm("pixels", "none"), "the test's config")
    return load(config.data).train.pictures(range(count))


@pytest.mark.parametrize("name", ["learned", "class_pixels"])
def test_likelihood_is_that_of_the_cpu(name, device, world: World):
    """The terms at a few times; the noise is addressed by picture and time."""
    x = to_unit(heldout(world))

    def measured(at: torch.device) -> Tensor:
        pipeline = Pipeline.load(world.model(name) / "model", at)
        x_0 = x.to(at)
        indices = torch.arange(len(x), device=at)
        cond = pipeline.condition(["red"] * len(x) if name == "class_pixels" else [""] * len(x))
        times = iter([torch.full((len(x),), t, device=at) for t in (0, 1, 200, 900)])

        def noise(t: Tensor) -> Tensor:
            return rng.normal(0, "nll", indices * 1000 + t, x_0.shape[1:])

        terms = likelihood.nll(pipeline.denoiser(), x_0, noise, times, cond, variance=pipeline.variance)
        with torch.no_grad():
            return torch.stack([likelihood.prior(x_0, pipeline.schedule).cpu().double(), *bits(terms)])

    found, expected = measured(device), measured(CPU)
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def bits(terms) -> list[Tensor]:
    return [term.bits.cpu().double() for term in terms]


@pytest.mark.parametrize("name", ["text", "pixels"])
def test_inversion_is_that_of_the_cpu(name, device, world: World):
    pictures = heldout(world)

    def inverted(at: torch.device) -> tuple[Tensor, Tensor]:
        pipeline = Pipeline.load(world.model(name) / "model", at)
        x_0, cond = encode_image(pipeline, pictures), pipeline.condition([""] * len(pictures))
        *_, last = invert_latents(pipeline.denoiser(), x_0, [-1, 200, 500, 800], cond, refine=1)
        return x_0.cpu(), last.x.cpu()

    for found, expected in zip(inverted(device), inverted(CPU), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_cached_latents_are_those_of_the_cpu(kind, device, world: World, tmp_path):
    """A cache that one device filled is read on the other: its key has no device."""
    from ldm_kit.models.manifest import open_first_stage

    pictures = load(check_run(world.ldm("pixels", "none"), "the test's config").data).train
    keys, filled = [], []
    for at in (device, CPU):
        vae = open_first_stage(str(world.model(kind))).to(at)
        key = fingerprint(vae, pictures, True)
        keys.append(key)
        folder = tmp_path / f"{len(keys)}"

        def moments(x: Tensor, vae=vae, at=at) -> tuple[Tensor, Tensor]:
            return encode(vae, x.to(at))

        filled.append(cached(folder, pictures, moments, key, flip=True, batch=5))
    assert keys[0] == keys[1]
    for name in ("mean", "logvar"):
        found, expected = (getattr(latents, name)[torch.arange(len(pictures))].float() for latents in filled)
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)  # they are stored in float16
    again = cached(tmp_path / "1", pictures, lambda x: pytest.fail("encoded again"), keys[1], flip=True)
    assert torch.equal(again.mean[torch.arange(3)], filled[0].mean[torch.arange(3)])


def test_a_semantic_model_is_that_of_the_cpu(device, world: World, tmp_path):
    folder, pictures = semantic(tmp_path / "model"), heldout(world)
    results = []
    for at in (device, CPU):
        model = SemanticModel.load(folder, at)
        z = model.encode(pictures)
        noise = model.invert(pictures, z, steps=5, batch=3)
        assert z.device.type == noise.device.type == "cpu"
        results.append((z, noise, model.decode(z, noise, steps=5, batch=3)))
    (z, noise, decoded), (expected_z, expected_noise, expected_pictures) = results
    torch.testing.assert_close(z, expected_z, rtol=1e-3, atol=1e-4)
    assert float((noise - expected_noise).norm() / expected_noise.norm()) < 1e-3
    assert_alike(decoded, expected_pictures)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """A run's folder with a semantic model and a table of labels for the world's pictures."""
    run = tmp_path_factory.mktemp("edited")
    semantic(run / "model")
    rows = ["file_name,red", *(f"{i:02d}.png,{int(i % 3 == 0)}" for i in range(24))]
    (run / "labels.csv").write_text("\n".join(rows))
    return run


def test_edit_commands_run_on_the_device(device, edited: Path, world: World, tmp_path):
    """Learn, change, interpolate, encode, decode: pictures as on the CPU, from the same command lines."""
    images = ("--image", world.pictures / "00.png", "--image", world.pictures / "01.png")
    quick = ("--steps", 2, "--invert_steps", 3, "--device", device.type)

    def done(*arguments: object) -> str:
        outcome = through("edit", *arguments)
        assert outcome.status == 0, outcome.err
        return outcome.out

    model = ("--model", edited)
    at = ("--device", device.type)
    said = done("learn", *model, "--images", world.pictures, "--labels", edited / "labels.csv", *at)
    assert "red: AUROC" in said
    done("change", *model, *images[:2], "--attribute", "red", "--strength", "0.3", *quick, "--out", tmp_path / "here")
    cpu = (*quick[:-1], "cpu")
    done("change", *model, *images[:2], "--attribute", "red", "--strength", "0.3", *cpu, "--out", tmp_path / "there")
    names = sorted(path.name for path in (tmp_path / "there").glob("0*.png"))
    assert names == sorted(path.name for path in (tmp_path / "here").glob("0*.png"))
    assert len(names) == 3
    for name in names:
        assert_alike(picture(tmp_path / "here" / name), picture(tmp_path / "there" / name))
    done("interpolate", *model, *images, "--count", 3, *quick, "--out", tmp_path / "between")
    file = tmp_path / "codes.safetensors"
    done("encode", *model, "--images", world.pictures, "--out", file, "--invert_steps", 2, *at)
    done("decode", *model, "--codes", file, "--steps", 2, "--out", tmp_path / "decoded", *at)
    assert len([*(tmp_path / "decoded").glob("0*.png")]) == 24


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("reprompt", ("--source", "red square", "--prompt", "blue square")),
        ("img2img", ("--prompt", "red square", "--strength", 0.5, "--count", 2)),
        ("inpaint", ("--prompt", "red square")),
    ],
)
def test_prompt_edits_are_those_of_the_cpu(command, more, device, world: World, tmp_path):
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 7, 16))
    mask.save(tmp_path / "mask.png")
    masked = ("--mask", tmp_path / "mask.png") if command == "inpaint" else ()
    given = (command, "--model", world.model("text"), "--image", world.pictures / "00.png", *more, *masked)
    for at in {device.type, "cpu"}:
        outcome = through("edit", *given, "--steps", 3, "--device", at, "--out", tmp_path / at)
        assert outcome.status == 0, outcome.err
    names = sorted(path.name for path in (tmp_path / "cpu").glob("0*.png"))
    assert len(names) > 1
    for name in names:
        assert_alike(picture(tmp_path / device.type / name), picture(tmp_path / "cpu" / name), 2 * LEVELS)


def picture(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy())


def test_the_script_samples_on_the_device(device, world: World, tmp_path):
    given = (world.model("text"), "red square", "--steps", 2, "--count", 3)
    for at in {device.type, "cpu"}:
        outcome = through("sample", *given, "--device", at, "--out", tmp_path / at)
        assert outcome.status == 0, outcome.err
    files = sorted(path.name for path in (tmp_path / "cpu").glob("0*.png"))
    assert len(files) == 3
    for name in files:
        assert_alike(picture(tmp_path / device.type / name), picture(tmp_path / "cpu" / name))
