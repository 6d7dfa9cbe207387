"""Training from the outside: what a run's folder holds in the end, and that true processes say the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ldm_kit.methods import check_run
from tests.processes import script as process
from tests.training.helpers import CLASSES, KL
from tests.world import MODELS, World, through

ROOT = Path(__file__).parents[2]


def command(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A script as a process of its own."""
    words = [sys.executable, *[str(argument) for argument in arguments]]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["kl", "vq", *MODELS])
def test_a_finished_run_holds_everything(world: World, name):
    folder = world.model(name)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "lr" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert all(value == value for line in lines for value in line.values()), "NaN is no JSON"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["ema"]["kind"] == "power", "defaults are written too"
    assert settings["train"]["batch_size"] in (4, 8)
    assert (folder / "pictures" / "curves.png").stat().st_size > 1000
    assert len(list((folder / "pictures").glob("*-0000000*.png"))) >= 1
    assert list(folder.glob("checkpoint-*"))
    assert (folder / "model" / ("config.json" if name in ("kl", "vq") else "model_index.json")).is_file()
    assert not [path for path in folder.rglob("*") if path.name.startswith((".tmp", ".del"))]


@pytest.mark.parametrize(("script", "name"), [("train_ae", "kl"), ("train_ldm", "text")])
def test_the_resolved_config_makes_the_same_run_again(world: World, tmp_path, script, name):
    again = tmp_path / "again"
    assert through(script, world.model(name) / "config.yaml", f"run={again}").status == 0
    for file in sorted((world.model(name) / "model").rglob("*.safetensors")):
        twin = again / "model" / file.relative_to(world.model(name) / "model")
        assert file.read_bytes() == twin.read_bytes(), file.name


@pytest.mark.parametrize(("script", "tree"), [("train_ae", KL), ("train_ldm", CLASSES)])
def test_a_config_can_come_from_a_pipe(script, tree, monkeypatch):
    """Which can be read once."""
    configs = []
    monkeypatch.setattr("ldm_kit.methods.train.train", lambda config, *_, resume: configs.append((config, resume)))
    reader, writer = os.pipe()
    os.write(writer, yaml.safe_dump({**tree, "run": "a"}).encode())
    os.close(writer)
    try:
        found = through(script, f"/dev/fd/{reader}", "data.path=b", "--resume", "latest")
    finally:
        os.close(reader)
    assert found.status == 0, found.err
    assert configs == [(check_run({**tree, "run": "a", "data": {**tree["data"], "path": "b"}}, "the same"), "latest")]


def test_nothing_held_out(world: World, tmp_path):
    tree = world.ldm("text", "none-held-out") | {"run": str(tmp_path / "run")}
    tree["data"] = {**tree["data"], "heldout": 0.0}
    found = through("train_ldm", world.write(tree, "none.yaml"))
    assert found.status == 0, found.err
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "nothing held out" in found.out + found.err


def test_as_many_held_out_as_trained_on_share_a_latents_folder(world: World, tmp_path):
    tree = world.ldm("text", "halves") | {"run": str(tmp_path / "run"), "latents": str(tmp_path / "latents")}
    tree["data"] = {**tree["data"], "heldout": 0.5}
    assert through("train_ldm", world.write(tree, "halves.yaml")).status == 0
    assert {path.name for path in (tmp_path / "latents").iterdir()} == {"train", "heldout"}


def test_resume_goes_on(world: World, tmp_path):
    tree = world.ldm("class", "resumed") | {"run": str(tmp_path / "run")}
    config = world.write(tree, "resumed.yaml")
    assert through("train_ldm", config).status == 0
    assert through("train_ldm", config, "train.steps=12", "--resume", "latest").status == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, 13))
    assert (tmp_path / "run" / "checkpoint-00000012").is_dir()


def test_the_three_scripts_as_processes(world: World, tmp_path):
    ae = world.write(world.ae("kl", "unused") | {"run": "runs/ae"}, "process-ae.yaml")
    ldm = world.write(world.ldm("text", "unused") | {"run": "runs/ldm", "autoencoder": "runs/ae"}, "process-ldm.yaml")
    first = process(ROOT / "train_ae.py", ae, "train.steps=1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = process(ROOT / "train_ldm.py", ldm, "train.steps=1", "sample.steps=1", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    third = process(ROOT / "sample.py", "runs/ldm", "red square", "--steps", "2", cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert "1 pictures in samples" in third.stdout
    for said in (first.stderr, second.stderr, third.stderr):
        assert "Traceback" not in said
        assert "Warning" not in said
    with Image.open(tmp_path / "samples" / "00000000-00000-red-square.png") as picture:
        assert picture.size == (16, 16)


@pytest.mark.parametrize("script", ["train_ae.py", "train_ldm.py"])
def test_a_mistake_as_a_process(tmp_path, script):
    """The config is read before torch is imported: a wrong path is said at once."""
    found = command("-X", "importtime", ROOT / script, "nowhere.yaml", cwd=tmp_path)
    lines = found.stderr.splitlines(keepends=True)
    imports = [line for line in lines if line.startswith("import time:")]
    assert imports
    assert not [line for line in imports if line.split("|")[-1].strip() == "torch"]
    assert (found.returncode, found.stdout) == (2, "")
    sentence = "error: cannot read the config nowhere.yaml: No such file or directory; expected a YAML file\n"
    assert [line for line in lines if line not in imports] == [sentence]


def test_help_shows_every_flag():
    found = command("sample.py", "--help")
    assert found.returncode == 0
    for flag in ("--prompts_file", "--guidance_scale", "--negative_prompt", "--no_metadata", "--batch_size"):
        assert flag in found.stdout
    assert "Sample every prompt" in found.stdout


@pytest.mark.slow
def test_the_tiny_configs(tmp_path, monkeypatch):
    """All of them, in an order in which autoencoders come first; then a picture of each."""
    monkeypatch.chdir(tmp_path)
    files = sorted((ROOT / "configs").rglob("*_tiny*.yaml"))
    assert len(files) == 6
    for file in files:
        found = through("train_ae" if file.stem.startswith("ae") else "train_ldm", file)
        assert found.status == 0, found.err
    prompts = {
        "ldm_tiny": ["woman astronaut"],
        "ldm_tiny_class": ["animals"],
        "ldm_tiny_flow": ["cat"],
        "ldm_tiny_uncond": [],
    }
    for run, prompt in prompts.items():
        found = through("sample", f"runs/openmoji/{run}", *prompt, "--steps", 2, "--out", tmp_path / run)
        assert found.status == 0, found.err
