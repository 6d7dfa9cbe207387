"""Height and width of samples: the pictures of diffusers at any size, and one sentence where a size is impossible."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from conditioning import NoCondition
from conditioning.derived import Grey, SuperResolution
from conditioning.inpainting import Inpainting
from ldm_kit.config import UserError
from ldm_kit.data.image_files import load_image
from ldm_kit.diffusion.schedule import ScheduleConfig
from ldm_kit.inference.evaluate_subjects import open_subject
from ldm_kit.inference.given_pictures import read_given
from ldm_kit.inference.requests import EvaluationRequest, GenerationRequest
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.png import read_metadata
from tests.world import through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
SEEDS, PROMPT = [3, 8], "red square 1"
SIZES = [(16, 24), (40, 16), (24, 24)]  # multiples of 8, as StableDiffusionPipeline asks


def sampled(folder: Path, size: tuple[int, int], prompts: list[str]) -> np.ndarray:
    """Pictures of ldm_kit, [N, h, w, 3] in grey levels."""
    options = SamplingOptions(steps=4, solver="ddim", guidance_scale=1.0, height=size[0], width=size[1])
    (pictures,) = Pipeline.load(folder).generate(prompts, SEEDS, options)
    return pictures.permute(0, 2, 3, 1).double().numpy()


def of_diffusers(pipeline, **call) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(**call, generator=generators, num_inference_steps=4, output_type="np").images
    return np.round(np.asarray(images, dtype=np.float64) * 255)


@pytest.mark.parametrize("size", SIZES)
def test_latents_of_any_size_are_those_of_stable_diffusion(world, size):
    folder = world.model("text") / "model"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    height, width = size
    prompts = [PROMPT, "blue square 2"]
    expected = of_diffusers(pipeline, prompt=prompts, height=height, width=width, guidance_scale=1.0)
    pictures = sampled(folder, size, prompts)
    assert pictures.shape == expected.shape == (2, *size, 3)
    assert np.abs(pictures - expected).max() <= 1
    assert pictures.std() > 5, "an even picture would prove nothing"


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_any_size_are_those_of_ddim(world, size):
    folder = world.model("pixels") / "model"
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    pipeline.unet.register_to_config(sample_size=size)
    expected = of_diffusers(pipeline, batch_size=2, use_clipped_model_output=True)
    prompts = [""] * 2 if Pipeline.load(folder).conditioner.null is None else [PROMPT] * 2
    pictures = sampled(folder, size, prompts)
    assert pictures.shape == (2, *size, 3)
    assert np.abs(pictures - expected).max() <= 1


def test_one_side_alone_leaves_the_other_as_trained(world):
    pipeline = Pipeline.load(world.model("text") / "model")
    resolved = SamplingOptions(width=32, steps=1).resolve(pipeline)
    assert (resolved.height, resolved.width) == (16, 32)
    assert next(pipeline.generate([PROMPT], [0], resolved)).shape == (1, 3, 16, 32)
    trained = SamplingOptions(steps=1).resolve(pipeline)
    assert (trained.height, trained.width) == (None, None)
    given = SamplingOptions(steps=1, height=16, width=16)
    assert torch.equal(*(next(pipeline.generate([PROMPT], [0], each)) for each in (trained, given)))


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("text", {"width": 30}, r"--width is 30, but this model's autoencoder reduces by 2 and its U-Net reduces by 2"),
        ("text", {"height": 22}, "--height is 22, .* expected a multiple of 4 pixels"),
        ("pixels", {"height": 17}, "--height is 17, but this model's U-Net reduces by 2; expected a multiple of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(world, model, given, message):
    pipeline = Pipeline.load(world.model(model) / "model")
    with pytest.raises(UserError, match=message) as caught:
        SamplingOptions(steps=1, **given).resolve(pipeline)
    assert "\n" not in str(caught.value)


def test_a_classifier_guides_the_trained_size_alone(world):
    pipeline = Pipeline.load(world.model("class_pixels") / "model")
    guided = pipeline.with_guides(NoisyClassifier.load(world.model("pixel_classifier")))
    with pytest.raises(UserError, match=r"--classifier is for pictures of 16 x 16 pixels, .* ask for 32 x 16"):
        SamplingOptions(steps=1, width=32).resolve(guided)
    assert SamplingOptions(steps=1, width=16).resolve(guided).width == 16


def test_a_guide_with_more_levels_needs_greater_steps(world):
    pipeline = Pipeline.load(world.model("pixels") / "model")
    guide = Pipeline.load(world.model("pixels") / "model")
    guide.unet.register_to_config(block_out_channels=(8, 8, 8))
    with pytest.raises(UserError, match=r"--width is 18, .* expected a multiple of 4"):
        SamplingOptions(steps=1, width=18).resolve(pipeline.with_guides(autoguidance_model=guide))


def untrained(condition) -> Pipeline:
    """A model of pixels with a picture condition, of random weights."""
    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "out_channels": 3}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    level = {"class_embed_type": "timestep"} if condition.takes_level else {}
    channels = 3 + condition.channels(3, None)
    unet = diffusers.UNet2DModel(sample_size=16, in_channels=channels, **shape, **blocks, **level)
    return Pipeline(None, unet, NoCondition(), ScheduleConfig(), "v", picture=condition)


def test_pictures_that_condition_have_the_size_of_the_samples(world):
    picture = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    mask = torch.zeros(1, 16, 24, dtype=torch.bool)
    mask[:, :, 12:] = True
    options = SamplingOptions(steps=1, height=16, width=24)
    given = {"image": picture, "mask": mask}
    samples = next(untrained(Inpainting()).generate([""] * 2, SEEDS, options, pictures=given))
    assert torch.equal(samples[..., :12], picture[..., :12].expand(2, -1, -1, -1))
    assert (samples[..., 12:] != picture[..., 12:]).any()
    small = {"image": picture[..., :4, :6]}
    assert next(untrained(SuperResolution(factor=4)).generate([""], [0], options, pictures=small)).shape[2:] == (16, 24)
    with pytest.raises(UserError, match=r"--image is 16 x 16 pixels .* samples 24 x 16 pixels and takes 24 x 16"):
        next(untrained(Grey()).generate([""], [0], options, pictures={"image": picture[..., :16]}))


def test_the_files_that_condition_have_the_size_of_the_samples(tmp_path):
    model = untrained(Inpainting())
    for name, size in {"a.png": (24, 16), "m.png": (24, 16), "b.png": (16, 24)}.items():
        Image.new("RGB", size, "white").save(tmp_path / name)
    request = GenerationRequest(image=tmp_path / "a.png", mask=tmp_path / "m.png")
    given = read_given(request, model, (16, 24))
    assert (given["image"].shape, given["mask"].shape) == ((1, 3, 16, 24), (1, 16, 24))
    for wrong in ({"image": tmp_path / "b.png"}, {"mask": tmp_path / "b.png"}):
        with pytest.raises(UserError, match=r"b\.png is 16 x 24 pixels.* 24 x 16"):
            read_given(request.model_copy(update=wrong), model, (16, 24))


def test_measures_compare_squares(world):
    for size in ({"width": 32}, {"height": 32}):
        with pytest.raises(UserError, match=r"--height and --width ask for .* are square; expected equal ones"):
            open_subject(world.model("text"), EvaluationRequest(), SamplingOptions(steps=1, **size), None)
    subject = open_subject(world.model("text"), EvaluationRequest(), SamplingOptions(height=32, width=32), None)
    assert subject.shape == (3, 32)


def test_the_command_writes_pictures_a_grid_and_the_size(world, tmp_path):
    given = ("sample", world.model("text"), PROMPT, "--count", 2, "--steps", 1, "--out", tmp_path)
    outcome = through(*given, "--height", 28, "--width", 16)
    assert outcome.status == 0, outcome.err
    (path, *_), grid = sorted(tmp_path.glob("0*.png")), tmp_path / "grid.png"
    with Image.open(path) as picture, Image.open(grid) as sheet:
        assert picture.size == (16, 28)
        assert sheet.height > 28 * 96 // 16
    assert '"height": 28, "width": 16' in read_metadata(path)["settings"]
    refused = through(*given, "--height", 27)
    assert refused.status == 2
    assert "--height is 27" in refused.err


@pytest.mark.parametrize("command", ["img2img", "inpaint", "reprompt"])
def test_edits_take_a_picture_at_any_size(world, tmp_path, command):
    gradient = np.linspace(0, 255, 40 * 70).reshape(40, 70, 1).repeat(3, 2).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "a.png")
    mask = np.zeros((40, 70), np.uint8)
    mask[:, 35:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    given = ("edit", command, "--model", world.model("text"), "--image", tmp_path / "a.png", "--prompt", PROMPT)
    given += ("--mask", tmp_path / "m.png") if command == "inpaint" else ()
    given += ("--source", PROMPT) if command == "reprompt" else ()
    outcome = through(*given, "--steps", 2, "--out", tmp_path / "out", "--height", 16, "--width", 28)
    assert outcome.status == 0, outcome.err
    *_, path = sorted((tmp_path / "out").glob("0*.png"))
    pixels = load_image(path, (16, 28))
    with Image.open(path) as picture:
        assert picture.size == (28, 16)
    if command == "inpaint":
        assert torch.equal(pixels[:, :, :14], load_image(tmp_path / "a.png", (16, 28))[:, :, :14])
    assert "16" in str(read_metadata(path))
    refused = through(*given, "--steps", 2, "--out", tmp_path / "no", "--height", 15)
    assert refused.status == 2
    assert "--height is 15" in refused.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["height", "width"])
def test_a_side_has_a_limit(name):
    with pytest.raises(ValidationError, match="8192"):
        SamplingOptions(**{name: 8193})
