"""unCLIP: a prior over the image embeddings of a decoder, sampling from prompts alone, and moved embeddings."""

import json
import shutil

import open_clip
import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.editing.embedding_edits import turn_towards
from ldm_kit.methods.prior import Prior
from ldm_kit.methods.prior_source import ImageSource, _decoder
from ldm_kit.methods.train import open_method, train
from ldm_kit.models.codes import CodeStatistics
from ldm_kit.models.folder import ModelFolder
from ldm_kit.models.image_prior import decoder_prompts
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.png import read_metadata
from tests.conditioning.image_toys import clip_weights, pictures
from tests.training.helpers import STAGE_2, TEXT, picture_folder, play, reset, settings
from tests.world import through

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on numpy 2
    pytest.mark.usefixtures("own_cache"),
]
UNET = {**STAGE_2["unet"], "dropout": 0.0}
DATA = {**STAGE_2["data"], "heldout": 0.3}
TREE = {**STAGE_2, "unet": UNET, "flip": False, "data": DATA}
TEXT_ALONE = TEXT["condition"]
PRIOR = {
    "method": "prior",
    "data": DATA,
    "net": {"hidden": 16, "layers": 3},
    "condition": TEXT_ALONE,
    "train": {"steps": 2, "batch_size": 4},
    "sample": {"steps": 2, "decode_steps": 2, "guidance_scale": 2.0},
    "log": {"tensorboard": False, "pictures": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return [clip_weights(folder, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def models(clip, data, tmp_path_factory):
    """Decoders, and two of them with priors."""
    image = {"kind": "image", "model": clip[0][1]}
    conditions = {
        "image": image,
        "other": {**image, "model": clip[1][1]},
        "both": [TEXT_ALONE, {**image, "context_tokens": 2}],
        "tokens": {**image, "form": "tokens", "width": 8},
        "text": TEXT_ALONE,
    }
    folders, root = {}, tmp_path_factory.mktemp("runs")

    def run(name, tree):
        reset()
        folders[name] = train(settings({**tree, "train": {"steps": 2, "batch_size": 4}}, data, root / name))

    for name, condition in conditions.items():
        run(name, {**TREE, "condition": condition})
    run("prior", {**PRIOR, "model": str(folders["image"])})
    run("prior_both", {**PRIOR, "model": str(folders["both"])})
    run("prior_plain", {**PRIOR, "model": str(folders["image"]), "condition": {"kind": "none"}, "sample": {"steps": 2}})
    return folders


def opened(model, data, *overrides, **more) -> Prior:
    tree = {**PRIOR, "model": str(model), **more}
    return open_method(settings(tree, data, data.parent / "run", *overrides))  # type: ignore[return-value]


@torch.no_grad()
def stirred(folder) -> Pipeline:
    pipeline, draw = Pipeline.load(folder), torch.Generator().manual_seed(7)
    for module in (pipeline.unet, pipeline.conditioner, pipeline.prior.prior.mlp, pipeline.prior.prior.conditioner):
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return pipeline


def test_the_prior_is_trained_on_normalised_embeddings(models, data):
    method, pipeline = opened(models["image"], data), Pipeline.load(models["image"])
    whole = method.data.train
    z = pipeline.embed(whole.pictures(range(len(whole))))
    torch.testing.assert_close(method.mean, z.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.batches.codes, (z - z.mean(0)) / z.std(0, correction=0), atol=1e-4, rtol=1e-4)
    batch = method.batches.__getitems__([(3, 7), (9, 0)])
    assert torch.equal(batch["z"], method.batches.codes[[7, 0]])
    captions = [method.conditions.train[i] for i in (7, 0)]
    assert torch.equal(batch["inputs"]["ids"], method.module.conditioner.prepare(captions)["ids"])
    held = method.heldout.codes
    expected = (pipeline.embed(method.data.heldout.pictures(range(len(held)))) - method.mean) / method.std
    torch.testing.assert_close(held, expected, atol=1e-4, rtol=1e-4)


def test_embeddings_are_normalised_by_the_statistics_of_their_source(models, data, monkeypatch):
    own = CodeStatistics(torch.full((8,), 0.5), torch.full((8,), 2.0))
    monkeypatch.setattr(ImageSource, "statistics", lambda *_: own)
    method = opened(models["image"], data)
    z = Pipeline.load(models["image"]).embed(method.data.train.pictures(range(len(method.data.train))))
    torch.testing.assert_close(method.batches.codes, (z - 0.5) / 2, atol=1e-4, rtol=1e-4)
    assert torch.equal(method.std, own.std)


def test_a_network_too_narrow_for_the_noise_is_warned_of(models, data):
    warning = "warning: net.hidden is 7, but a code has 8 numbers"
    narrow = {"net": {"hidden": 7, "layers": 3}}
    assert opened(models["image"], data, **narrow).prediction_type == "x0", "unCLIP's default"
    assert "net.hidden" not in opened(models["image"], data, **narrow).describe()
    assert warning in opened(models["image"], data, "prediction_type=eps", **narrow).describe()
    assert "net.hidden" not in opened(models["image"], data, "prediction_type=eps").describe()


def test_a_run_depends_on_its_decoder_wherever_it_lies(models, data, tmp_path):
    first = opened(models["image"], data).dependencies
    shutil.copytree(models["image"], tmp_path / "copy")
    assert opened(tmp_path / "copy", data).dependencies == first
    pipeline = Pipeline.load(models["image"])
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(1)
    pipeline.save(tmp_path / "changed")
    assert opened(tmp_path / "changed", data).dependencies["model"] != first["model"]
    assert opened(models["other"], data).dependencies["model"] != first["model"]


def test_a_prior_resumes_bit_for_bit(models, data, tmp_path):
    tree = {**PRIOR, "model": str(models["image"]), "train": {"steps": 4, "batch_size": 4}}
    config = settings(tree, data, tmp_path / "run", "train.checkpoint_every=2")
    whole = play(config)
    shutil.rmtree(tmp_path / "run")
    play(config, until=2)
    assert play(config, resume="latest").weights == whole.weights


@torch.no_grad()
def test_prompts_alone_are_an_embedding_of_the_prior_and_a_picture_of_it(models):
    pipeline = stirred(models["prior"])
    options = SamplingOptions(steps=2, guidance_scale=2, clip="none", prior_steps=3, prior_guidance_scale=3)
    prompts, seeds = ["a thing of kind 1", "a thing of kind 4"], [5, 6]
    made = next(pipeline.generate(prompts, seeds, options))
    z = pipeline.prior.prior.sample(seeds, 3, prompts, guidance_scale=3)
    raw = pipeline.prior.statistics.denormalise(z)
    embedding = raw / raw.square().mean(1, keepdim=True).sqrt()
    sampled = pipeline.prior.sample(prompts, seeds, pipeline.saved, steps=3, guidance_scale=3)
    torch.testing.assert_close(sampled, embedding)
    decoding = SamplingOptions(steps=2, guidance_scale=2, clip="none")
    expected = next(pipeline.generate(["", ""], seeds, decoding, pictures={"embedding": embedding}))
    assert torch.equal(made, expected)
    unguided = next(pipeline.generate(prompts, seeds, options.model_copy(update={"prior_guidance_scale": 1.0})))
    assert not torch.equal(made, unguided)
    own = pipeline.prior.sample(prompts, seeds, pipeline.saved)
    mixed = pipeline.prior.sample(["", prompts[1]], seeds, pipeline.saved)
    torch.testing.assert_close(mixed[1:], own[1:])  # guided although another prompt is empty
    assert not torch.allclose(mixed[:1], own[:1])
    torch.testing.assert_close(own, pipeline.prior.sample(prompts, seeds, pipeline.saved, steps=2, guidance_scale=2))
    assert torch.equal(made, next(pipeline.generate(prompts, seeds, options, pictures={}))), "no picture is given"
    alone = next(pipeline.generate(prompts[1:], seeds[1:], options))
    torch.testing.assert_close(alone.float(), made[1:].float(), atol=1, rtol=0)


@torch.no_grad()
def test_a_decoder_that_takes_text_gets_the_prompt_too(models):
    pipeline = stirred(models["prior_both"])
    options = SamplingOptions(steps=2, guidance_scale=2, clip="none")
    prompt, seeds = ["a thing of kind 1"], [5]
    embedding = pipeline.prior.sample(prompt, seeds, pipeline.saved)
    made = next(pipeline.generate(prompt, seeds, options))
    assert torch.equal(made, next(pipeline.generate(prompt, seeds, options, pictures={"embedding": embedding})))
    assert not torch.equal(made, next(pipeline.generate([""], seeds, options, pictures={"embedding": embedding})))
    assert decoder_prompts(pipeline, prompt) == prompt


def test_the_folder_holds_decoder_and_prior(models, tmp_path):
    pipeline = Pipeline.load(models["prior"])
    options = SamplingOptions(steps=2)
    expected = next(pipeline.generate(["a thing of kind 1"], [3], options))
    pipeline.save(tmp_path / "copy")
    again = Pipeline.load(tmp_path / "copy")
    assert torch.equal(next(again.generate(["a thing of kind 1"], [3], options)), expected)
    assert again.saved.sections["prior"]["guidance_scale"] == 2.0
    assert again.prior.prior.prediction_type == pipeline.prior.prior.prediction_type == "x0"
    assert Pipeline.load(models["image"]).prior is None
    moved = again.prior.to("meta").prior
    assert {value.device.type for net in (moved.mlp, moved.conditioner) for value in net.parameters()} == {"meta"}
    x = pictures(1)
    before, now = (next(Pipeline.load(models[name]).generate([""], [0], options, pictures={"image": x}))
                   for name in ("image", "prior"))  # fmt: skip
    assert torch.equal(before, now), "an image is varied as by the decoder alone"


def test_a_prior_of_another_decoder_is_refused(models, tmp_path):
    folder = shutil.copytree(models["other"], tmp_path / "mixed")
    shutil.copytree(models["prior"] / "prior", folder / "prior")
    index = json.loads((folder / "model_index.json").read_text())
    index["prior"] = ["ldm_kit.models.prior", "CodePrior"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="samples embeddings of another image encoder than that of the decoder"):
        Pipeline.load(folder)
    (folder / "prior" / "embedding.json").unlink()
    with pytest.raises(UserError, match=r"embedding\.json is missing or no JSON object"):
        Pipeline.load(folder)


def test_grids_and_measures_are_sampled_by_the_prior(models, data):
    method = opened(models["image"], data, sample={**PRIOR["sample"], "steps": 3})
    assert method.samples() is not None
    made = method.measured_pictures([0, 1], [5, 6])
    captions = [method.conditions.heldout[i] for i in (0, 1)]
    options = SamplingOptions(steps=2, prior_steps=3)
    assert torch.equal(made, torch.cat([*method.model().generate(captions, [5, 6], options)]))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("text", {}, "has no semantic codes; expected"),
        ("tokens", {}, "conditioned on the tokens of an image, and a prior samples vectors"),
        ("image", {"sample": {"stop": 0.3, "steps": 2}}, "sample.stop is for a PDAE"),
        ("image", {"overrides": ["data.resolution=8"]}, "data.resolution is 8, with 3 channels, but"),
        ("image", {"overrides": ["data.channels=1"]}, "with 1 channels, but .* of side 16 and 3 channels"),
    ],
)
def test_models_that_have_no_embeddings_for_a_prior(models, data, name, more, message):
    with pytest.raises(UserError, match=message):
        opened(models[name], data, *more.pop("overrides", []), **more)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("prior", [], "this model samples from prompts or class names; give at least one"),
        ("prior_plain", ["a cat"], "this prior was trained without prompts and takes none, got 'a cat'"),
        ("image", ["--image", "IMAGE", "--prior_steps", "3"], "--prior_steps is for a model with a prior"),
        ("prior", ["--image", "IMAGE", "--prior_guidance_scale", "3"], "--prior_guidance_scale is for a model with"),
        ("prior", ["a thing", "--prior_steps", "5000"], "steps"),
    ],
)
def test_the_script_says_what_is_wrong(models, tmp_path, name, arguments, message):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    given = [tmp_path / "a.png" if value == "IMAGE" else value for value in arguments]
    wrong = through("sample", models[name], *given, "--steps", 1, "--out", tmp_path / "out")
    assert wrong.status == 2, wrong.out
    assert message in wrong.errors[0]


def test_the_script_samples_from_prompts_and_without(models, tmp_path):
    run = through("sample", models["prior"], "a thing", "another", "--steps", 1, "--prior_steps", 2, "--count", 2,
                  "--prior_guidance_scale", 2, "--out", tmp_path / "out")  # fmt: skip
    assert run.status == 0, run.err
    assert "4 pictures" in run.out
    plain = through("sample", models["prior_plain"], "--count", 2, "--steps", 1, "--out", tmp_path / "plain")
    assert plain.status == 0, plain.err


def test_other_kinds_of_models_are_named(models, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ldm_kit.NoisyClassifier"}))
    with pytest.raises(UserError, match=r"holds a ldm_kit\.NoisyClassifier, which has no semantic codes"):
        _decoder(ModelFolder.open(tmp_path))


def test_a_decoder_of_several_prompts_is_refused(models, monkeypatch):
    several = Pipeline.load(models["both"])
    monkeypatch.setattr(type(several.conditioner), "sources", ("caption", "style"))
    monkeypatch.setattr(Pipeline, "load", lambda *_: several)
    with pytest.raises(UserError, match=r"the prompts of .* have several parts, and a prior takes one"):
        _decoder(ModelFolder.open(models["both"]))


def test_turning_towards_a_text_difference_is_the_papers_slerp():
    start, difference = (torch.randn(1, 6, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    start = start / start.square().mean().sqrt()
    theta = torch.tensor([0.0, 0.25, 0.5, 1.0])
    moved = turn_towards(start, 3 * difference, theta)
    unit = difference / difference.square().mean().sqrt()
    omega = torch.acos((start * unit).mean())
    expected = (
        torch.sin((1 - theta) * omega)[:, None] * start + torch.sin(theta * omega)[:, None] * unit
    ) / omega.sin()
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(moved.square().mean(1), torch.ones(4))


class Recorder:
    """Stands for `Pipeline.generate`: keeps the embeddings that it is given."""

    def __init__(self, patch) -> None:
        self.calls = []
        generate = Pipeline.generate

        def record(pipeline, prompts, seeds, *arguments, pictures=None):
            self.calls.append((list(prompts), list(seeds), pictures["embedding"]))
            return generate(pipeline, prompts, seeds, *arguments, pictures=pictures)

        patch.setattr(Pipeline, "generate", record)


@pytest.fixture
def images(tmp_path):
    for name, colour in (("a", (200, 10, 10)), ("b", (10, 30, 220))):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{name}.png")
    return tmp_path / "a.png", tmp_path / "b.png"


def embedded(pipeline, path):
    from ldm_kit.data.image_files import load_image

    return pipeline.embed(load_image(path, 16)[None])


def test_blend_leads_from_one_picture_to_the_other_on_the_sphere(models, images, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    run = through("edit", "blend", "--model", models["image"], "--image", images[0], "--image", images[1], "--count", 3,
                  "--steps", 2, "--seed", 4, "--out", tmp_path / "out")  # fmt: skip
    assert run.status == 0, run.err
    ((prompts, seeds, embedding),) = recorder.calls
    ends = [embedded(Pipeline.load(models["image"]), path) for path in images]
    assert (prompts, seeds) == ([""] * 3, [4] * 3)
    torch.testing.assert_close(embedding[[0, 2]], torch.cat(ends), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embedding.square().mean(1), torch.ones(3), atol=1e-4, rtol=1e-4)
    middle = (ends[0] + ends[1]) / 2
    torch.testing.assert_close(embedding[1:2], middle / middle.square().mean().sqrt(), atol=1e-4, rtol=1e-3)
    names = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert [name.split("-")[2].removesuffix(".png") for name in names] == ["0", "50", "100"], "shares of the way"
    edit = read_metadata(tmp_path / "out" / names[0])["edit"]
    assert json.loads(edit)["sampling"]["steps"] == 2
    assert str(tmp_path) not in edit, "no paths of the user's machine"


def words_of_12(texts):
    rows = [[*(ord(letter) % 60 for letter in text), 63] for text in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


def test_textdiff_takes_the_text_tower_of_the_models_own_clip(models, clip, images, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: words_of_12)
    words = ["--source", "red", "--target", "blue", "--count", 3, "--theta", 0.4, "--steps", 2]
    common = ["edit", "textdiff", "--model", models["image"], "--image", images[0], *words]
    run = through(*common, "--clip_model", clip[0][1], "--out", tmp_path / "out")
    assert run.status == 0, run.err
    ((_, _, embedding),) = recorder.calls
    with torch.no_grad():
        texts = torch.nn.functional.normalize(clip[0][0].encode_text(words_of_12(["red", "blue"])), dim=1)
    start = embedded(Pipeline.load(models["image"]), images[0])
    expected = turn_towards(start, texts[1:] - texts[:1], torch.tensor([0.0, 0.2, 0.4]))
    torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-3)
    for arguments, message in (
        (["--clip_model", clip[1][1]], "has another image encoder than this model"),
        (["--clip_model", "timm:x"], "expected open_clip:ARCHITECTURE/WEIGHTS"),
        ([], "expected --clip_model open_clip:ARCHITECTURE/WEIGHTS, the model's own CLIP, or a model"),
    ):
        wrong = through(*common, *arguments, "--out", tmp_path / "wrong")
        assert wrong.status == 2
        assert message in wrong.errors[0]


def test_textdiff_falls_back_on_the_priors_mean_embeddings(models, images, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    texts = ["a thing of kind 1", "a thing of kind 4"]
    words = ["--source", texts[0], "--target", texts[1], "--count", 2, "--samples", 3, "--seed", 5, "--steps", 2]
    given = ["--model", models["prior"], "--image", images[0], "--out", tmp_path / "out"]
    run = through("edit", "textdiff", *given, *words)
    assert run.status == 0, run.err
    pipeline = Pipeline.load(models["prior"])
    means = [pipeline.prior.sample([text] * 3, [5, 6, 7], pipeline.saved).mean(0) for text in texts]
    unit = torch.nn.functional.normalize(torch.stack(means), dim=1)
    start = embedded(pipeline, images[0])
    expected = turn_towards(start, unit[1:] - unit[:1], torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(recorder.calls[0][2], expected, atol=1e-4, rtol=1e-3)


def test_edits_of_embeddings_say_what_is_wrong(models, images, tmp_path):
    blend = ["edit", "blend", "--image", images[0], "--image", images[1], "--out", tmp_path / "out", "--steps", 1]
    textdiff = ["edit", "textdiff", "--model", models["prior_plain"], "--image", images[0], "--source", "a",
                "--target", "b", "--out", tmp_path / "out", "--steps", 1]  # fmt: skip
    for arguments, message in (
        ([*blend, "--model", models["text"]], "is conditioned on no vector of an image"),
        ([*blend, "--model", models["tokens"]], "is conditioned on no vector of an image"),
        ([*blend, "--image", images[0], "--model", models["image"]], "got 3 pictures; expected two"),
        ([*blend, "--model", models["image"], "--prompt", "a cat"], "takes no prompt, got 'a cat'"),
        ([*textdiff, "--theta", 1.5], "theta is 1.5"),
        ([*textdiff, "--count", 1], "count is 1; expected 2 or more"),
        (textdiff, "this prior was trained without prompts and takes none, got 'a'"),
        (["edit", "textdiff", "--model", models["prior"], "--image", images[0], "--source", "a", "--target", "a"],
         "--source and --target are equal"),
        (["edit", "sample", "--model", models["prior"], "--prompt", "a", "--out", tmp_path / "out"],
         "holds a decoder of image embeddings with its prior; sample.py samples it"),
    ):  # fmt: skip
        wrong = through(*arguments)
        assert wrong.status == 2, arguments
        assert message in wrong.errors[0]
