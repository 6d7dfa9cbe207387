"""edit.py sample, --stop and --mode: what they write and say, and one sentence for every wrong input."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conditioning.labels import ClassConditioner, ClassEmbedder
from conditioning.none import NoCondition
from ldm_kit.viz.png import read_metadata
from tests.editing.models import semantic, shifted
from tests.methods.semantic_toys import base
from tests.nets.originals import perturbed
from tests.world import World, through

QUICK = ("--steps", 3, "--decode_steps", 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory, world: World) -> dict[str, Path]:
    """Runs with a prior of classes (which knows "rose" from 12 examples) and a plain one, and a PDAE without."""
    root = tmp_path_factory.mktemp("models")
    classes = ClassConditioner(perturbed(ClassEmbedder(["b", "t"], 8, "vector")))
    semantic(root / "told" / "model", conditioner=classes)
    semantic(root / "plain" / "model", conditioner=NoCondition())
    semantic(root / "bare" / "model")
    shifted(root / "pdae" / "model", base(root / "base"))
    for name, shade in (("rose", 0), ("other", 1)):
        (root / name).mkdir()
        for i in range(shade, 24, 3):
            shutil.copy(world.pictures / f"{i:02d}.png", root / name)
    for run in ("told", "pdae"):
        given = ("--positive", root / "rose", "--negative", root / "other", "--name", "rose")
        assert through("edit", "learn", "--model", root / run, *given).status == 0
    return {path.name: path for path in root.iterdir()}


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("0*.png")):
        with Image.open(path) as image:
            found[path.name] = np.asarray(image.convert("RGB")).astype(int)
    return found


def sampled(model: Path, out: Path, *given: object) -> dict[str, np.ndarray]:
    done = through("edit", "sample", "--model", model, *QUICK, "--out", out, *given)
    assert done.status == 0, done.err
    return pixels(out)


def test_pictures_of_a_class(models, tmp_path):
    """Each picture belongs to its seed and class, whatever the count."""
    many = sampled(models["told"], tmp_path / "many", "--class", "t", "--count", 3, "--seed", 5)
    assert len(many) == 3
    assert (tmp_path / "many" / "sheet.png").exists()
    (one,) = sampled(models["told"], tmp_path / "one", "--prompt", "t", "--count", 1, "--seed", 6).values()
    assert np.abs(one - list(many.values())[1]).max() <= 1
    (other,) = sampled(models["told"], tmp_path / "other", "--class", "b", "--count", 1, "--seed", 6).values()
    assert not np.array_equal(one, other)
    given = ("--class", "b", "--count", 1, "--seed", 6, "--guidance_scale", 4)
    (guided,) = sampled(models["told"], tmp_path / "guided", *given).values()
    assert not np.array_equal(guided, other)
    about = json.loads(read_metadata(tmp_path / "guided" / "sheet.png")["edit"])
    assert about == {"sampled": 1, "prompt": "b", "steps": 3, "guidance_scale": 4.0, "decode_steps": 2}


def test_without_a_class(models, tmp_path):
    assert len(sampled(models["plain"], tmp_path / "plain", "--count", 2)) == 2
    assert len(sampled(models["told"], tmp_path / "told", "--count", 2)) == 2


def test_codes_are_drawn_until_they_have_what_a_few_examples_have(models, tmp_path):
    given = ("--count", 6, "--attribute", "Rose", "--threshold", 0.8, "--seed", 1)
    done = through("edit", "sample", "--model", models["told"], *QUICK, *given, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    rate, tried = re.search(r"([\d.]+)% of (\d+) codes passed: Rose with a probability over 0.8", done.out).groups()
    assert int(tried) > 6
    assert float(rate) == pytest.approx(100 * 6 / int(tried), abs=0.06)
    shares = [int(re.search(r"-(\d+)\.png", name)[1]) for name in pixels(tmp_path / "out")]
    assert len(shares) == 6
    assert min(shares) >= 80


def test_old_words_are_read_with_a_warning(models, world, tmp_path, caplog):
    new = sampled(models["plain"], tmp_path / "new", "--count", 1)
    done = through("edit", "draw", "--model", models["plain"], *QUICK, "--count", 1, "--out", tmp_path / "old")
    assert done.status == 0, done.err
    assert "draw is now called sample; the old name is read for one more release" in done.err + caplog.text
    for name, picture in new.items():
        assert np.array_equal(pixels(tmp_path / "old")[name], picture)
    images = ("--image", world.pictures / "00.png", "--image", world.pictures / "01.png", "--count", 2)
    steps = ("--steps", 2, "--invert_steps", 2, "--out", tmp_path / "along")
    done = through("edit", "interpolate", "--model", models["pdae"], *images, *steps, "--along", "trajectory")
    assert done.status == 0, done.err
    assert "warning: --along is now called --mode; the old name is read for one more release" in done.err
    assert json.loads(read_metadata(tmp_path / "along" / "sheet.png")["edit"])["mode"] == "trajectory"


def test_codes_clipped_as_published(models, tmp_path):
    free, clipped = (
        sampled(models["plain"], tmp_path / clip, "--count", 2, "--clip", clip) for clip in ("none", "published")
    )
    assert any(not np.array_equal(one, other) for one, other in zip(free.values(), clipped.values(), strict=True))
    assert json.loads(read_metadata(tmp_path / "published" / "sheet.png")["edit"])["clip"] == "published"
    assert "clip" not in read_metadata(tmp_path / "none" / "sheet.png")["edit"]


def test_stop_leaves_the_end_to_the_frozen_model(models, world, tmp_path):
    given = ("--model", models["pdae"], "--image", world.pictures / "00.png", "--attribute", "rose", "--strength", 0.5)
    found = {}
    for stop in (0, 0.5, 1):
        out = tmp_path / str(stop)
        done = through("edit", *given, "--steps", 6, "--invert_steps", 3, "--stop", stop, "--out", out)
        assert done.status == 0, done.err
        found[stop] = list(pixels(out).values())
    assert not np.array_equal(found[0][1], found[0.5][1])
    assert np.array_equal(found[1][1], found[1][2]), "the base model takes no code"
    assert json.loads(read_metadata(tmp_path / "0.5" / "sheet.png")["edit"])["stop"] == 0.5
    assert "stop" not in read_metadata(tmp_path / "0" / "sheet.png")["edit"]


@pytest.mark.parametrize("command", ["interpolate", "mix", "decode"])
def test_every_command_that_decodes_may_stop(models, world, tmp_path, command):
    model = ("--model", models["pdae"])
    match command:
        case "interpolate":
            given = ("--image", world.pictures / "00.png", "--image", world.pictures / "01.png", "--count", 3)
        case "mix":
            given = ("--content", world.pictures / "00.png", "--details", world.pictures / "01.png")
        case _:
            file = tmp_path / "codes.safetensors"
            through("edit", "encode", *model, "--images", world.pictures, "--no_details", "--out", file)
            given = ("--codes", file)
    steps = ("--steps", 6, *(() if command == "decode" else ("--invert_steps", 3)))
    outs = []
    for stop in (0, 0.5):
        done = through("edit", command, *model, *given, *steps, "--stop", stop, "--out", tmp_path / str(stop))
        assert done.status == 0, done.err
        outs.append(list(pixels(tmp_path / str(stop)).values()))
    assert any(not np.array_equal(one, other) for one, other in zip(*outs, strict=True))


def test_trajectories_share_their_ends_with_codes_and_go_another_way(models, world, tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (8, 8, 3), np.uint8) * 255  # whose code lies far away
    Image.fromarray(noise).save(tmp_path / "noise.png")
    images = ("--image", world.pictures / "00.png", "--image", tmp_path / "noise.png", "--count", 5)
    found = {}
    for mode in ("latent", "trajectory"):
        given = (*images, "--mode", mode, "--steps", 6, "--invert_steps", 6, "--out", tmp_path / mode)
        done = through("edit", "interpolate", "--model", models["pdae"], *given)
        assert done.status == 0, done.err
        found[mode] = np.stack(list(pixels(tmp_path / mode).values()))
    gaps = np.abs(found["latent"] - found["trajectory"]).max(axis=(1, 2, 3))
    assert gaps[[0, 1, 5, 6]].max() <= 1
    assert gaps[2:5].min() > 1
    assert json.loads(read_metadata(tmp_path / "trajectory" / "sheet.png")["edit"])["mode"] == "trajectory"


WRONG = [  # (command and its arguments, what the sentence says)
    ("sample --model {bare}", "has no prior to sample codes from; train one with `method: prior`"),
    ("sample --model {base}", "has no semantic codes"),
    ("sample --model {told} --class x", "unknown class 'x'"),
    ("sample --model {plain} --class t", "trained without classes and captions"),
    ("sample --model {plain} --guidance_scale 2", "guidance_scale is 2, but there is no class or prompt to guide to"),
    ("sample --model {told} --class t --guidance_scale -1", "--guidance_scale is -1.0; expected 0 or more"),
    ("sample --model {told} --attribute rose --threshold 1", "--threshold is 1.0; expected 0 or more and under 1"),
    ("sample --model {told} --threshold 0.7", "--threshold is for --attribute NAME"),
    ("sample --model {told} --attribute smile", "unknown attribute 'smile'; known are rose"),
    ("sample --model {plain} --attribute rose", "holds no directions; learn some"),
    ("sample --model {told} --attribute rose --steps 2 --tries 1", "over 0.5 within --tries 1 each; lower --threshold"),
    ("sample --model {told} --tries 0 --attribute rose", "--tries is 0"),
    ("sample --model {told} --count 0", "--count is 0"),
    ("sample --model {told} --steps 0", "--steps is 0"),
    ("sample --model {told} --steps 300", "--steps 300: cannot walk 200 training times in 300"),
    ("sample --model {told} --decode_steps 0", "--decode_steps is 0"),
    ("sample --model {told} --decode_steps 300", "--decode_steps 300: cannot walk 200 training times"),
    ("sample --model {told} --stop 0.3", "--stop 0.3 leaves the last steps to the base model of a PDAE"),
    ("mix --model {told} --content {picture} --details {picture} --invert_steps 2 --stop 0.3", "--stop 0.3 leaves"),
    ("mix --model {pdae} --content {picture} --details {picture} --stop 1.5", "--stop is 1.5; expected 0 to 1"),
    ("decode --model {told} --codes {picture} --stop 0.3", "--stop 0.3 leaves"),
    (
        "interpolate --model {told} --image {picture} --image {picture} --invert_steps 2 --mode trajectory",
        "--mode trajectory mixes the gradients that a PDAE adds",
    ),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_wrong_inputs(models, world, tmp_path, line, said):
    places = {**models, "picture": world.pictures / "00.png"}
    done = through("edit", *(part.format(**places) for part in line.split()), "--out", tmp_path / "out")
    assert done.status == 2, done.out + done.err
    (sentence,) = done.errors
    assert said in sentence
    assert not (tmp_path / "out").exists()
