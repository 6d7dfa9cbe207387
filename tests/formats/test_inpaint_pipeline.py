"""Models with a picture as condition in plain diffusers: the same input, the same prediction."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, StableDiffusionUpscalePipeline
from PIL import Image

from conditioning.derived import SuperResolution
from conditioning.inpainting import Inpainting
from conditioning.text import TextConditioner, TextConfig
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.nets.unet import UNetConfig, build_unet
from tests.world import through

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore::FutureWarning:diffusers"
)
UNET = UNetConfig(widths=(16, 16), attention_levels=(False, True), heads=2, norm_num_groups=4)
SHAPE = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
KINDS = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of an inpainting model and of an upscaler, with random weights; 64 px, latents of 16."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(2)
    vae = AutoencoderKL(**SHAPE, **KINDS, scaling_factor=0.8).eval()
    text = TextConditioner.build(
        TextConfig(width=16, layers=1, heads=2, vocabulary=520, length=8), captions=["a cat", "a dog"] * 3
    ).eval()
    for name, picture, maps in (("inpaint", Inpainting(), 5), ("small", SuperResolution(factor=4), 3)):
        level = picture.takes_level
        unet = build_unet(UNET, sample_size=16, channels=4 + maps, out_channels=4, cross_width=16, level=level).eval()
        schedule = ScheduleConfig(kind="scaled_linear", num_train_timesteps=1000)
        Pipeline(vae, unet, text, schedule, "v", picture=picture).save(root / name)
    return root


def given():
    generator = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (1, 3, 64, 64), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 8:41, 20:50] = True
    return image, mask


def inputs_of(unet):
    seen = []
    unet.register_forward_hook(
        lambda _, arguments, keywords, out: seen.append((arguments, keywords, out)), with_kwargs=True
    )
    return seen


@torch.no_grad()
def test_the_inpainting_pipeline_of_diffusers_opens_it_and_predicts_the_same(folders):
    theirs = StableDiffusionInpaintPipeline.from_pretrained(folders / "inpaint", local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    image, mask = given()
    ours = Pipeline.load(folders / "inpaint")
    masked = (image.float() / 127.5 - 1) * ~mask[:, None]
    # the mean, where the pipeline would draw from the posterior
    latents = theirs.vae.encode(masked).latent_dist.mean * theirs.vae.config.scaling_factor
    noise = torch.randn(1, 4, 16, 16)
    seen, own = inputs_of(theirs.unet), inputs_of(ours.unet)
    theirs(
        prompt="a cat",
        image=image.float() / 255,
        mask_image=mask[:, None].float(),
        masked_image_latents=latents,
        latents=noise.clone(),
        num_inference_steps=2,
        guidance_scale=2.0,
        height=64,
        width=64,
        output_type="latent",
    )
    times = [int(arguments[1]) for arguments, _, _ in seen]
    options = SamplingOptions(steps=2, guidance_scale=2, solver="ddim").resolve(ours)
    options = options.model_copy(update={"timesteps": (times[0], times[1], -1)})
    _ = [*ours.states(["a cat"], [0], options, noise, pictures={"image": image, "mask": mask})]
    (x, *_), keywords, out = seen[0]
    (our_x, *_), our_keywords, our_out = own[0]
    assert x.shape == our_x.shape == (2, 9, 16, 16)
    order = [1, 0]  # diffusers puts the null condition first
    assert torch.allclose(our_x, x[order], atol=1e-5)
    assert torch.allclose(our_keywords["encoder_hidden_states"], keywords["encoder_hidden_states"][order], atol=1e-5)
    assert torch.allclose(our_out[0], out[0][order], atol=1e-5)


@torch.no_grad()
def test_the_upscaling_pipeline_of_diffusers_gives_the_network_the_same(folders):
    """It is built of the parts, and stops at the latents: it sets every autoencoder's scaling factor to 0.08333."""
    from diffusers import DDPMScheduler

    ours = Pipeline.load(folders / "small")
    small = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    low = DDPMScheduler(1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="scaled_linear")
    vae = AutoencoderKL.from_pretrained(folders / "small" / "vae", scaling_factor=0.08333)
    parts = {"vae": vae, "text_encoder": ours.conditioner.text_encoder, "tokenizer": ours.conditioner.tokenizer}
    theirs = StableDiffusionUpscalePipeline(
        **parts, unet=ours.unet, low_res_scheduler=low, scheduler=DDPMScheduler(1000, prediction_type="v_prediction")
    )
    theirs.set_progress_bar_config(disable=True)
    seen, noise = inputs_of(ours.unet), torch.randn(1, 4, 16, 16)
    options = SamplingOptions(steps=1, guidance_scale=1, noise_level=30).resolve(ours)
    _ = [*ours.states(["a cat"], [5], options, noise, pictures={"image": small})]
    (x, *_), keywords, _ = seen.pop()
    theirs(
        "a cat",
        image=small / 255,
        noise_level=30,
        latents=noise,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="latent",
    )
    (their_x, *_), their_keywords, _ = seen.pop()
    assert x.shape == their_x.shape == (1, 7, 16, 16)
    assert torch.equal(keywords["class_labels"], their_keywords["class_labels"])
    clean, alpha = small / 127.5 - 1, low.alphas_cumprod[30]
    for each in (x, their_x):  # but for the draw of the noise, which both add at the same level
        noise_added = (each[:, 4:] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        assert 0.9 < noise_added.std() < 1.1
    assert torch.equal(x[:, :4], their_x[:, :4])


def test_the_index_names_what_diffusers_opens(folders):
    names = {name: json.loads((folders / name / "model_index.json").read_text()) for name in ("inpaint", "small")}
    assert names["inpaint"]["_class_name"] == "StableDiffusionInpaintPipeline"
    assert names["small"]["_class_name"] == "ldm_kit.Pipeline"


def test_an_inpainting_model_of_diffusers_opens_without_our_file(folders, tmp_path):
    theirs = StableDiffusionInpaintPipeline.from_pretrained(folders / "inpaint", local_files_only=True)
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "picture_condition.json").exists()
    assert Pipeline.load(tmp_path / "saved").picture == Inpainting()


def files(folder):
    image, mask = given()
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(folder / "picture.png")
    Image.fromarray(mask[0].numpy()).save(folder / "mask.png")
    Image.new("L", (64, 64)).save(folder / "black.png")
    Image.new("RGB", (60, 64)).save(folder / "wide.png")
    return folder


def test_the_script_inpaints_and_says_from_what(folders, tmp_path):
    files(tmp_path)
    picture, mask = ("--image", tmp_path / "picture.png"), ("--mask", tmp_path / "mask.png")
    run = through(
        "sample", folders / "inpaint", "a cat", "a dog", *picture, *mask, "--steps", 1, "--out", tmp_path / "out"
    )
    assert run.status == 0, run.err
    outputs = sorted(path for path in (tmp_path / "out").glob("*.png") if path.name != "grid.png")
    assert len(outputs) == 2
    image, where = given()
    with Image.open(outputs[0]) as made:
        assert made.text["image"].startswith("picture.png (sha256 ")
        out = torch.tensor(list(made.tobytes())).reshape(64, 64, 3).permute(2, 0, 1)
    kept = ~where[0].expand(3, -1, -1)
    assert torch.equal(out[kept], image[0].long()[kept])


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("inpaint", ["a cat"], "condition.kind inpainting needs --image"),
        ("inpaint", ["a cat", "--image", "picture.png"], "needs --mask"),
        ("inpaint", ["a cat", "--image", "wide.png", "--mask", "mask.png"], "wide.png is 60 x 64 pixels, but this"),
        ("inpaint", ["a cat", "--image", "picture.png", "--mask", "wide.png"], "the mask .*wide.png is 60 x 64 pixels"),
        ("inpaint", ["a cat", "--image", "picture.png", "--mask", "black.png"], "is black all over"),
        ("small", ["a cat", "--image", "picture.png"], "is 64 x 64 pixels, but .* takes 16 x 16"),
        ("small", ["a cat", "--image", "picture.png", "--mask", "mask.png"], "--mask is not for condition.kind super"),
        ("inpaint", ["a cat", "--image", "no.png", "--mask", "mask.png"], "no.png"),
        (
            "inpaint",
            ["a cat", "--image", "picture.png", "--mask", "mask.png", "--noise_level", 5],
            "--noise_level is for",
        ),
        (
            "inpaint",
            ["a cat", "--image", "picture.png", "--mask", "mask.png", "--guidance_scales", "2,3"],
            "--guidance_scales has 2 scales, but this model has 1 condition",
        ),
    ],
)
def test_mistakes_are_one_sentence(folders, tmp_path, model, arguments, message):
    files(tmp_path)
    given_files = [tmp_path / value if str(value).endswith(".png") else value for value in arguments]
    run = through("sample", folders / model, *given_files, "--steps", 1, "--out", tmp_path / "out")
    assert run.status == 2, run.err
    assert len(run.errors) == 1
    import re

    assert re.search(message, run.errors[0]), run.errors[0]
    assert not (tmp_path / "out").exists()
