"""sample.py: names, metadata and grid; and that a picture depends on its prompt, its seed and the settings alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_kit.models.options import SamplingOptions
from ldm_kit.viz.png import read_metadata
from tests.world import World, through


def draw(out: Path, model: Path, *arguments: object, steps: int = 3) -> dict[str, np.ndarray]:
    """The pictures of sample.py by file name, without the grid."""
    found = through("sample", model, *arguments, "--steps", steps, "--out", out)
    assert found.status == 0, found.err
    files = sorted(path for path in out.glob("*.png") if path.name != "grid.png")
    assert f"{len(files)} pictures in {out}, all of them in {out / 'grid.png'}" in found.out
    return {path.name: _pixels(path) for path in files}


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_names_metadata_and_grid(world: World, tmp_path):
    found = draw(tmp_path, world.model("text"), "red square", "Été, ../x", "--count", 2, "--seed", 5)
    assert list(found) == [
        "00000005-00000-red-square.png",
        "00000005-00002-ete-x.png",
        "00000006-00001-red-square.png",
        "00000006-00003-ete-x.png",
    ]
    about = read_metadata(tmp_path / "00000006-00003-ete-x.png")
    assert (about["prompt"], about["seed"]) == ("Été, ../x", "6")
    settings = {**SamplingOptions(steps=3).model_dump(mode="json"), "clip": "none"}
    assert json.loads(about["settings"]) == settings
    assert json.loads(read_metadata(tmp_path / "grid.png")["settings"]) == settings
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 2 * 16
    assert all(picture.shape == (16, 16, 3) for picture in found.values())


def test_a_second_command_keeps_the_pictures_of_the_first(world: World, tmp_path):
    """Prompt, seed and folder are the same, the settings are not: every name would be taken."""
    given = ("sample", world.model("text"), "red square", "--count", 2, "--out", tmp_path)
    first = through(*given, "--steps", 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    second = through(*given, "--steps", 2)
    assert (first.status, second.status) == (0, 0), second.err
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path not in before) == [
        "00000000-00002-red-square.png",
        "00000001-00003-red-square.png",
        "grid-2.png",
    ]
    assert f"2 pictures in {tmp_path}, all of them in {tmp_path / 'grid-2.png'}" in second.out


def test_no_metadata(world: World, tmp_path):
    draw(tmp_path, world.model("text"), "a secret", "--no_metadata")
    for path in tmp_path.glob("*.png"):
        assert read_metadata(path) == {}
        assert b"secret" not in path.read_bytes()


def test_prompts_from_a_file_and_the_command_line(world: World, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffgreen square\r\n\r\n  blue square \n", encoding="utf-8")
    arguments = ("red square", "--prompts_file", tmp_path / "prompts.txt")
    found = draw(tmp_path / "out", world.model("text"), *arguments)
    assert list(found) == [f"00000000-0000{i}-{c}-square.png" for i, c in enumerate(("red", "green", "blue"))]


def test_the_run_and_its_model_are_the_same(world: World, tmp_path):
    run = draw(tmp_path / "a", world.model("text"), "red square")
    model = draw(tmp_path / "b", world.model("text") / "model", "red square")
    assert all(np.array_equal(run[name], model[name]) for name in run)


@pytest.mark.parametrize(
    ("solver", "model"),  # of one kind each: ours with and without noise, diffusers' with and without
    [("ddpm", "text"), ("ddim", "flow"), ("dpm++", "flow"), ("sde", "text")],
)
def test_batch_mates_change_nothing(world: World, tmp_path, solver, model):
    arguments = (world.model(model), "red square", "blue square 3", "green", "--count", 2, "--solver", solver)
    alone = draw(tmp_path / "alone", *arguments, "--batch_size", 1)
    together = draw(tmp_path / "together", *arguments, "--batch_size", 4)
    assert alone.keys() == together.keys()
    for name, picture in alone.items():
        assert np.abs(picture - together[name]).max() <= 1
        assert picture.std() > 5
    pictures = list(alone.values())
    assert np.abs(pictures[0] - pictures[3]).max() > 3, "seeds matter"


def test_a_picture_belongs_to_prompt_and_seed(world: World, tmp_path):
    one = draw(tmp_path / "one", world.model("text"), "red square", "--seed", 3)
    many = draw(tmp_path / "many", world.model("text"), "blue", "red square", "--seed", 2, "--count", 2)
    alike = np.abs(one["00000003-00000-red-square.png"] - many["00000003-00003-red-square.png"]).max()
    assert alike <= 1


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_what_is_said_changes_the_picture(world: World, tmp_path, solver):
    base = (world.model("text"), "red square", "--solver", solver, "--guidance_scale", 8)
    (plain,) = draw(tmp_path / "plain", *base).values()
    (negative,) = draw(tmp_path / "negative", *base, "--negative_prompt", "blue square 3").values()
    (unguided,) = draw(tmp_path / "unguided", *base[:-1], 1).values()
    assert np.abs(plain - negative).max() > 1
    assert np.abs(plain - unguided).max() > 1


def test_classes_by_name(world: World, tmp_path):
    found = draw(tmp_path, world.model("class"), "red", "green", "--guidance_scale", 8)
    red, green = found.values()
    assert np.abs(red - green).max() > 1
    (other,) = draw(
        tmp_path / "n", world.model("class"), "red", "--guidance_scale", 8, "--negative_prompt", "blue"
    ).values()
    assert np.abs(red - other).max() > 1


@pytest.mark.parametrize("model", ["plain", "plain_vq", "plain_flow", "pixels"])
def test_unconditional(world: World, tmp_path, model):
    found = draw(tmp_path, world.model(model), "--count", 3)
    assert list(found) == [f"0000000{i}-0000{i}-picture.png" for i in range(3)]
    a, b, _ = found.values()
    assert np.abs(a - b).max() > 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_draws_nearly_the_same(world: World, tmp_path, precision):
    (full,) = draw(tmp_path / "full", world.model("text"), "red square").values()
    (low,) = draw(tmp_path / "low", world.model("text"), "red square", "--precision", precision).values()
    assert 0 < np.abs(full - low).mean() < 8


GUIDES = {  # (model, arguments): what steers, in each of the ways there are
    "algorithm 1": ("plain", ["red", "blue", "--solver", "ddpm", "--classifier", "{classifier}"]),
    "algorithm 2": ("plain", ["red", "blue", "--solver", "ddim", "--eta", 0.7, "--classifier", "{classifier}"]),
    "several steps": ("plain", ["red", "blue", "--solver", "dpm++", "--classifier", "{classifier}"]),
    "classes": ("class", ["red", "blue", "--solver", "ddpm", "--classifier", "{classifier}"]),
    "pixels": ("pixels", ["red", "blue", "--classifier", "{pixel_classifier}"]),
    "learned variance": ("learned", ["red", "blue", "--solver", "ddpm", "--classifier", "{pixel_classifier}"]),
    "text": ("text", ["a", "b", "--classifier_class", "green", "--classifier", "{classifier}"]),
    "a guide model": (
        "class_pixels",
        ["red", "blue", "--autoguidance_model", "{class_pixels}", "--autoguidance_scale", 3],
    ),
}


@pytest.mark.parametrize("case", GUIDES)
def test_batch_mates_change_nothing_with_guides(world: World, tmp_path, case):
    name, arguments = GUIDES[case]
    filled = [_filled(world, argument) for argument in arguments]
    if "{classifier}" in arguments or "{pixel_classifier}" in arguments:
        filled += ["--classifier_scale", 20]
    alone = draw(tmp_path / "alone", world.model(name), *filled, "--count", 2, "--batch_size", 1)
    together = draw(tmp_path / "together", world.model(name), *filled, "--count", 2, "--batch_size", 3)
    assert len(alone) == len(together) == 4
    for picture, other in zip(alone.values(), together.values(), strict=True):
        assert np.abs(picture - other).max() <= 1


def _filled(world: World, argument: object) -> object:
    """A model's folder where its name stands in braces."""
    name = str(argument)
    return world.model(name[1:-1]) if name.startswith("{") else argument


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm++"])
def test_a_classifier_steers(world: World, tmp_path, solver):
    """Its class and its scale matter, and its scale 0 is none."""
    base = (world.model("pixels"), "--solver", solver)
    guided = (*base, "--classifier", world.model("pixel_classifier") / "model")
    (plain,) = draw(tmp_path / "plain", *base).values()
    (idle,) = draw(tmp_path / "idle", *guided, "red", "--classifier_scale", 0).values()
    (one,) = draw(tmp_path / "one", *guided, "red").values()
    (red,) = draw(tmp_path / "red", *guided, "red", "--classifier_scale", 30).values()
    (blue,) = draw(tmp_path / "blue", *guided, "--classifier_class", "blue", "--classifier_scale", 30).values()
    assert np.array_equal(plain, idle)
    assert np.abs(plain - red).max() > 3
    assert np.abs(red - blue).max() > 3
    assert np.abs(one - red).max() > 3
    about = json.loads(read_metadata(next((tmp_path / "one").glob("0*.png")))["settings"])
    assert (about["classifier_scale"], about["algorithm"], about["clip"]) == (1.0, 1 if solver == "ddpm" else 2, "clip")


SETTINGS = {  # flags -> what the metadata says of them
    ("--guidance_rescale", 0.7): {"guidance_rescale": 0.7},
    ("--guidance_interval", 0.1, 0.6): {"guidance_interval": [0.1, 0.6]},
    ("--spacing", "leading"): {"spacing": "leading"},
    ("--spacing", "ddim5"): {"spacing": "ddim5", "steps": 5},
    ("--spacing", "2,1"): {"spacing": "2,1", "steps": 3},
    ("--solver", "ddim", "--eta", 1): {"solver": "ddim", "eta": 1.0},
    ("--clip", "none"): {"clip": "none"},
    ("--clip", "dynamic"): {"clip": "dynamic"},
}


@pytest.mark.parametrize("flags", SETTINGS, ids=lambda flags: " ".join(str(flag) for flag in flags))
def test_every_flag_matters_and_is_told(world: World, tmp_path, flags):
    base = (world.model("class_pixels"), "red", "--guidance_scale", 8, "--solver", "ddim")
    (plain,) = draw(tmp_path / "plain", *base).values()
    (other,) = draw(tmp_path / "other", *base, *flags).values()
    assert np.abs(plain - other).max() > 1
    about = json.loads(read_metadata(next((tmp_path / "other").glob("0*.png")))["settings"])
    assert {name: about[name] for name in SETTINGS[flags]} == SETTINGS[flags]


def test_a_guide_model_steers(world: World, tmp_path):
    """Away from itself: with the very same model there is nothing to steer by."""
    base = (world.model("pixels"), "--autoguidance_scale", 4)
    (plain,) = draw(tmp_path / "plain", world.model("pixels")).values()
    (same,) = draw(tmp_path / "same", *base, "--autoguidance_model", world.model("pixels")).values()
    (steered,) = draw(tmp_path / "steered", *base, "--autoguidance_model", world.model("learned")).values()
    assert np.abs(plain - same).max() <= 1
    assert np.abs(plain - steered).max() > 3


def test_fast_is_a_word_for_flags(world: World, tmp_path):
    model = world.model("text")
    for name, flags in {
        "fast": ["--fast"],
        "told": ["--steps", "8", "--precision", "auto"],
        "more": ["--fast", "--steps", "3", "--precision", "no"],
        "three": ["--steps", "3"],
    }.items():
        assert through("sample", model, "red", "--out", tmp_path / name, *flags).status == 0
    found = {name: next((tmp_path / name).glob("*red*.png")).read_bytes() for name in ("fast", "told", "more", "three")}
    assert found["fast"] == found["told"] != found["more"] == found["three"]


def test_hostile_prompts_stay_in_the_folder(world: World, tmp_path):
    prompts = ["../../etc/passwd", "CON", "a\nb", "-rf", "x" * 300, "\u202egnp.exe", "💥", "a/b\\c", "%s", ".hidden"]
    arguments = ("--", world.model("text"), *prompts)
    found = through("sample", "--out", tmp_path / "in", "--steps", 1, *arguments)
    assert found.status == 0, found.err
    names = sorted(path.name for path in (tmp_path / "in").iterdir())
    assert len(names) == len(prompts) + 1
    assert all(len(name) < 90 for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
