"""A checkpoint becomes the model that the run would have saved there, and opens wherever a model does."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm_kit import load
from ldm_kit.config import UserError
from ldm_kit.data.sources import load as load_pictures
from ldm_kit.editing.context import ModelContext
from ldm_kit.methods.export import export, saved_model
from ldm_kit.methods.train import train
from ldm_kit.models import hub
from tests.training.helpers import CLASSIFIER, DIFFAE, KL, TEXT, VQ, picture_folder, reset, settings
from tests.world import World, through

KINDS = {"kl": KL, "vq": VQ, "text": TEXT, "classifier": CLASSIFIER, "diffae": DIFFAE}
QUICK = ("train.steps=2", "train.checkpoint_every=1", "log.evaluate_every=2", "log.pictures=2", "data.heldout=0.25")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set", count=12)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))


def finished(kind, pictures, run, *overrides, data=None):
    reset()
    solver = ("sample.solver=ddim", "sample.steps=1") if kind == "text" else ()
    config = settings(KINDS[kind], pictures, run, *QUICK, *solver, *overrides)
    train(config, data=data)
    return run


def files_of(model: Path) -> dict[str, bytes]:
    return {str(path.relative_to(model)): path.read_bytes() for path in sorted(model.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_checkpoint_is_the_finished_model(kind, pictures, tmp_path, cache):
    run = finished(kind, pictures, tmp_path / "run")
    made = export(run)
    assert made == run / "model-checkpoint-00000002"
    assert files_of(made) == files_of(run / "model")
    assert files_of(export(run, "1", tmp_path / "early")) != files_of(made)


def test_an_early_or_the_best_checkpoint_is_the_model_of_a_shorter_run(pictures, tmp_path, cache):
    short = finished("text", pictures, tmp_path / "short", "train.steps=1", "optim.warmup=0")
    run = finished("text", pictures, tmp_path / "run", "optim.warmup=0")
    (run / "best.json").write_text(json.dumps({"checkpoint": "checkpoint-00000001"}))
    shutil.rmtree(run / "model")
    assert export(run, "best") == run / "model"
    assert files_of(run / "model") == files_of(short / "model")
    moved = pictures.rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"cannot make a model of .*checkpoint-00000001, which needs the run's pictures"
    ):
        export(run / "checkpoint-00000001", out=tmp_path / "none")
    again = export(run / "checkpoint-00000001", None, tmp_path / "again", [f"data.path={moved}"])
    assert files_of(again) == files_of(short / "model")
    captions = moved / "metadata.jsonl"
    captions.write_text(captions.read_text().replace("kind 1", "kind 7"))
    with pytest.raises(UserError, match="the pictures, their captions or the autoencoder have changed"):
        export(run, "1", tmp_path / "none", [f"data.path={moved}"])
    moved.rename(pictures)
    assert not (tmp_path / "none").exists()


def test_pictures_of_a_program_are_asked_for(pictures, tmp_path, cache):
    data = load_pictures(settings(KL, pictures, tmp_path / "unused").data)
    run = finished("kl", pictures, tmp_path / "run", data=data)
    with pytest.raises(UserError, match=r"data\.source is given: the pictures came from Python and are not saved"):
        export(run)
    assert files_of(export(run, data=data)) == files_of(run / "model")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("best", "has no best checkpoint: its run keeps one where train.keep_best names a figure"),
        ("7", "holds no checkpoint 7; known: checkpoint-00000004, checkpoint-00000008"),
        ("nowhere", "holds no checkpoint nowhere; known: checkpoint-00000004"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(world: World, tmp_path, name, said):
    found = through("sample", world.model("text"), "red square", "--checkpoint", name, "--out", tmp_path / "out")
    assert found.status == 2
    assert said in found.errors[0]
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_samples_as_the_model_does(world: World, tmp_path):
    run = world.model("text")
    pixels = {}
    for name, model, *flags in (
        ("model", run),
        ("folder", run / "checkpoint-00000008"),
        ("last", run, "--checkpoint", "last"),
        ("early", run, "--checkpoint", "4"),
    ):
        out = tmp_path / name
        found = through("sample", model, "red square", "--steps", "2", "--out", out, *flags)
        assert found.status == 0, found.err
        with Image.open(out / "00000000-00000-red-square.png") as picture:
            pixels[name] = picture.tobytes()
    assert pixels["folder"] == pixels["last"] == pixels["model"]
    assert pixels["early"] != pixels["model"]


def test_a_checkpoint_opens_in_python_and_for_edits(world: World):
    run = world.model("text")
    expected = load(run).unet.state_dict()
    context = ModelContext(model=run, checkpoint="checkpoint-00000008")
    for pipeline in (load(run / "checkpoint-00000008"), context.load_pipeline()):
        assert all(torch.equal(value, expected[name]) for name, value in pipeline.unet.state_dict().items())
    assert context.folder == saved_model(run / "checkpoint-00000008"), "made once"


def test_models_in_the_cache_that_were_not_used_for_long_are_removed(tmp_path, monkeypatch, caplog):
    """Never the one that is asked for, one that another process may be reading, or one with learned directions."""
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path))
    monkeypatch.setattr("ldm_kit.methods.export.KEPT", 3)
    made = []
    monkeypatch.setattr("ldm_kit.methods.export.export", lambda run, out, device: (made.append(out), out.mkdir()))

    def checkpoint(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "trainer_state.json").touch()
        (tmp_path / name / "manifest.json").write_text(name)
        return tmp_path / name

    (tmp_path / "models").mkdir()
    folders = {name: saved_model(checkpoint(name)) for name in "abcd"}
    assert len(made) == 4, "all were used within the hour"
    (folders["a"] / "directions").mkdir()
    for age, name in enumerate("dcba"):
        os.utime(folders[name], (time.time() - 7200 - age,) * 2)
    assert saved_model(checkpoint("b")) == folders["b"]
    assert len(made) == 4, "and b is now the last used"
    folders["e"] = saved_model(checkpoint("e"))
    assert {name for name, folder in folders.items() if folder.exists()} == {"a", "b", "d", "e"}
    assert f"removed {folders['c']}" in caplog.text


def test_a_run_that_is_not_finished_says_what_to_do(world: World, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world.model("text") / "checkpoint-00000008", run / "checkpoint-00000008")
    found = through("sample", run, "red square", "--out", tmp_path / "out")
    assert found.status == 2
    assert "has no finished model yet; --checkpoint last or best takes one of its checkpoints" in found.errors[0]


def test_a_damaged_checkpoint_and_a_used_folder_are_refused(world: World, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world.model("text") / "checkpoint-00000008", run / "checkpoint-00000008")
    with pytest.raises(UserError, match="exists already; name a new folder"):
        export(run, out=tmp_path)
    weights = run / "checkpoint-00000008" / "ema" / "unet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"is damaged: the contents of ema/unet\.safetensors have changed"):
        export(run / "checkpoint-00000008")
    assert not (run / "model").exists()


def test_a_name_on_the_hub_is_a_model_where_there_is_no_such_folder(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, files, complete, **options):
        asked.append((name, options["revision"]))
        return tmp_path

    monkeypatch.setattr(hub.sources, "snapshot", snapshot)
    monkeypatch.chdir(tmp_path)
    assert saved_model("me/faces") == tmp_path
    assert saved_model("me/faces@v2") == tmp_path
    assert asked == [("me/faces", None), ("me/faces", "v2")]
    (tmp_path / "me" / "faces").mkdir(parents=True)
    assert saved_model("me/faces") == Path("me/faces")
    assert len(asked) == 2


def test_a_model_that_is_neither_a_folder_nor_on_the_hub_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.sources, "snapshot", lambda *arguments, **options: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot find or download runs/absent, the model: there is no such folder"):
        saved_model("runs/absent")
