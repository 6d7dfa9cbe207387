"""Wrong input to the training scripts: exit status 2, one sentence with what, where and what was expected; no trace."""

import fcntl
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.world import Outcome, World, through
from tests.wrong_trainings import AE, CLASSIFIER, LDM

OWN = ("wrong-ae", "wrong-ldm", "in-use", "held")  # runs that may leave their config and lock


def damage(world: World) -> None:
    """Folders that are wrong in one way each."""
    for name in ("empty", "mixed/a", "broken", "badlines", "single", "alike/only", "damaged/train"):
        (world.root / name).mkdir(parents=True)
    for name in ("broken/a.png", "broken/b.png", "damaged/train/latents-00000.safetensors", "text.safetensors"):
        (world.root / name).write_text("no such thing")
    (world.root / "badlines" / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_')
    alike = [f"alike/only/{number}.png" for number in range(3)]
    for name in ("mixed/a.png", "mixed/a/b.png", "single/a.png", *alike):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(world.root / name)
    model = world.model("kl") / "model"
    for name in ("otherclass", "corrupt", "lacking", "pickled", "unscaled"):
        shutil.copytree(model, world.root / name, ignore=shutil.ignore_patterns("manifest.json"))
    _set(world.root / "otherclass" / "config.json", _class_name="UNet2DModel")
    _set(world.root / "unscaled" / "config.json", scaling_factor=9.0)
    weights = "diffusion_pytorch_model.safetensors"
    (world.root / "corrupt" / weights).write_bytes((model / weights).read_bytes()[:-9])
    (world.root / "pickled" / weights).rename(world.root / "pickled" / "diffusion_pytorch_model.bin")
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / weights)
    tensors.pop("decoder.conv_in.bias")
    save_file(tensors, world.root / "lacking" / weights, metadata={"format": "pt"})
    stale = world.ldm("text", "stale-run") | {
        "latents": str(world.root / "stale"),
        "data": {**_data(world), "heldout": 0.3},
    }
    assert through("train_ldm", world.write(stale, "stale.yaml")).status == 0


def _data(world: World) -> dict[str, object]:
    return {"source": "folder", "path": str(world.pictures), "resolution": 16}


def _set(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def spoilt(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world of its own, in which some things are wrong."""
    own = World(tmp_path_factory.mktemp("spoilt"), dict(world.trained))
    shutil.copytree(world.pictures, own.pictures)
    own.trained.clear()
    own.model("text")
    damage(own)
    return own


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with size and time of change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def complaint(found: Outcome) -> str:
    """The one sentence, once it is sure that there is nothing else."""
    assert found.status == 2, found.err
    assert len(found.errors) == 1, found.err
    assert "Traceback" not in found.err
    assert len(found.errors[0]) < 1200
    return found.errors[0]


def refused(world: World, script: str, config: dict[str, object], overrides: list[str], said: str) -> None:
    path = world.write(config, "wrong.yaml")
    before = tree(world.root)
    filled = [text.replace("{root}", str(world.root)) for text in overrides]
    sentence = complaint(through(script, path, *filled))
    assert re.search(said, sentence), sentence
    after = tree(world.root)
    changed = {name for name in before if after.get(name) != before[name] and Path(name).parent.name not in OWN}
    changed = {name for name in changed if not name.endswith(".lock")}
    assert not changed, "something was lost or changed"
    written = {Path(name).name for name in after.keys() - before.keys()}
    assert written <= {"config.yaml", ".lock", "latents-00000.safetensors"}, written


@pytest.mark.parametrize(
    ("overrides", "said"), AE, ids=lambda value: None if isinstance(value, str) else " ".join(value)
)
def test_train_ae(spoilt, overrides, said):
    config = spoilt.ae("kl", "wrong-ae")
    if "run={root}/kl" in overrides:
        config["run"] = str(spoilt.root / "kl")
    refused(spoilt, "train_ae", config, overrides, said)


@pytest.mark.parametrize(
    ("overrides", "said"), LDM, ids=lambda value: None if isinstance(value, str) else " ".join(value)
)
def test_train_ldm(spoilt, overrides, said):
    refused(spoilt, "train_ldm", spoilt.ldm("text", "wrong-ldm"), overrides, said)


@pytest.mark.parametrize(
    ("overrides", "said"), CLASSIFIER, ids=lambda value: None if isinstance(value, str) else " ".join(value)
)
def test_train_a_classifier(spoilt, overrides, said):
    refused(spoilt, "train_ldm", spoilt.classifier("classifier", "wrong-ldm"), overrides, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the config .*; expected a YAML file"),
        ("- a\n- b\n", "holds a list; expected a mapping"),
        ("run: [", "is not valid YAML"),
        ("", "missing key 'run'; missing key 'data'; missing key 'train'"),
        ("run: !!python/object/apply:os.system [true]", "is not valid YAML"),
    ],
)
@pytest.mark.parametrize("script", ["train_ae", "train_ldm"])
def test_config_files(tmp_path, script, text, said):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    assert re.search(said, complaint(through(script, path)))
    assert list(tmp_path.iterdir()) == ([path] if text is not None else [])


def test_no_config_at_all():
    assert "missing argument 'config'; see --help" in complaint(through("train_ae"))


def test_lpips_without_weights(spoilt, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", _no_network)
    refused(
        spoilt, "train_ae", spoilt.ae("kl", "wrong-ae"), ["perceptual.spec=lpips"], "LPIPS needs the ImageNet weights"
    )


def _no_network(*arguments: object, **named: object) -> None:
    raise OSError("no network")


def test_a_run_in_use(spoilt):
    folder = spoilt.root / "in-use"
    folder.mkdir()
    (folder / ".lock").write_text("process 1 on elsewhere")
    with (folder / ".lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(spoilt, "train_ae", spoilt.ae("kl", "in-use"), [], "in use by process 1 on elsewhere")


def test_in_use_by_another_process(spoilt):
    """The lock is the system's: another process holds it, and it is free when that one is gone."""
    folder = spoilt.root / "held"
    folder.mkdir()
    code = f"import fcntl; file = open({str(folder / '.lock')!r}, 'a+'); fcntl.flock(file, fcntl.LOCK_EX)"
    code += "; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused(spoilt, "train_ae", spoilt.ae("kl", "held"), [], "in use by another process")
    assert through("train_ae", spoilt.write(spoilt.ae("kl", "held"), "held.yaml")).status == 0


def test_there_are_many_kinds():
    assert len(AE) + len(LDM) > 80
