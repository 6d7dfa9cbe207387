"""The sampling options of a run are its model's: every command samples with them unless a flag says otherwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.editing.inversion import inversion_times
from ldm_kit.editing.sample_options import RepromptOptions
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.viz.png import read_metadata
from tests.world import Outcome, through

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
OLD = Path(__file__).parents[1] / "fixtures" / "v0_1"  # of release 0.1, which saved no options
OWN = {"steps": 3, "solver": "ddim", "guidance_scale": 2.0, "guidance_interval": [0.0, 0.5], "guidance_rescale": 0.25}
SAVED = {
    "latent": {"sampling": {**OWN, "condition_dropout": 0.1}},
    "pixels": {"sampling": {"steps": 2, "solver": "ddim", "clip": "dynamic", "condition_dropout": 0.0}},
    "diffae": {"reconstruction": {"encode_steps": 3, "decode_steps": 2}},
    "prior": {
        "reconstruction": {"encode_steps": 3, "decode_steps": 2},
        "prior": {"steps": 4, "decode_steps": 3, "stop": 0.0, "guidance_scale": 1.0},
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Old models, with options as today's runs save them."""
    root = tmp_path_factory.mktemp("models")
    for name, sections in SAVED.items():
        shutil.copytree(OLD / name / "model", root / name)
        (root / name / "sampling.json").write_text(json.dumps(sections))
    return {name: root / name for name in SAVED}


@pytest.fixture(scope="module")
def picture() -> Path:
    return sorted((OLD / "pictures").glob("*.png"))[0]


def recorded(out: Path, name: str = "sheet.png", key: str = "edit") -> dict[str, Any]:
    return json.loads(read_metadata(out / name)[key])


def run(*arguments: object) -> Outcome:
    outcome = through(*map(str, arguments))
    assert outcome.status == 0, outcome.err
    return outcome


def pixels(folder: Path) -> np.ndarray:
    (path,) = folder.glob("0*.png")
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_sample_takes_them_and_says_so(models, tmp_path):
    outcome = run("sample", models["latent"], "red square 1", "--out", tmp_path / "own")
    assert {name: recorded(tmp_path / "own", "grid.png", "settings")[name] for name in OWN} == OWN
    said = "steps 3, solver ddim, guidance_scale 2, guidance_interval 0 0.5, guidance_rescale 0.25"
    assert f"the model's own settings: {said}" in outcome.out
    flags = [
        "--steps",
        "3",
        "--solver",
        "ddim",
        "--guidance_scale",
        "2",
        "--guidance_interval",
        "0",
        "0.5",
        "--guidance_rescale",
        "0.25",
    ]
    explicit = run("sample", models["latent"], "red square 1", "--out", tmp_path / "flags", *flags)
    assert "own settings" not in explicit.out
    assert np.array_equal(pixels(tmp_path / "own"), pixels(tmp_path / "flags"))


def test_a_flag_wins_and_leaves_the_others(models, tmp_path):
    run("sample", models["latent"], "red square 1", "--out", tmp_path, "--guidance_scale", 5, "--fast")
    settings = recorded(tmp_path, "grid.png", "settings")
    assert {name: settings[name] for name in OWN} == {**OWN, "guidance_scale": 5.0, "steps": 8}


def test_a_folder_without_them_is_sampled_as_before(tmp_path):
    outcome = run("sample", OLD / "latent", "red square 1", "--out", tmp_path)
    settings = recorded(tmp_path, "grid.png", "settings")
    assert (settings["steps"], settings["solver"], settings["guidance_scale"]) == (20, "dpm++", 3.0)
    assert "own settings" not in outcome.out


def test_python_takes_them_too_and_keeps_them(models, tmp_path):
    pipeline = Pipeline.load(models["latent"])
    own = next(pipeline.generate(["red square 1"], [0]))
    explicit = SamplingOptions(
        steps=3, solver="ddim", guidance_scale=2, guidance_interval=(0, 0.5), guidance_rescale=0.25
    )
    assert torch.equal(own, next(pipeline.generate(["red square 1"], [0], explicit)))
    pipeline.save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "sampling.json").read_text()) == SAVED["latent"]
    semantic = SemanticModel.load(models["prior"])
    semantic.save(tmp_path / "semantic")
    assert json.loads((tmp_path / "semantic" / "sampling.json").read_text()) == SAVED["prior"]
    z = torch.zeros(1, semantic.z_width)
    assert torch.equal(semantic.decode(z), semantic.decode(z, None, 2))
    assert not torch.equal(semantic.decode(z), semantic.decode(z, None, 3))
    assert torch.equal(semantic.sample_z([1]), semantic.sample_z([1], 4))


def test_img2img_takes_them(models, picture, tmp_path):
    given = ("--model", models["latent"], "--image", picture, "--prompt", "red square 1")
    outcome = run("edit", "img2img", *given, "--strength", 0.5, "--out", tmp_path / "own")
    about = recorded(tmp_path / "own")
    assert {name: about[name] for name in OWN} == OWN
    assert "own settings: steps 3" in outcome.out
    run("edit", "img2img", *given, "--solver", "heun", "--steps", 2, "--guidance_scale", 1, "--out", tmp_path / "given")
    about = recorded(tmp_path / "given")
    assert (about["solver"], about["steps"], about["guidance_scale"]) == ("heun", 2, 1.0)
    assert about["guidance_rescale"] == 0.0, "without effect at scale 1"


def test_inpaint_takes_them(models, picture, tmp_path):
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 7, 16))
    mask.save(tmp_path / "mask.png")
    given = ("--image", picture, "--mask", tmp_path / "mask.png", "--prompt", "red", "--resample", 1)
    run("edit", "inpaint", "--model", models["latent"], *given, "--out", tmp_path / "out")
    about = recorded(tmp_path / "out")
    assert {name: about[name] for name in OWN if name != "solver"} == {k: v for k, v in OWN.items() if k != "solver"}
    assert "solver" not in about, "its steps are RePaint's"


def test_reprompt_takes_guidance_but_not_the_steps_of_another_sampler(models, picture, tmp_path):
    given = ("--image", picture, "--source", "red square 1", "--prompt", "blue square 1", "--out", tmp_path)
    run("edit", "reprompt", "--model", models["latent"], *given, "--steps", 2)
    about = recorded(tmp_path)
    assert (about["steps"], about["guidance_scale"], about["guidance_interval"]) == (2, 2.0, [0.0, 0.5])
    assert "solver" not in about
    options = RepromptOptions(image="a.png", source="a", prompt="b")
    assert len(inversion_times(Pipeline.load(models["latent"]), options)) == 51
    few = Pipeline.load(models["pixels"])
    few.schedule_config = few.schedule_config.model_copy(update={"num_train_timesteps": 20})
    assert inversion_times(few, options) == list(range(20)), "a default is never more than there are times"


def test_a_strength_has_all_its_steps(models, picture, tmp_path):
    """One step at strength 0.1 starts from the noise of 0.1: the picture stays."""
    given = ("--model", models["pixels"], "--image", picture, "--prompt", "red", "--strength", 0.1)
    for steps, done in ((1, 1), (500, None), (50, 10)):
        outcome = through("edit", *map(str, ("img2img", *given, "--steps", steps, "--out", tmp_path / str(steps))))
        if done is None:
            assert outcome.errors == [
                "error: --steps 500: cannot walk 100 training times in 500 steps; expected 1 to 100"
            ]
            continue
        assert outcome.status == 0, outcome.err
        about = recorded(tmp_path / str(steps))
        assert (about["steps"], about["strength"]) == (done, 0.1), "what was done"


def test_semantic_commands_take_them(models, picture, tmp_path):
    images = ("--content", picture, "--details", picture)
    outcome = run("edit", "mix", "--model", models["diffae"], *images, "--out", tmp_path / "mix")
    assert recorded(tmp_path / "mix") == {"mixed": True, "invert_steps": 3, "steps": 2}
    assert "own settings: invert_steps 3, steps 2" in outcome.out
    run("edit", "mix", "--model", models["diffae"], *images, "--steps", 4, "--out", tmp_path / "four")
    assert recorded(tmp_path / "four") == {"mixed": True, "invert_steps": 3, "steps": 4}
    run("edit", "sample", "--model", models["prior"], "--count", 1, "--out", tmp_path / "sample")
    about = recorded(tmp_path / "sample")
    assert (about["steps"], about["decode_steps"], about["guidance_scale"]) == (4, 3, 1.0)


def test_guidance_away_from_a_null_that_was_never_trained(models, picture, tmp_path):
    sentence = (
        "steers away from the null condition, which this model was never trained on (condition_dropout 0); expected "
        "--guidance_scale 1"
    )
    given = ("--model", models["pixels"], "--image", picture, "--prompt", "red", "--out", tmp_path / "out")
    for flag, value in (("--guidance_scale", 2), ("--negative_prompt", "blue")):
        for command in (("sample", models["pixels"], "red", "--out", tmp_path / "out"), ("edit", "img2img", *given)):
            outcome = through(*map(str, command), flag, str(value))
            assert (outcome.status, outcome.errors) == (2, [f"error: {flag} {sentence}"])
            assert not (tmp_path / "out").exists()
    run("sample", models["pixels"], "red", "--out", tmp_path / "out")
    assert recorded(tmp_path / "out", "grid.png", "settings")["guidance_scale"] == 1.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "sampling.json is missing or no JSON object"),
        ('{"sampling": 3}', "sampling.json: sampling: values: expected a"),
        ('{"sampling": {"steps": 0}}', "sampling.json: sampling: steps: expected greater than or equal to 1, got 0"),
        (
            '{"sampling": {"guidance_scale": NaN}}',
            "sampling.json: sampling: guidance_scale: expected a finite number, got nan",
        ),
        ('{"sampling": {"condition_dropout": "x"}}', "sampling.json: sampling: condition_dropout: expected a"),
        ('{"reconstruction": {"encode_steps": "many"}}', "sampling.json: reconstruction: encode_steps: expected a"),
        (
            '{"prior": {"guidance_scale": -1}}',
            "sampling.json: prior: guidance_scale: expected greater than or equal to 0",
        ),
        ('{"sampling": {"solver": "gone"}}', "sampling.json: solver: expected one of ddpm"),
    ],
)
def test_broken_options_are_named(models, tmp_path, text, sentence):
    shutil.copytree(models["pixels"], tmp_path / "model")
    (tmp_path / "model" / "sampling.json").write_text(text)
    outcome = through("sample", str(tmp_path / "model"), "red", "--out", str(tmp_path / "out"))
    assert outcome.status == 2
    assert sentence in outcome.errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("script", "command"), [("sample", ()), ("edit", ("img2img",)), ("edit", ("mix",))])
def test_help_says_where_a_default_comes_from(script, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(through(script, *command, "--help").out.split())
    assert "the model's own, else" in text


def test_nothing_is_overwritten_in_the_default_folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, folder in ((0, "samples"), (0, "samples-2"), (1, "samples-3")):
        outcome = run("sample", models["pixels"], "red", "--seed", seed)
        assert f"1 pictures in {folder}, all of them in {folder}/grid.png" in outcome.out
        assert len(list((tmp_path / folder).iterdir())) == 2
    for folder in ("edits", "edits-2"):
        image = next((tmp_path / "samples").glob("0*.png"))
        outcome = run("edit", "img2img", "--model", models["pixels"], "--image", image, "--prompt", "red")
        assert f"in {folder}, all of them in {folder}/sheet.png" in outcome.out
    for name in ("codes.safetensors", "codes-2.safetensors"):
        given = ("--images", OLD / "pictures", "--no_details")
        assert f"pictures in {name}" in run("edit", "encode", "--model", models["diffae"], *given).out


def test_pictures_say_what_made_them(models, picture, tmp_path):
    import hashlib

    from ldm_kit import __version__

    digest = hashlib.sha256((models["pixels"] / "manifest.json").read_bytes()).hexdigest()
    expected = {"Software": f"ldm_kit {__version__}", "precision": "bf16", "model": digest}
    run("sample", models["pixels"], "red", "--precision", "bf16", "--out", tmp_path / "a")
    given = ("--model", models["pixels"], "--image", picture, "--prompt", "red", "--precision", "bf16")
    run("edit", "img2img", *given, "--out", tmp_path / "b")
    for path in [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]:
        about = read_metadata(path)
        assert {name: about[name] for name in expected} == expected
        assert str(models["pixels"]) not in str(about)
    guide = ("--autoguidance_model", models["pixels"])
    run("sample", models["pixels"], "red", *guide, "--out", tmp_path / "c")
    about = read_metadata(tmp_path / "c" / "grid.png")
    assert (about["precision"], about["autoguidance_model"]) == ("no", digest)
    assert json.loads(about["settings"])["guidance_scale"] == 1.0, "autoguidance alone"
