"""Cascades in the commands: sample.py and ldm-kit cascade, evaluate and memorisation; others refuse them."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from conditioning.derived import SuperResolution
from ldm_kit.cli import app
from ldm_kit.config import UserError
from ldm_kit.data.images import InMemory, Record, Split
from ldm_kit.inference.build_cascade import build_cascade
from ldm_kit.inference.evaluate import evaluate
from ldm_kit.inference.likelihood import evaluate_likelihood
from ldm_kit.inference.requests import GuideModels, LikelihoodRequest
from ldm_kit.methods.latent_config import LatentRun
from ldm_kit.models.cascade import Cascade, stage_seed
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.provenance import manifest_hash
from ldm_kit.viz.png import read_metadata
from tests.models.cascades import NET, model, saved, text
from tests.world import through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PROMPTS = ("a red square", "a blue circle")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pipelines = model(text(), 8, seed=1, guidance_scale=2.0), model(text(), 16, SuperResolution(factor=2), seed=2)
    return saved(tmp_path_factory.mktemp("models"), *pipelines)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    return build_cascade(models, tmp_path_factory.mktemp("cascades") / "two")


def pixels(path) -> torch.Tensor:
    with Image.open(path) as image:
        width, height = image.size
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3).movedim(2, 0)


def in_order(folder):
    return sorted(folder.glob("0*.png"), key=lambda path: path.name.split("-")[1])


def test_sample_runs_the_whole(folder, tmp_path):
    out = tmp_path / "out"
    more = ["--by_stage", "steps=2/1", "--by_stage", "noise_level=/60", "--stage_pictures", "--batch_size", 3]
    done = through("sample", folder, *PROMPTS, "--count", 2, "--seed", 5, "--out", out, "--device", "cpu", *more)
    assert done.status == 0, done.err
    assert f"4 pictures in {out}, all of them in {out / 'grid.png'}" in done.out
    assert "stage 1: the model's own settings: solver ddim, guidance_scale 2" in done.out
    large, small = in_order(out), in_order(out / "stage_1")
    assert not (out / "stage_2").exists()
    assert (out / "grid.png").exists()
    assert (out / "stage_1" / "grid.png").exists()
    texts = [read_metadata(path) for path in large]
    assert [(each["prompt"], each["seed"]) for each in texts] == [(p, s) for p in PROMPTS for s in ("5", "6")]
    assert {each["model"] for each in texts} == {manifest_hash(folder)}
    assert (texts[0]["stage"], read_metadata(small[0])["stage"]) == ("2 of 2", "1 of 2")
    assert [(each["steps"], each["noise_level"]) for each in json.loads(texts[0]["settings"])] == [(2, None), (1, 60)]
    cascade = Cascade.load(folder)
    options = [SamplingOptions(steps=2), SamplingOptions(steps=1, noise_level=60)]
    prompts, seeds = [p for p in PROMPTS for _ in range(2)], [5, 6, 5, 6]
    for paths, batches in ((small, 0), (large, 1)):
        expected = torch.cat([b.pictures for b in cascade.batches(prompts, seeds, options, 3) if b.stage == batches])
        assert len(paths) == 4
        for path, picture in zip(paths, expected, strict=True):
            assert torch.equal(pixels(path), picture)


def test_a_second_command_overwrites_nothing(folder, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        done = through("sample", folder, PROMPTS[0], "--steps", 1, "--out", out, "--no_metadata", "--stage_pictures")
        assert done.status == 0, done.err
    assert len(in_order(out)) == len(in_order(out / "stage_1")) == 2
    assert (out / "grid-2.png").exists()
    assert read_metadata(in_order(out)[0]) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "this model samples from prompts or class names; give at least one"),
        (["a", "--image", "x.png"], "--image is for models with a picture as condition, and a cascade samples its own"),
        (["a", "--lora", "x.safetensors"], "--lora is for a single model, and this is a cascade"),
        (["a", "--classifier", "x"], "--classifier is for a single model, and this is a cascade"),
        (["a", "--classifier_scale", 2], "stage 1: --classifier_scale needs --classifier DIR"),
        (
            ["a", "--noise_level", 400],
            "stage 2: --noise_level is 400, but this model was trained on levels of 0 to 350",
        ),
        (["a", "--by_stage", "steps=1"], "--by_stage steps=1 has 1 values, but the cascade has 2 models"),
    ],
    ids=str,
)
def test_what_sample_refuses(folder, tmp_path, arguments, message):
    done = through("sample", folder, *arguments, "--out", tmp_path / "out")
    assert done.status == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", [["--stage_pictures"], ["--by_stage", "steps=1/2"]])
def test_options_of_cascades_are_refused_for_single_models(models, tmp_path, flag):
    done = through("sample", models[0], "a", *flag, "--out", tmp_path / "out")
    assert done.status == 2
    assert f"{flag[0]} is for cascades, and {models[0]} holds none" in done.err


def test_the_command_builds_a_cascade(models, tmp_path):
    out = tmp_path / "cascade"
    done = CliRunner().invoke(app, ["cascade", *map(str, models), "--out", str(out), "--by_stage", "noise_level=/40"])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == f"cascade in {out}"
    assert Cascade.load(out).resolve()[1].noise_level == 40
    wrong = CliRunner().invoke(app, ["cascade", str(models[1]), str(models[0]), "--out", str(tmp_path / "wrong")])
    assert wrong.exit_code == 2
    assert "is conditioned on a picture (super_resolution)" in wrong.output


def captioned(count: int, side: int) -> Split:
    pictures = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
    records = [Record(f"{i}", PROMPTS[i % 2], None) for i in range(count)]
    rows = InMemory(records, (), pictures.to(torch.uint8), "captioned")
    return Split(rows, rows, None)


def test_evaluate_judges_the_final_pictures_for_the_captions(colours, folder):
    options = SamplingOptions(steps=1, noise_level=300)
    result = evaluate(folder, options, data=captioned(6, 16), bootstrap=0, measures="fd", seed=3)
    cascade = Cascade.load(folder)
    expected = torch.cat(list(cascade.generate([PROMPTS[i % 2] for i in range(6)], range(3, 9), options)))
    assert (colours.seen[-1].int() - expected.int()).abs().max() <= 1
    judged = result.settings["judged"]
    assert (judged["kind"], judged["count"], judged["model"]) == ("cascade", 6, manifest_hash(folder))
    assert [judged["sampling"][f"stage_{k}"]["noise_level"] for k in (1, 2)] == [None, 300]
    assert result["fd"].count == 6


def test_what_evaluate_refuses(colours, folder):
    with pytest.raises(UserError, match=r"reference given pictures has pictures of 8 px .* judged have 16 px"):
        evaluate(folder, data=captioned(6, 8))
    with pytest.raises(UserError, match="--measures bits_per_dim: it is for single diffusion models"):
        evaluate(folder, data=captioned(6, 16), measures="bits_per_dim")
    with pytest.raises(UserError, match="--classifier is for a single model"):
        evaluate(folder, None, GuideModels(classifier=folder), data=captioned(6, 16))
    with pytest.raises(UserError, match="stage 2: --noise_level is 900"):
        evaluate(folder, SamplingOptions(noise_level=900), data=captioned(6, 16))


def test_several_cascades_are_compared_if_their_options_are_equal(colours, folder, models, tmp_path):
    other = build_cascade(models, tmp_path / "other", ["noise_level=/30"])
    with pytest.raises(UserError, match="are not comparable: stage_2"):
        evaluate([folder, other], data=captioned(6, 16), bootstrap=0, measures="fd")


def test_other_commands_refuse_cascades(folder, tmp_path):
    with pytest.raises(UserError, match="holds a cascade, which has no likelihood"):
        evaluate_likelihood(folder, LikelihoodRequest())
    done = CliRunner().invoke(app, ["export", str(folder)])
    assert done.exit_code == 2
    assert "holds no checkpoint" in done.output
    for arguments in (["reprompt", "--image", "x.png", "--source", "a", "--prompt", "b"], ["learn", "--openmoji"]):
        done = through("edit", *arguments, "--model", folder)
        assert done.status == 2
        assert len(done.err.strip().splitlines()) == 1, done.err


def test_a_run_states_a_noise_level_that_it_trains():
    tree = {"run": "r", "data": {"source": "digits"}, "unet": NET.model_dump(), "train": {"steps": 1, "batch_size": 1}}
    small = {"kind": "super_resolution", "factor": 2, "max_level": 300}
    assert LatentRun(**tree, condition=small, sample={"noise_level": 300}).sample.noise_level == 300
    with pytest.raises(
        ValueError, match=r"sample\.noise_level is 301, but this model was trained on levels of 0 to 300"
    ):
        LatentRun(**tree, condition=small, sample={"noise_level": 301})
    with pytest.raises(ValueError, match=r"sample\.noise_level is for models that upscale a picture"):
        LatentRun(**tree, condition={"kind": "none"}, sample={"noise_level": 3})


def test_the_saved_noise_level_is_the_default(tmp_path):
    small = SuperResolution(factor=2, max_level=15)
    model(text(), 16, small, noise_level=7).save(tmp_path / "own")
    assert SamplingOptions().resolve(Pipeline.load(tmp_path / "own")).noise_level == 7
    assert SamplingOptions(noise_level=3).resolve(Pipeline.load(tmp_path / "own")).noise_level == 3
    assert SamplingOptions().resolve(model(text(), 16, small)).noise_level == 15, "no more than it was trained on"
    assert stage_seed(0, 1) != stage_seed(0, 2)
