"""Runs conditioned on an image: training, variations, guidance, plain diffusers, resume, caches, refusals."""

import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from PIL import Image

from conditioning.image import ImageConditioner
from ldm_kit.config import UserError
from ldm_kit.data.batches import spread
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.likelihood import evaluate_likelihood
from ldm_kit.inference.requests import LikelihoodRequest
from ldm_kit.methods import image_embeddings
from ldm_kit.methods.conditions import has_captions
from ldm_kit.methods.latent import Latent
from ldm_kit.methods.train import open_method, train
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.picture_condition import picture_inputs
from ldm_kit.models.pipeline import Pipeline
from tests.conditioning.image_toys import clip_weights, pictures
from tests.training.helpers import STAGE_2, TEXT, picture_folder, play, reset, settings
from tests.world import through

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.usefixtures("own_cache"),
]
UNET = {**STAGE_2["unet"], "dropout": 0.0}
TREE = {**STAGE_2, "unet": UNET, "flip": False, "data": {**STAGE_2["data"], "heldout": 0.3}}
EXACT = ("train.attention=sdpa", "train.channels_last=false")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return [clip_weights(folder, seed)[1] for seed in (0, 1)]


@pytest.fixture(scope="module")
def conditions(names):
    image = {"kind": "image", "model": names[0]}
    return {
        "vector": image,
        "tokens": {**image, "form": "tokens", "width": 12},
        "both": [TEXT["condition"], {**image, "context_tokens": 4}],
        "first": [image, TEXT["condition"]],
        "other": {**image, "model": names[1]},
    }


@pytest.fixture(scope="module")
def models(conditions, data, tmp_path_factory):
    folders = {}
    for name, condition in conditions.items():
        tree = {**TREE, "condition": condition, "train": {"steps": 2, "batch_size": 4}}
        reset()
        folders[name] = train(settings(tree, data, tmp_path_factory.mktemp("runs") / name, *EXACT))
    return folders


def opened(condition, data, *overrides, **more) -> Latent:
    tree = {**TREE, "condition": condition, **more}
    return open_method(settings(tree, data, data.parent / "run", *EXACT, *overrides))  # type: ignore[return-value]


@torch.no_grad()
def loaded(folder) -> Pipeline:
    """A model whose projection and U-Net are not near their first values, where a condition counts little."""
    pipeline, draw = Pipeline.load(folder), torch.Generator().manual_seed(7)
    for module in (pipeline.unet, pipeline.conditioner):
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return pipeline


@pytest.mark.parametrize("name", ["vector", "tokens", "both"])
def test_each_picture_is_trained_under_its_own_embedding(conditions, data, name, monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(image_embeddings, "MOST_SAMPLES", 3)  # so that there are several batches
    method = opened(conditions[name], data)
    reader = method.module.conditioner.image_conditioner
    prefix = "1." if name == "both" else ""
    for batches, split in ((method.batches, method.data.train), (method.heldout, method.data.heldout)):
        batch = batches.__getitems__([(0, 4), (1, 2), (2, 4)])
        expected = reader.encode_pictures(split.pictures([4, 2, 4]))
        torch.testing.assert_close(batch["inputs"][f"{prefix}embedding"], expected["embedding"], atol=1e-3, rtol=1e-3)
        assert batch["inputs"][f"{prefix}given"].all()
    assert not torch.equal(*batch["inputs"][f"{prefix}embedding"][:2])


def test_embeddings_are_computed_once(conditions, data, monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    first = opened(conditions["vector"], data)
    monkeypatch.setattr(ImageConditioner, "embed", None)
    again = opened(conditions["vector"], data)
    assert torch.equal(first.batches.inputs["embedding"], again.batches.inputs["embedding"])
    with pytest.raises(TypeError):
        opened(conditions["tokens"], data)  # another form
    with pytest.raises(TypeError):
        opened(conditions["other"], data)  # another encoder


def test_a_dropped_picture_is_the_null_condition(conditions, data):
    method = opened(conditions["vector"], data, "condition_dropout=0.5")
    batch = method.batches.__getitems__([(position, position % 5) for position in range(64)])
    seen = []
    method.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    _ = next(method.losses(batch, 0))
    given = seen[0]["given"]
    assert 16 < given.sum() < 48
    assert (seen[0]["embedding"][~given] == 0).all()
    assert torch.equal(seen[0]["embedding"][given], batch["inputs"]["embedding"][given])


def test_the_map_is_trained(conditions, data):
    method = opened(conditions["both"], data)
    batch = method.batches.__getitems__([(position, position % 5) for position in range(8)])
    loss = next(method.losses(batch, 0))[1]
    with torch.no_grad():  # the output layers begin at 0, so that at first nothing else has a gradient
        for parameter in method.module.unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    loss = next(method.losses(batch, 0))[1]
    loss.backward()
    projection = method.module.conditioner.image_conditioner.projection
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projection.parameters())
    assert "1.projection" in str([*method.modules["denoiser"].conditioner.state_dict()]).replace("parts.", "")
    assert any("image_projection" in name for name in method.ema_modules)


@pytest.mark.parametrize("name", ["vector", "both"])
def test_a_run_resumes_bit_for_bit(conditions, data, tmp_path, name):
    tree = {**TREE, "condition": conditions[name], "train": {"steps": 4, "batch_size": 4}}
    config = settings(tree, data, tmp_path / "run", "train.checkpoint_every=2")
    whole = play(config)
    shutil.rmtree(tmp_path / "run")
    play(config, until=2)
    assert play(config, resume="latest").weights == whole.weights


@pytest.mark.parametrize("name", ["vector", "tokens", "both"])
def test_variations_follow_the_image_or_its_embedding(models, name):
    pipeline, x = loaded(models[name]), pictures(2)
    prompts = ["a thing of kind 1"] * 2 if name == "both" else ["", ""]
    options = SamplingOptions(steps=2, guidance_scale=2, clip="none")

    def sampled(given):
        return next(pipeline.generate(prompts, [3, 4], options, pictures=given))

    own = sampled({"image": x})
    embedding = pipeline.embed(x)
    torch.testing.assert_close(sampled({"embedding": embedding}).float(), own.float(), atol=1, rtol=0)
    assert (sampled({"image": x.flip(0)}) != own).any(), "another image, other variations"
    one = sampled({"image": x[:1]})
    torch.testing.assert_close(one[0].float(), own[0].float(), atol=1, rtol=0)
    assert (one[1] != own[1]).any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["both", "first"])
def test_guidance_adds_image_and_text_by_scales_of_their_own(models, name):
    pipeline, x = loaded(models[name]), pictures(2)
    prompts, noise, t = ["a thing of kind 1", "a thing of kind 4"], torch.randn(2, 3, 16, 16), torch.tensor([20, 20])
    inputs = picture_inputs(pipeline, {"embedding": pipeline.embed(x)}, [0, 1], (16, 16))
    options = SamplingOptions(steps=2, guidance_scales="2,5", clip="none").resolve(pipeline)
    guided = pipeline.guided_denoiser(prompts, options, inputs)(noise, t, pipeline.condition(prompts, inputs))
    null, text = pipeline.conditioner.null_inputs(2), pipeline.conditioner.prepare(prompts)
    first = text if name == "both" else null | inputs.encoded
    nothing, one, all_of_it = (
        pipeline.denoiser()(noise, t, pipeline.encoded(each)).x_0 for each in (null, first, text | inputs.encoded)
    )
    assert torch.allclose(guided.x_0, nothing + 2 * (one - nothing) + 5 * (all_of_it - one), atol=1e-4)
    assert not torch.allclose(one, all_of_it, atol=1e-3)
    assert not torch.allclose(one, nothing, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vector", "tokens"])
def test_plain_diffusers_opens_the_network(models, name):
    pipeline, x = Pipeline.load(models[name]), pictures(2)
    condition = pipeline.condition(
        ["", ""], picture_inputs(pipeline, {"embedding": pipeline.embed(x)}, [0, 1], (16, 16))
    )
    noise, t = torch.randn(2, 3, 16, 16), torch.tensor([20, 20])
    if name == "vector":
        plain = UNet2DModel.from_pretrained(models[name] / "unet").eval()
        out = plain(noise, t, class_labels=condition.vector).sample
    else:
        plain = UNet2DConditionModel.from_pretrained(models[name] / "unet").eval()
        out = plain(noise, t, encoder_hidden_states=condition.tokens).sample
    torch.testing.assert_close(pipeline.network()(noise, t, condition), out)


def test_a_saved_model_needs_no_weights_of_the_encoders_own(data, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    tree = {**TREE, "condition": {"kind": "image", "model": clip_weights(folder, 5)[1]}, "log": {"tensorboard": False}}
    reset()
    model = train(settings({**tree, "train": {"steps": 1, "batch_size": 4}}, data, tmp_path / "run"))
    expected = Pipeline.load(model).embed(pictures(1))
    shutil.rmtree(folder)
    again = Pipeline.load(model)
    assert torch.equal(again.embed(pictures(1)), expected)
    again.save(tmp_path / "copy")
    assert torch.equal(Pipeline.load(tmp_path / "copy").embed(pictures(1)), expected)


def test_the_grid_shows_the_image_above_its_variation(conditions, data):
    method = opened(conditions["vector"], data, "log.pictures=3", "sample.steps=1")
    shown, given = method.conditions._given(None, 3)[1], method.conditions._given(None, 3)[0]
    assert torch.equal(shown, given["image"])
    assert torch.equal(shown, method.data.heldout.pictures([*spread(len(method.data.heldout), 3)]))
    assert method.samples() is not None
    assert not has_captions(method.config.condition)
    assert method.measured_pictures([0, 1], [5, 6]).shape == (2, 3, 16, 16)


def test_the_script_takes_an_image_of_any_size(models, tmp_path):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "a.png")
    run = through("sample", models["vector"], "--image", tmp_path / "a.png", "--count", 2, "--steps", 1, "--out",
                  tmp_path / "out")  # fmt: skip
    assert run.status == 0, run.err
    assert "2 pictures" in run.out
    with Image.open(next((tmp_path / "out").glob("0*.png"))) as image:
        assert "a.png (sha256" in str(image.info)
    both = through("sample", models["both"], "a thing", "--image", tmp_path / "a.png", "--guidance_scales", "2,3",
                   "--steps", 1, "--out", tmp_path / "both")  # fmt: skip
    assert both.status == 0, both.err


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vector", [], "this model is conditioned on an image; expected --image"),
        ("both", ["a thing"], "this model is conditioned on an image; expected --image"),
        ("both", ["--image", "IMAGE"], "this model samples from prompts or class names"),
        ("vector", ["a cat", "--image", "IMAGE"], "conditioned on an image alone and takes no prompt, got 'a cat'"),
        ("vector", ["--image", "IMAGE", "--mask", "IMAGE"], "--mask is for other models"),
        ("vector", ["--image", "nowhere.png"], "nowhere.png: no such file"),
    ],
)
def test_the_script_says_what_is_wrong(models, tmp_path, name, arguments, message):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    given = [tmp_path / "a.png" if value == "IMAGE" else value for value in arguments]
    wrong = through("sample", models[name], *given, "--steps", 1, "--out", tmp_path / "out")
    assert wrong.status == 2
    assert message in wrong.errors[0]
    assert not (tmp_path / "out").exists()


def test_python_says_what_is_wrong(models):
    pipeline, x = Pipeline.load(models["vector"]), pictures(2)

    def sampled(given):
        return next(pipeline.generate(["", ""], [0, 1], SamplingOptions(steps=1), pictures=given))

    for given, message in (
        (None, "expected --image"),
        ({"image": x, "embedding": torch.zeros(2, 8)}, "got an image and an embedding of one"),
        ({"embedding": torch.zeros(2, 9)}, r"got embeddings of shape \[9\]; expected \[8\]"),
        ({"image": x.float()}, r"got pictures torch.float32 \[2, 3, 16, 16\]; expected uint8"),
        ({"image": torch.cat([x, x])}, "got 4 of --embedding for 2 pictures; expected one, or one for each"),
    ):
        with pytest.raises(UserError, match=message):
            sampled(given)
    with pytest.raises(UserError, match="expected --image"):
        pipeline.condition(["", ""])


def test_what_takes_no_image_says_so(models, conditions, data, tmp_path):
    with pytest.raises(UserError, match="flip must be false"):
        opened(conditions["vector"], data, "flip=true")
    tree = {"method": "consistency", "base": str(models["vector"]), "data": TREE["data"]}
    with pytest.raises(UserError, match="conditioned on a picture; expected captions, classes or nothing"):
        open_method(settings({**tree, "train": {"steps": 1, "batch_size": 2}}, data, tmp_path / "c"))
    prior = {"method": "prior", "model": "x", "data": TREE["data"], "condition": conditions["vector"]}
    with pytest.raises(UserError, match="condition of kind image is for method latent"):
        settings({**prior, "train": {"steps": 1, "batch_size": 2}}, data, tmp_path / "p")
    model, guide = Pipeline.load(models["vector"]), Pipeline.load(models["other"])
    with pytest.raises(UserError, match="the guide model has another image encoder"):
        model.with_guides(autoguidance_model=guide)
    assert model.with_guides(autoguidance_model=Pipeline.load(models["vector"])).autoguidance_model is not None
    with pytest.raises(UserError, match="conditioned on an image and has no prior to sample its embedding from"):
        evaluate(models["vector"].parent, SamplingOptions(steps=1), measures="fd")
    with pytest.raises(UserError, match="conditioned on a picture"):
        evaluate_likelihood(models["vector"].parent, LikelihoodRequest())
