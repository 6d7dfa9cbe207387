"""Every command on a semantic model whose decoder attends to the numbers of its code (EncDiff)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conditioning.labels import ClassConditioner, ClassConfig
from ldm_kit.app.models import ModelLibrary
from ldm_kit.app.options import AppOptions
from ldm_kit.metrics import dci as dci_module
from ldm_kit.models.codes import open_semantic
from ldm_kit.nets.token_unet import TokenUNet
from tests.editing.models import semantic
from tests.world import World, through

QUICK = ("--steps", 2, "--invert_steps", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory, world: World) -> Path:
    """A run's folder with a model that has a prior of classes, and learned the attribute "red"."""
    run = tmp_path_factory.mktemp("run")
    classes = ClassConditioner.build(ClassConfig(width=16, form="vector"), classes=["cat", "dog"]).eval()
    semantic(run / "model", conditioner=classes, network=TokenUNet)
    rows = ["file_name,red", *(f"{i:02d}.png,{int(i % 3 == 0)}" for i in range(24))]
    (run / "labels.csv").write_text("\n".join(rows))
    done = through("edit", "learn", "--model", run, "--images", world.pictures, "--labels", run / "labels.csv")
    assert done.status == 0, done.err
    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_model_is_one_of_tokens(model):
    assert open_semantic(model).index["unet"] == ["ldm_kit.nets.token_unet", "TokenUNet"]


@pytest.mark.parametrize(
    ("command", "pictures"),
    [
        (("change", "--image", "00.png", "--attribute", "red", "--strength", "0.5"), 3),
        (("change", "--image", "00.png", "--attribute", "red", "--strip", "-0.5,0,0.5"), 4),
        (("interpolate", "--image", "00.png", "--image", "01.png", "--count", 3), 5),
        (("mix", "--content", "00.png", "--details", "01.png"), 3),
    ],
    ids=["change", "strip", "interpolate", "mix"],
)
def test_edits_are_different_pictures(model, world: World, tmp_path, command, pictures):
    name, *given = (world.pictures / word if str(word).endswith(".png") else word for word in command)
    done = through("edit", name, "--model", model, *given, *QUICK, "--out", tmp_path)
    assert done.status == 0, done.err
    files = sorted(path for path in tmp_path.iterdir() if path.name != "sheet.png")
    assert len(files) >= pictures
    assert not np.array_equal(pixels(files[-1]), pixels(files[-2]))


def test_codes_survive_a_file(model, world: World, tmp_path):
    given = ("--images", world.pictures, "--invert_steps", 3, "--out", tmp_path / "codes.safetensors")
    assert through("edit", "encode", "--model", model, *given).status == 0
    given = ("--codes", tmp_path / "codes.safetensors", "--steps", 2, "--out", tmp_path / "o")
    done = through("edit", "decode", "--model", model, *given)
    assert done.status == 0, done.err
    assert len(list((tmp_path / "o").glob("*.png"))) >= 24
    near = ("--image", world.pictures / "00.png", "--among", world.pictures, "--count", 2, "--out", tmp_path / "n")
    assert through("edit", "neighbours", "--model", model, *near).status == 0


def test_its_prior_samples_by_class_and_by_attribute(model, tmp_path):
    quick = ("--steps", 2, "--decode_steps", 2)
    for given in (("--class", "dog"), ("--attribute", "red", "--threshold", "0.01", "--tries", 50)):
        out = tmp_path / given[0].strip("-")
        done = through("edit", "sample", "--model", model, "--count", 2, *given, *quick, "--out", out)
        assert done.status == 0, done.err
        assert len(list(out.glob("*.png"))) >= 2


def test_a_report_of_the_numbers(model, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dci_module, "TREES", 4)
    monkeypatch.setattr(dci_module, "FOREST_DEPTHS", (4,))
    given = ("--dataset", "shapes", "--count", 60, "--edits", 2, "--factor", "wall", "--estimator", "means", *QUICK)
    quick = ("--reader_count", 20, "--reader_epochs", 1, "--out", tmp_path / "r.json")
    done = through("edit", "report", "--model", model, *given, *quick)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["codes"]["dimensions"], report["edits"]["all"]["edits"]) == (8, 2)


def test_a_pdae_option_and_a_changed_folder_are_refused_in_a_sentence(model, world: World, tmp_path):
    image = ("--image", world.pictures / "00.png", "--attribute", "red", *QUICK)
    done = through("edit", "--model", model, *image, "--stop", "0.3", "--out", tmp_path / "o")
    assert (done.status, len(done.errors)) == (2, 1), done.err
    assert "--stop 0.3 leaves the last steps to the base model of a PDAE, which this model lacks" in done.err
    run = shutil.copytree(model, tmp_path / "run")
    index = run / "model" / "model_index.json"
    index.write_text(index.read_text().replace("TokenUNet", "SemanticUNet"))
    done = through("edit", "--model", run, *image, "--out", tmp_path / "o")
    assert (done.status, len(done.errors)) == (2, 1), done.err
    assert "unet is ['ldm_kit.nets.token_unet', 'SemanticUNet']" in done.err


def test_the_page_opens_it(model):
    library = ModelLibrary([model], AppOptions(device="cpu"))
    opened = library.open(library.names[0]).semantic
    assert opened is not None
    assert isinstance(opened.decoder.unet, TokenUNet)
