"""edit.py: each of its commands on small models, what it writes and says, and one sentence for every wrong input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_kit.viz.png import read_metadata
from tests.editing.models import semantic
from tests.scarce import room_for
from tests.world import World, through

QUICK = ("--steps", 2, "--invert_steps", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory, world: World) -> Path:
    """A run's folder with a semantic model that has learned "red" and "shade" from the world's pictures."""
    run = tmp_path_factory.mktemp("run")
    semantic(run / "model")
    rows = ["file_name,red,shade"]
    for i in range(24):
        rows.append(f"{i:02d}.png,{int(i % 3 == 0)},{('red', 'green', 'blue')[i % 3]}")
    (run / "labels.csv").write_text("\n".join(rows))
    done = through("edit", "learn", "--model", run, "--images", world.pictures, "--labels", run / "labels.csv")
    assert done.status == 0, done.err
    assert "red: AUROC" in done.out
    assert "4 directions saved in" in done.out
    return run


@pytest.fixture
def picture(world: World) -> Path:
    return world.pictures / "00.png"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def written(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_the_line_of_the_readme(model, picture, tmp_path):
    """The word `change` may be left out, the case of an attribute is free, and no path is told in the PNG."""
    given = ("--model", model, "--image", picture, "--attribute", "Shade: blue", "--strength", "0.3")
    done = through("edit", *given, *QUICK, "--out", tmp_path)
    assert done.status == 0, done.err
    assert f"3 pictures in {tmp_path}, all of them in {tmp_path / 'sheet.png'}" in done.out
    names = written(tmp_path)
    assert names[:2] == ["00000000-00000-picture.png", "00000000-00001-reconstructed.png"]
    assert names[2:] == ["00000000-00002-shade-blue-0-3.png", "sheet.png"]
    assert np.array_equal(pixels(tmp_path / names[0]), pixels(picture))
    assert not np.array_equal(pixels(tmp_path / names[1]), pixels(tmp_path / names[2]))
    about = read_metadata(tmp_path / names[2])
    settings = {"edits": ["reconstructed", "shade: blue +0.3"], "invert_steps": 3, "steps": 2}
    assert json.loads(about["edit"]) == settings
    assert str(picture.parent) not in str(about)
    assert "inverting" in done.err, "there is a progress bar"


def test_several_attributes_with_a_strength_each(model, picture, tmp_path):
    attributes = ("--attribute", "red", "--attribute", "shade: red > green", "--strength", "0.2", "--strength", "-0.1")
    done = through("edit", "change", "--model", model, "--image", picture, *attributes, *QUICK, "--out", tmp_path)
    assert done.status == 0, done.err
    assert (tmp_path / "00000000-00002-red-0-2-shade-red-green-0-1.png").exists()


def test_strength_left_out_is_the_typical_one(model, picture, tmp_path):
    listed = json.loads((model / "model" / "directions" / "directions.json").read_text())["directions"]
    typical = next(one["typical"] for one in listed if one["name"] == "red")
    done = through("edit", "--model", model, "--image", picture, "--attribute", "red", *QUICK, "--out", tmp_path)
    assert done.status == 0, done.err
    assert f"red {min(1.0, typical):+.2g}" in read_metadata(tmp_path / "sheet.png")["edit"]


def test_a_strip(model, picture, tmp_path):
    given = ("--attribute", "red", "--strip", "-0.3,0,0.3", "--no_metadata")
    done = through("edit", "--model", model, "--image", picture, *given, *QUICK, "--out", tmp_path)
    assert done.status == 0, done.err
    assert len(written(tmp_path)) == 5
    assert read_metadata(tmp_path / "sheet.png") == {}


def test_learning_from_examples_adds_to_what_is_known(model, world, picture, tmp_path):
    run = shutil.copytree(model, tmp_path / "run")
    for name, places in (("red", (0, 3, 6, 9)), ("other", (1, 2, 4, 5))):
        (tmp_path / name).mkdir()
        for i in places:
            shutil.copy(world.pictures / f"{i:02d}.png", tmp_path / name)
    given = ("--positive", tmp_path / "red", "--negative", tmp_path / "other", "--name", "rose")
    done = through("edit", "learn", "--model", run, *given)
    assert done.status == 0, done.err
    assert "rose: AUROC" in done.out
    assert "(few, 4 with, 4 without" in done.out
    known = json.loads((run / "model" / "directions" / "directions.json").read_text())["directions"]
    assert [one["name"] for one in known] == ["red", "shade: blue", "shade: green", "shade: red", "rose"]
    alone = through("edit", "learn", "--model", run, "--positive", tmp_path / "red", "--name", "rose")
    assert "rose: not measured (few, 4 with, 0 without" in alone.out


def test_interpolation_and_morph(model, world, tmp_path):
    images = ("--image", world.pictures / "00.png", "--image", world.pictures / "01.png")
    given = ("--count", 4, "--morph", tmp_path / "a.gif", "--duration", 50, "--out", tmp_path / "out")
    done = through("edit", "interpolate", "--model", model, *images, *given, *QUICK)
    assert done.status == 0, done.err
    assert len(written(tmp_path / "out")) == 7
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.info["duration"]) == (6, 50)


def test_a_second_edit_keeps_the_pictures_of_the_first(model, world, tmp_path):
    """Neither pictures nor sheet nor a file that is named are written over, whatever the command."""
    images = ("--image", world.pictures / "00.png", "--image", world.pictures / "01.png")
    given = ("edit", "interpolate", "--model", model, *images, "--count", 2, *QUICK, "--out", tmp_path / "out")
    assert through(*given, "--morph", tmp_path / "a.gif").status == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    again = through(*given, "--morph", tmp_path / "a.gif")
    assert again.errors == [f"error: {tmp_path / 'a.gif'} exists already; name a new file, or delete that one"]
    assert through(*given).status == 0
    given = ("--image", images[1], "--among", world.pictures, "--count", 1, "--out", tmp_path / "out")
    assert through("edit", "neighbours", "--model", model, *given).status == 0
    assert {path: path.read_bytes() for path in before} == before
    added = sorted(path.name for path in (tmp_path / "out").iterdir() if path not in before)
    indices = ["00004", "00005", "00006", "00007", "00008", "00009"]
    assert [name.split("-")[1] for name in added] == [*indices, "2.png", "3.png"]
    codes = ("--no_details", "--out", tmp_path / "a.safetensors")
    encode = ("edit", "encode", "--model", model, "--images", world.pictures, *codes)
    assert through(*encode).status == 0
    assert "a.safetensors exists already; name a new file" in through(*encode).errors[0]


def test_mix(model, world, tmp_path):
    given = ("--content", world.pictures / "00.png", "--details", world.pictures / "01.png")
    done = through("edit", "mix", "--model", model, *given, *QUICK, "--out", tmp_path)
    assert done.status == 0, done.err
    assert len(written(tmp_path)) == 4


def test_encoding_decoding_and_neighbours(model, world, picture, tmp_path):
    file = tmp_path / "codes.safetensors"
    done = through("edit", "encode", "--model", model, "--images", world.pictures, "--out", file, "--invert_steps", 2)
    assert (done.status, done.out.strip()) == (0, f"codes of 24 pictures in {file}")
    done = through("edit", "decode", "--model", model, "--codes", file, "--steps", 2, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert len(written(tmp_path / "out")) == 25
    given = ("--model", model, "--image", picture, "--count", 3, "--out", tmp_path / "near")
    by_file = through("edit", "neighbours", *given, "--among", file)
    by_folder = through("edit", "neighbours", *given, "--among", world.pictures)
    assert by_file.out == by_folder.out
    lines = by_file.out.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[0] == "1.000"
    assert "00.png" in by_file.out
    assert len(written(tmp_path / "near")) == 5


def told_error(text: str) -> float:
    return float(text.split("reconstruction error ")[1].split()[0])


def test_another_class(world, picture, tmp_path):
    model = ("--model", world.model("class_pixels"), "--image", picture, "--out", tmp_path)
    given = (*model, "--source", "red", "--prompt", "blue", "--steps", 4)
    done = through("edit", "reprompt", *given)
    assert done.status == 0, done.err
    assert "share" not in done.out
    refined = through("edit", "reprompt", *given, "--refine", 4)
    assert told_error(refined.out) < told_error(done.out)
    guided = through("edit", "reprompt", *given, "--guidance_scale", 9)
    assert told_error(guided.out) == told_error(done.out), "guidance is for the new prompt alone"
    assert written(tmp_path)[1:3] == ["00000000-00001-reconstructed.png", "00000000-00002-blue.png"]


def test_another_prompt_in_latents(world, picture, tmp_path):
    given = ("--source", "red square", "--prompt", "blue square", "--steps", 4, "--out", tmp_path)
    done = through("edit", "reprompt", "--model", world.model("text"), "--image", picture, *given)
    assert done.status == 0, done.err
    share = float(done.out.split("the autoencoder's share ")[1].split()[0])
    assert 0 < share < told_error(done.out) + 1e-3


@pytest.mark.parametrize("name", ["class_pixels", "pixels"])
def test_img2img_stays_near_at_a_low_strength(world, picture, tmp_path, name):
    prompt = () if name == "pixels" else ("--prompt", "red")
    distances = []
    for strength in (0.05, 1.0):
        out = tmp_path / str(strength)
        given = (*prompt, "--strength", strength, "--steps", 20, "--seed", 5, "--count", 2, "--out", out)
        done = through("edit", "img2img", "--model", world.model(name), "--image", picture, *given)
        assert done.status == 0, done.err
        original, *drawn = (pixels(out / name) for name in written(out) if name != "sheet.png")
        assert not np.array_equal(drawn[0], drawn[1])
        distances.append(np.abs(drawn[0] - original).mean())
    assert distances[0] < distances[1] / 2


def test_img2img_in_latents(world, picture, tmp_path):
    given = ("--image", picture, "--prompt", "red square", "--strength", 0.5, "--steps", 4, "--out", tmp_path)
    done = through("edit", "img2img", "--model", world.model("text"), *given)
    assert done.status == 0, done.err
    assert written(tmp_path)[1] == "00000000-00001-red-square-seed-0.png"
    about = json.loads(read_metadata(tmp_path / "sheet.png")["edit"])
    assert (about["prompt"], about["strength"], about["steps"]) == ("red square", 0.5, 4)


@pytest.mark.parametrize("command", ["img2img", "inpaint"])
def test_many_pictures_are_sampled_a_batch_at_a_time(world, picture, tmp_path, command):
    """Each picture depends on its own seed alone, whether batches are small or do not fit into memory."""
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 7, 16))
    mask.save(tmp_path / "mask.png")
    more = ("--mask", tmp_path / "mask.png", "--resample", 1) if command == "inpaint" else ("--strength", 0.9)
    given = (command, "--model", world.model("class_pixels"), "--image", picture, "--prompt", "red", *more)
    options = ("--steps", 2, "--count", 5, "--no_metadata", "--guidance_scale", 1)

    def drawn(name, *flags):
        done = through("edit", *given, *options, "--out", tmp_path / name, *flags)
        assert done.status == 0, done.err
        return [pixels(tmp_path / name / file) for file in written(tmp_path / name) if file != "sheet.png"]

    whole = drawn("whole")
    with room_for(2) as refused:
        small = drawn("small", "--batch_size", 2)
        assert refused == []
        halved = drawn("halved", "--batch_size", 5)
        assert refused == [5]
    for batches in (small, halved):
        assert len(batches) == len(whole) == 6
        assert all(np.abs(one.astype(int) - other).max() <= 1 for one, other in zip(batches, whole, strict=True))
    assert len({picture.tobytes() for picture in whole}) == 6


@pytest.mark.parametrize("name", ["text", "pixels"])
def test_inpainting_keeps_the_rest(world, picture, tmp_path, name):
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 7, 16))
    mask.save(tmp_path / "mask.png")
    prompt = () if name == "pixels" else ("--prompt", "blue square")
    given = (*prompt, "--mask", tmp_path / "mask.png", "--steps", 3, "--resample", 2, "--count", 2)
    done = through(
        "edit", "inpaint", "--model", world.model(name), "--image", picture, *given, "--out", tmp_path / "out"
    )
    assert done.status == 0, done.err
    original, *drawn = (pixels(tmp_path / "out" / name) for name in written(tmp_path / "out") if name != "sheet.png")
    assert len(drawn) == 2
    for found in drawn:
        assert np.array_equal(found[:, 7:], original[:, 7:])
        assert not np.array_equal(found[:, :7], original[:, :7])


EDIT = ["--image", "{picture}", "--attribute"]
WRONG = [  # (arguments after the model, what the sentence says)
    ([*EDIT, "smile"], "unknown attribute 'smile'; known are red, shade: blue, shade: green, shade: red"),
    ([*EDIT, "red", "--strength", "3"], "--strength is 3; expected -1 to 1, where -0.5 to 0.5 is sensible"),
    ([*EDIT, "red", "--strength", "0"], "--strength 0 changes nothing"),
    ([*EDIT, "red", "--strength", "nan"], "--strength is nan; expected"),
    ([*EDIT, "red", "--strength", "0.1", "--strength", "0.2"], "1 attributes with 2 strengths; expected one each"),
    ([*EDIT, "red", "--strip", "0,9"], "--strip is '0,9'; expected -1 to 1, where -0.5 to 0.5 is sensible"),
    ([*EDIT, "red", "--strip", "a lot"], "--strip is 'a lot'; expected numbers such as"),
    ([*EDIT, "red", "--strip", "0,0.1", "--strength", "0.1"], "--strip takes the place of --strength"),
    ([*EDIT, "red", "--steps", "0"], "--steps is 0; expected 1 or more"),
    ([*EDIT, "red", "--steps", "300"], "--steps 300: cannot walk 200 training times in 300 steps; expected 1 to 200"),
    ([*EDIT, "red", "--invert_steps", "201"], "--invert_steps 201: cannot walk 200 training times"),
    ([*EDIT, "red", "--precision", "fp8"], "--precision is 'fp8'; expected no, bf16, fp16 or auto"),
    ([*EDIT, "red", "--out", "{tmp}/empty.txt"], "cannot write to .*: .*empty.txt is no folder"),
    (["--image", "{tmp}/empty.txt", "--attribute", "red"], "empty.txt: an empty file"),
    (["--image", "{tmp}/long.png", "--attribute", "red"], "90 x 10 pixels are too long for a square model"),
    (["--image", "{tmp}/absent.png", "--attribute", "red"], "absent.png: no such file"),
    (["--attribute", "red"], "missing option '--image'"),
]  # fmt: skip
OTHERS = [  # (command and its arguments, what the sentence says); {model} is the semantic one
    ("change --model {world:pixels} --image {picture} --attribute red", "has no semantic codes"),
    ("change --model {tmp} --image {picture} --attribute red", "{tmp}"),
    ("change --model {bare} --image {picture} --attribute red --invert_steps 2", "holds no directions; learn some"),
    ("learn --model {model}", "--labels FILE with --images DIR, --openmoji, --dataset NAME, or --positive DIR"),
    ("learn --model {model} --openmoji --positive {tmp}", "expected one source"),
    ("learn --model {model} --labels {tmp}/odd.csv", "--labels needs --images DIR"),
    ("learn --model {model} --labels {tmp}/odd.csv --images {pictures}", "odd.csv has no attribute: no column"),
    ("learn --model {model} --positive {pictures}", "--positive needs --name"),
    ("learn --model {model} --openmoji --name x", "--negative and --name are for --positive DIR"),
    ("learn --model {model} --openmoji --pair x", "--column and --pair are for --labels FILE"),
    ("interpolate --model {model} --image {picture}", "got 1 pictures; expected two"),
    ("interpolate --model {model} --image {picture} --image {picture} --count 1", "--count is 1; expected 2 or more"),
    (
        "interpolate --model {model} --image {picture} --image {picture} --morph a.mp4",
        "--morph is a.mp4; expected a file that ends in .gif, .png, .apng",
    ),
    ("interpolate --model {model} --image {picture} --image {picture} --duration 5", "--duration is 5; expected 20 or"),
    ("neighbours --model {model} --image {picture} --among {tmp}/none", "none: no such file; expected codes"),
    ("encode --model {model} --images {pictures} --out {tmp}/a.bin", "expected a file that ends in .safetensors"),
    ("encode --model {model} --images {tmp}/none --out {tmp}/a.safetensors", "none is no such folder"),
    ("encode --model {model} --images {pictures} --out {tmp}/a.safetensors --batch_size 0", "--batch_size is 0"),
    ("decode --model {model} --codes {picture} --batch_size 0", "--batch_size is 0"),
    ("decode --model {model} --codes {picture} --seed -1", "--seed is -1"),
    ("decode --model {model} --codes {picture}", "cannot be read as codes"),
    ("img2img --model {world:pixels} --image {picture} --strength 0", "--strength is 0.0; expected over 0 and 1"),
    ("img2img --model {world:pixels} --image {picture} --strength 1.5", "--strength is 1.5; expected over 0"),
    ("img2img --model {world:pixels} --image {picture} --prompt red", "and takes no prompt, got 'red'"),
    ("img2img --model {world:class_pixels} --image {picture}", "give --prompt"),
    ("img2img --model {world:class_pixels} --image {picture} --prompt rad", "unknown class 'rad'"),
    ("img2img --model {world:pixels} --image {picture} --count 0", "--count is 0"),
    ("img2img --model {world:pixels} --image {picture} --seed -1", "--seed is -1"),
    ("img2img --model {world:pixels} --image {picture} --steps 2000", "--steps 2000: cannot walk"),
    ("img2img --model {model} --image {picture}", "holds a semantic model, which samples from codes"),
    ("reprompt --model {world:pixels} --image {picture} --source a --prompt b", "is unconditional and takes no prompt"),
    ("reprompt --model {world:class_pixels} --image {picture} --source red --prompt red --steps 1000", "--steps 1000"),
    ("inpaint --model {world:pixels} --image {picture} --mask {tmp}/black.png", "the mask is empty"),
    ("inpaint --model {world:pixels} --image {picture} --mask {tmp}/white.png", "keeps nothing"),
    ("inpaint --model {world:pixels} --image {picture} --mask {tmp}/black.png --resample 0", "--resample is 0"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    (root / "empty.txt").write_text("")
    (root / "odd.csv").write_text("file_name,red\nx.png,1\ny.png,0\n00.png,1")
    for name, size, colour in (("long", (90, 10), 9), ("black", (16, 16), 0), ("white", (16, 16), 255)):
        Image.new("L", size, colour).save(root / f"{name}.png")
    semantic(root / "bare")
    return root


def refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    if "--out" not in arguments and arguments[0] != "learn":
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    done = through("edit", *arguments)
    assert done.status == 2, done.out + done.err
    (sentence,) = done.errors
    import re

    assert re.search(said, sentence), sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_changes(model, picture, bad, tmp_path, arguments, said):
    arguments = [part.format(picture=picture, tmp=bad) for part in arguments]
    more = [] if "--invert_steps" in arguments else ["--invert_steps", "2"]
    refused(["--model", str(model), *arguments, *more], said, tmp_path)


@pytest.mark.parametrize(("line", "said"), OTHERS)
def test_wrong_commands(model, picture, bad, world, tmp_path, line, said):
    parts = []
    for part in line.split():
        if part.startswith("{world:"):
            part = str(world.model(part[7:-1]))
        parts.append(part.format(model=model, picture=picture, pictures=picture.parent, tmp=bad, bare=bad / "bare"))
    refused(parts, said.replace("{tmp}", str(bad)), tmp_path)


def test_help_names_the_commands():
    done = through("edit", "--help")
    for name in (
        "change",
        "learn",
        "interpolate",
        "mix",
        "neighbours",
        "encode",
        "decode",
        "sample",
        "reprompt",
        "img2img",
        "inpaint",
        "blend",
        "textdiff",
    ):
        assert name in done.out
