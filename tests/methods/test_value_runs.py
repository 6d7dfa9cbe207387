"""Runs on values with any channels: both stages, samples in the units of the data, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline
from PIL import Image

import ldm_kit
from ldm_kit.config import UserError
from ldm_kit.data.folder import FolderConfig, load_all
from ldm_kit.data.levels import to_unit
from ldm_kit.data.sources import load
from ldm_kit.data.tensors import from_tensor
from ldm_kit.data.value_range import ValueRange, read_range, value_range_of
from ldm_kit.editing.context import EditContext
from ldm_kit.editing.prompt_edits import img2img_picture
from ldm_kit.editing.sample_options import Img2ImgOptions
from ldm_kit.inference import evaluate_autoencoders
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.evaluate_folders import Folder
from ldm_kit.inference.generate import generate_to_folder
from ldm_kit.inference.likelihood import evaluate_likelihood
from ldm_kit.inference.requests import GenerationRequest, LikelihoodRequest, OutputOptions
from ldm_kit.methods import read_run
from ldm_kit.methods.train import open_method
from ldm_kit.metrics.reconstruction import psnr
from ldm_kit.models.cascade import check_stages
from ldm_kit.models.feature_nets import FeatureNet, Features
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.grid import to_image
from ldm_kit.viz.png import read_metadata
from tests.data.value_files import tiff
from tests.training.helpers import DIFFAE, KL, TEXT, play, ranks, settings, tensors_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
CHANNELS, SIDE = 5, 16
VALUES = (f"data.channels={CHANNELS}", "data.range={percentiles: [1, 99]}", "data.heldout=0.2")
SHORT = ("train.steps=4", "train.batch_size=4", "train.checkpoint_every=2")
STAGE_1 = (f"autoencoder.channels={CHANNELS}", f"discriminator.channels={CHANNELS}", *VALUES, *SHORT)
PLAIN = ("condition={kind: none}", "unet.dropout=0", *VALUES, *SHORT)
FULL = ValueRange((0.0,), (65535.0,))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    path, random = tmp_path_factory.mktemp("values"), np.random.default_rng(0)
    y, x = np.mgrid[:20, :24]
    for i in range(20):
        bands = [1000 * k + x * random.integers(20, 90) + y * random.integers(20, 90) for k in range(CHANNELS)]
        tiff(path / f"{i:02d}.tif", np.stack(bands, 2).astype(np.uint16), planar=i % 2, deflate=i % 3 == 0)
    return path


@pytest.fixture(scope="module")
def first_stage(pictures, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "kl"
    ldm_kit.train(settings(KL, pictures, run, *STAGE_1, "log.evaluate_every=4"))
    return run


@pytest.fixture(scope="module")
def models(pictures, first_stage, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, autoencoder in (("latents", first_stage), ("pixels", "null")):
        ldm_kit.train(settings(TEXT, pictures, folder / name, *PLAIN, f"autoencoder={autoencoder}"))
    return {name: folder / name for name in ("latents", "pixels")}


def test_a_first_stage_of_five_channels_opens_in_diffusers(pictures, first_stage):
    vae = AutoencoderKL.from_pretrained(first_stage / "model", local_files_only=True)
    assert (vae.config.in_channels, vae.config.out_channels) == (CHANNELS, CHANNELS)
    assert vae.encode(torch.zeros(1, CHANNELS, SIDE, SIDE)).latent_dist.mean.shape[1] == 2
    data = load(read_run(first_stage / "config.yaml").data)
    values = np.concatenate([data.train.value_range.values(data.train.picture(i)).numpy() for i in range(3)])
    assert values.min() >= 0
    assert read_range(first_stage / "model") == value_range_of(data.train)
    assert len(read_range(first_stage / "model").pairs) == CHANNELS
    assert "value_range.json" in json.loads((first_stage / "model" / "manifest.json").read_text())["files"]
    grids = sorted((first_stage / "pictures").glob("*.png"))
    assert grids
    with Image.open(grids[-1]) as image:
        assert image.mode == "RGB"  # the first three channels


@pytest.mark.parametrize("name", ["latents", "pixels"])
def test_samples_are_written_in_the_units_of_the_data(models, tmp_path, name):
    request, out = GenerationRequest(count=2, seed=3), tmp_path / "out"
    options = SamplingOptions(steps=2, solver="ddim")
    generate_to_folder(models[name], request, options, output=OutputOptions(out=out, device="cpu"))
    pipeline = Pipeline.load(models[name] / "model")
    assert pipeline.value_range == read_range(models[name] / "model")
    made = torch.cat([*pipeline.generate([""] * 2, [3, 4], options)])
    assert made.dtype == torch.uint16
    assert made.shape == (2, CHANNELS, SIDE, SIDE)
    low, high = (torch.tensor(bound).view(-1, 1, 1) for bound in zip(*pipeline.value_range.pairs, strict=True))
    files = sorted((out / "npy").glob("*.npy"))
    assert [file.stem for file in files] == sorted(path.stem for path in out.glob("0*.png"))
    assert not (out / "png16").exists()
    for file, picture in zip(files, made, strict=True):
        array = np.load(file, allow_pickle=False)
        assert array.dtype == np.float32
        expected = low + picture.float() / 65535 * (high - low)
        torch.testing.assert_close(torch.from_numpy(array), expected, rtol=1e-5, atol=1e-2)
        with Image.open(out / f"{file.stem}.png") as preview:
            shown = torch.from_numpy(np.array(preview)).permute(2, 0, 1)
        assert torch.equal(shown, (picture[:3].float() / 257).round().byte())
        assert read_metadata(out / f"{file.stem}.png")["range"] == str(pipeline.value_range)
    generate_to_folder(models[name], request, options, output=OutputOptions(out=out, device="cpu"))
    assert len([*(out / "npy").glob("*.npy")]) == 4  # nothing is overwritten


def test_a_model_of_pixels_opens_in_diffusers(models, tmp_path):
    pipeline = DDIMPipeline.from_pretrained(models["pixels"] / "model", local_files_only=True)
    assert pipeline.unet.config.in_channels == CHANNELS
    one = Pipeline.load(models["pixels"] / "model")
    one.save(tmp_path / "again")
    assert read_range(tmp_path / "again") == one.value_range
    one.value_range = None
    one.save(tmp_path / "again")
    assert read_range(tmp_path / "again") is None


def test_one_channel_has_a_png_of_16_bits_that_reads_back(tmp_path):
    images = torch.linspace(0, 4000, 8 * 64).view(8, 1, 8, 8)
    data = from_tensor(images, value_range=(0, 4000))
    config = {"method": "latent", "run": str(tmp_path / "run"), "condition": {"kind": "none"}}
    config |= {key: TEXT[key] for key in ("unet", "schedule", "sample")}
    config |= {"train": {"steps": 1, "batch_size": 4}, "log": {"tensorboard": False, "pictures": 1}}
    ldm_kit.train(config, data=data)
    out = tmp_path / "out"
    output = OutputOptions(out=out, device="cpu")
    generate_to_folder(tmp_path / "run", GenerationRequest(count=1), SamplingOptions(steps=2), output=output)
    (file,) = (out / "png16").glob("*.png")
    assert [preview.parent for preview in Folder.open(out).files] == [out]
    with Image.open(file) as image:
        assert image.mode.startswith("I;16")
    array = np.load(next((out / "npy").glob("*.npy")))
    section = {"source": "folder", "path": out / "png16", "resolution": 8, "channels": 1, "range": [0, 65535]}
    levels = load_all(FolderConfig.model_validate(section)).picture(0)
    assert np.abs(levels.numpy() / 65535 * 4000 - array).max() < 1e-3


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_resumed_run_is_the_uninterrupted_one(pictures, tmp_path, stage):
    tree, more = (KL, STAGE_1) if stage == "first" else (TEXT, PLAIN)
    runs = [settings(tree, pictures, tmp_path / name, *more, "flip=true") for name in ("whole", "resumed")]
    whole = play(runs[0])
    play(runs[1], until=2)
    resumed = play(runs[1], resume="latest")
    assert resumed.lines == whole.lines[2:]
    assert resumed.weights == whole.weights
    latest = [tmp_path / name / "checkpoint-00000004" for name in ("whole", "resumed")]
    assert tensors_of(latest[0]) == tensors_of(latest[1])


def measured(pictures, folder, cache):
    """A short run whose range is measured by these processes, with the range that each sees."""
    os.environ["LDM_KIT_CACHE"] = str(cache)
    config = settings(TEXT, pictures, folder / "run", *PLAIN, "data.memory_limit=0")
    return play(config), load(config.data).train.value_range


def test_two_processes_measure_one_range(pictures, tmp_path, monkeypatch):
    (first, values), (second, others) = ranks(
        2, measured, pictures, tmp_path, tmp_path / "cache", folder=tmp_path / "results"
    )
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "own"))
    alone, own = measured(pictures, tmp_path / "alone", tmp_path / "own")
    assert values == others == own
    assert first.weights == second.weights
    torch.testing.assert_close(first.numbers("denoiser_loss"), alone.numbers("denoiser_loss"), rtol=1e-5, atol=0)


def test_a_reconstruction_is_judged_in_16_bits(first_stage, monkeypatch):
    seen, encode = [], evaluate_autoencoders.encode
    monkeypatch.setattr(evaluate_autoencoders, "encode", lambda vae, x: seen.append(x) or encode(vae, x))
    result = evaluate(first_stage, measures="psnr", device="cpu", batch_size=4)
    (figure,) = result.figures
    data = load(read_run(first_stage / "config.yaml").data)
    x = data.heldout.pictures(range(len(data.heldout))).float() / 65535
    vae = AutoencoderKL.from_pretrained(first_stage / "model", local_files_only=True).eval()
    with torch.no_grad():
        y = vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample
    expected = psnr(x * 2 - 1, y).mean().item()
    assert figure.value == pytest.approx(expected, abs=1e-3)
    assert torch.equal(torch.cat(seen), to_unit(data.heldout.pictures(range(len(data.heldout)))))


def test_features_are_of_grey_and_rgb_alone(first_stage, models):
    with pytest.raises(UserError, match=r"--measures fd: feature networks see grey and RGB, and these .* 5 channels"):
        evaluate(first_stage, measures="fd", device="cpu")
    with pytest.raises(UserError, match="no measure can be taken: feature networks see grey and RGB"):
        evaluate(models["latents"], device="cpu")


def test_feature_networks_see_values_of_grey_and_rgb_in_8_bits():
    net = FeatureNet("toy", lambda shown: Features(shown.float().flatten(1)), "", "")
    for channels in (1, 3):
        levels = torch.arange(2 * channels * 16).view(2, channels, 4, 4) * 600
        seen = net(levels.to(torch.int32).to(torch.uint16)).features.view(2, 3, 4, 4)
        assert torch.equal(seen, (levels.double() / 257).round().float().expand(-1, 3, -1, -1))
    with pytest.raises(UserError, match="feature networks see grey and RGB, and these pictures have 4 channels"):
        net(torch.zeros(1, 4, 4, 4, dtype=torch.uint16))
    assert net(torch.zeros(1, 4, 4, 4).byte()).features.shape == (1, 48)  # RGBA


def test_a_reference_of_another_range_is_refused(first_stage, models, pictures):
    with pytest.raises(UserError, match=r"what is judged is for values in .*but data\.range is \[0, 1\]"):
        evaluate(first_stage, measures="psnr", device="cpu", data=_split(pictures))
    folder = evaluate(first_stage, measures="psnr", device="cpu", reference=str(pictures), split="all")
    assert folder.figures[0].count == 20


def _split(pictures):
    section = {"path": pictures, "resolution": SIDE, "channels": CHANNELS, "range": [0, 1], "heldout": 0.2}
    return load(FolderConfig.model_validate(section))


REFUSED = {
    "method": (DIFFAE, (*VALUES, *SHORT), "data.range is for methods autoencoder and latent, and diffae trains"),
    "perceptual": (
        KL,
        (*STAGE_1, "perceptual={spec: lpips}"),
        "the perceptual distance is of grey and RGB, and the pictures have 5 channels; expected perceptual.spec: none",
    ),
    "four": (
        KL,
        (*STAGE_1, "data.channels=4", "autoencoder.channels=4", "perceptual={spec: lpips}"),
        "and the pictures have 4 channels",
    ),
    "bound": (TEXT, (*PLAIN, "variance=learned_range"), "loss hybrid has the bound of pixels of 8 bits"),
    "pictures": (TEXT, (*PLAIN, "condition={kind: inpainting}"), "does not go with pictures as condition"),
    "shape": (KL, (*STAGE_1, "autoencoder.channels=3"), "autoencoder.channels is 3, but the pictures have 5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_8_bits_alone_is_refused(pictures, tmp_path, name):
    tree, more, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        settings(tree, pictures, tmp_path / "run", *more)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_measures_of_features_are_refused_before_training(pictures, tmp_path):
    config = settings(KL, pictures, tmp_path / "run", *STAGE_1, "log.measures={names: [fd]}")
    with pytest.raises(UserError, match=r"log\.measures\.names: feature networks see grey and RGB"):
        ldm_kit.train(config)
    assert not (tmp_path / "run").exists()


def test_a_first_stage_of_other_values_is_refused(pictures, first_stage, tmp_path):
    more = (*PLAIN, f"autoencoder={first_stage}")
    config = settings(TEXT, pictures, tmp_path / "run", *more, "data.range=[0, 9000]")
    with pytest.raises(UserError, match=r"the autoencoder in .* is for values in .*, but data\.range is \[0, 9000\]"):
        open_method(config, None, torch.device("cpu"))
    with pytest.raises(UserError, match=r"channels 5 needs data\.range"):
        settings(TEXT, pictures, tmp_path / "run", *more, "data.range=null")


def test_commands_of_8_bits_say_so(pictures, models, tmp_path):
    context = EditContext(model=models["latents"], out=tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match=r"is of values in .*, which only sample\.py writes; expected another"):
        img2img_picture(context, Img2ImgOptions(image=pictures / "00.tif"))
    with pytest.raises(UserError, match="is trained on values of a range, and bits/dim are of pixels of 8 bits"):
        evaluate_likelihood(models["pixels"], LikelihoodRequest(), "cpu")
    pipelines = [Pipeline.load(models[name] / "model") for name in ("pixels", "latents")]
    with pytest.raises(UserError, match="stage 1 makes values in"):
        check_stages(pipelines)
    other = Pipeline.load(models["pixels"] / "model")
    other.value_range = FULL
    with pytest.raises(UserError, match="the model is for values in"):
        pipelines[0].with_guides(autoguidance_model=other)


@pytest.mark.parametrize(("channels", "mode", "shown"), [(1, "L", 1), (2, "L", 1), (3, "RGB", 3), (4, "RGB", 3)])
def test_previews_show_channels_by_one_rule(channels, mode, shown):
    levels = torch.arange(channels * 4).view(channels, 2, 2) * 3000
    image = to_image(levels.to(torch.int32).to(torch.uint16))
    assert image.mode == mode
    pixels = torch.from_numpy(np.array(image)).view(2, 2, shown).permute(2, 0, 1)
    assert torch.equal(pixels, (levels[:shown].double() / 65535 * 255).round().byte())
