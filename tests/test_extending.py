"""Additions from another package: found by entry point, trained, sampled and saved, with no file of ours edited."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ldm_kit.config import UserError
from ldm_kit.data.images import InMemory, Record, Split, subset
from ldm_kit.methods import find_method, method_names, read_run
from ldm_kit.methods.train import train
from tests.processes import script
from tests.training.helpers import picture_folder, reset

ROOT = Path(__file__).parents[1]
# One line an addition; a sampler (ldm_kit.samplers) and a conditioner (ldm_kit.conditioners) go here, and into
# tests/extension/toy_kit.py.
ENTRY_POINTS = """\
[ldm_kit.methods]
toy = toy_kit:Toy
absent = toy_kit:Absent
function = toy_kit:grid
"""
OWN = ["autoencoder", "classifier", "consistency", "diffae", "latent", "pdae", "prior"]
TREE = {
    "method": "toy",
    "flip": True,
    "optim": {"lr": 1e-2, "warmup": 0},
    "train": {"steps": 6, "batch_size": 4, "checkpoint_every": 3},
    "log": {"every": 1, "evaluate_every": 3, "tensorboard": False},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages that holds the toy distribution."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "tests" / "extension" / "toy_kit.py", folder)
    info = folder / "toy_kit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy_kit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(autouse=True)
def alone():
    """Forget what an earlier test has told accelerate."""
    reset()


@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))


def pictures(count: int = 20) -> Split:
    """Random pictures in memory, the last four held out."""
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = InMemory([Record(str(i), "", None) for i in range(count)], [], pixels, "made up")
    return Split(subset(whole, range(count - 4)), subset(whole, range(count - 4, count)), None)


def finished(run: Path, steps: int = 6) -> list[dict[str, float]]:
    """Check what a finished run holds, and return its metrics."""
    assert (run / "model" / "toy.safetensors").is_file()
    assert (run / "pictures" / f"samples-{steps:08d}.png").is_file()
    assert (run / "pictures" / "curves.png").is_file()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {key for line in metrics for key in line} > {"toy_loss", "toy_grad_norm", "heldout_loss"}
    return metrics


def test_a_method_is_found_by_its_entry_point(installed):
    assert find_method("toy").__module__ == "toy_kit"
    assert method_names() == [*OWN, "absent", "function", "toy"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latnet", "unknown method 'latnet'; expected one of autoencoder, classifier, .*, toy"),
        ("base", "unknown method 'base'"),  # a module of ours, but no method
        ("latent_config", "unknown method 'latent_config'"),
        ("os.path", "unknown method 'os.path'"),
        ("toy_kit:Toy", "unknown method 'toy_kit:Toy'"),
        ("absent", "method 'absent' is toy_kit:Absent, which cannot be imported"),
        ("function", "method 'function' is toy_kit:grid; expected a class of ldm_kit.methods.base.Method"),
        (["toy"], r"unknown method \['toy'\]"),
    ],
)
def test_nothing_else_is_imported(installed, tmp_path, name, message):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TREE, "method": name}))
    with pytest.raises(UserError, match=message) as refused:
        read_run(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_it_is_trained_on_pictures_in_memory(installed, layout, tmp_path):
    run = tmp_path / "run"
    model = train({**TREE, "run": str(run)}, ["seed=1"], data=pictures())
    assert model == run / "model"
    metrics = finished(run)
    assert [line["step"] for line in metrics if "toy_loss" in line] == [1, 2, 3, 4, 5, 6]
    config = read_run(run / "config.yaml")
    assert (config.method, config.seed, config.data.source) == ("toy", 1, "given")
    with pytest.raises(UserError, match=r"data\.source is given: the pictures came from Python and are not saved"):
        train(run / "config.yaml", [f"run={tmp_path / 'again'}"])


def test_it_resumes_bit_for_bit_and_on_the_same_pictures_only(installed, tmp_path):
    for run, stops in (("whole", [6]), ("part", [3, 6])):
        for i, steps in enumerate(stops):
            train(
                {**TREE, "run": str(tmp_path / run), "optim": {"lr": 1e-2, "lr_schedule": "constant", "warmup": 0}},
                [f"train.steps={steps}"],
                data=pictures(),
                resume="latest" if i else None,
            )
    whole, part = (load_file(tmp_path / run / "model" / "toy.safetensors") for run in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    with pytest.raises(UserError, match=r"the pictures, .* have changed"):
        train(tmp_path / "part" / "config.yaml", ["train.steps=8"], data=pictures(24), resume="latest")


def test_the_commands_config_is_all_it_takes(site, tmp_path):
    tree = {**TREE, "run": "run", "data": {"source": "folder", "path": "pictures", "resolution": 8, "heldout": 0.2}}
    picture_folder(tmp_path / "pictures", side=8)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    done = script(ROOT / "train_ldm.py", "toy.yaml", "seed=2", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    finished(tmp_path / "run")
    assert "training pictures, " in done.stdout + done.stderr


def test_one_process_trains_twice(installed, tmp_path):
    for number in (1, 2):
        train({**TREE, "run": str(tmp_path / str(number))}, data=pictures())
    assert (tmp_path / "2" / "model" / "toy.safetensors").is_file()
