"""Runs of release 0.1: their models open, and their checkpoints resume under their own configs.

tests/fixtures/v0_1 was written by that release: 4 steps of each method on tests/fixtures/v0_1/pictures, with the
checkpoint of step 2 and the finished model.
"""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autoencoder import saved
from ldm_kit.config import OldNameWarning, UserError, check, rename_old_keys, tree
from ldm_kit.methods import read_run
from ldm_kit.methods.export import export
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.semantic import SemanticModel
from ldm_kit.nets.unet import UNetConfig
from tests.world import through

OLD = Path(__file__).parent / "fixtures" / "v0_1"
OPENERS = {
    "ae": saved.load,
    "latent": Pipeline.load,
    "base": Pipeline.load,
    "pixels": Pipeline.load,
    "classifier": NoisyClassifier.load,
    "diffae": SemanticModel.load,
    "pdae": SemanticModel.load,
    "prior": SemanticModel.load,
}
RESUMED = [name for name in OPENERS if name != "base"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A copy of the old runs, and its folder as the current one, by which their configs name each other."""
    folder = shutil.copytree(OLD, tmp_path / "runs")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    return folder


def check_saved_options(run: Path) -> None:
    """The model has the sampling options of its run's config, and the manifest knows them."""
    method, saved = run.name, run / "model" / "sampling.json"
    section = {"latent": "sampling", "pixels": "sampling", "diffae": "reconstruction", "pdae": "reconstruction"}.get(
        method, method
    )
    if method in ("ae", "classifier"):
        assert not saved.exists(), "nothing is sampled"
        return
    config = tree(run / "config.yaml")
    sample = {name: value for name, value in config["sample"].items() if name != "prompts"}
    dropout = {"condition_dropout": config["condition_dropout"]} if "condition_dropout" in config else {}
    assert json.loads(saved.read_text())[section] == {**sample, **dropout}
    assert "sampling.json" in json.loads((run / "model" / "manifest.json").read_text())["files"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize("name", OPENERS)
def test_every_model_opens(runs, name):
    model = OPENERS[name](str(runs / name / "model"))
    if isinstance(model, Pipeline):
        pictures = torch.cat(list(model.generate(["red square 1" if name == "latent" else 0], [0])))
        assert pictures.shape == (1, 3, 16, 16)
    if isinstance(model, SemanticModel):
        pictures = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        assert model.decode(model.encode(pictures), None, 2).shape == (1, 3, 16, 16)


def weights(model: Path) -> torch.Tensor:
    files = sorted(model.rglob("*.safetensors"))
    return torch.cat([value.float().flatten() for file in files for _, value in sorted(load_file(file).items())])


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.endswith("loss")} for line in lines]


@pytest.mark.parametrize("name", RESUMED)
def test_every_checkpoint_resumes_under_its_old_config(runs, name, monkeypatch):
    monkeypatch.setenv("LDM_KIT_CHANNELS_LAST", "0")  # as they were trained; torch draws dropout in memory order
    shutil.rmtree(runs / name / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("default", OldNameWarning)
        outcome = through("train_ae" if name == "ae" else "train_ldm", f"{name}/config.yaml", "--resume", "latest")
    assert outcome.status == 0, outcome.err
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {name}/config.yaml: rename optim.decay to optim.lr_schedule, ")
    assert warning.endswith("; old names are read for one more release")
    assert "FutureWarning" not in outcome.err
    check_saved_options(runs / name)
    expected, resumed = losses(OLD / name), losses(runs / name)
    assert len(resumed) == len(expected)
    for line, truth in zip(resumed, expected, strict=True):
        assert line == pytest.approx(truth, rel=1e-3)
    moved = (weights(runs / name / "model") - weights(OLD / name / "model")).abs()
    close = moved <= 1e-4 * weights(OLD / name / "model").abs() + 1e-5
    # Not all: what has no gradient but rounding (a bias before a norm) is moved by Adam as far as any other weight.
    assert close.float().mean() > 0.98


@pytest.mark.parametrize("name", RESUMED)
def test_every_checkpoint_becomes_a_model(runs, name):
    model = export(name)
    assert model == Path(name) / "model-checkpoint-00000002"
    OPENERS[name](str(model))


def test_a_changed_key_is_still_refused_under_its_new_name(runs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OldNameWarning)
        outcome = through(
            "train_ldm", "pixels/config.yaml", "target=v", "variance=small", "loss=simple", "--resume", "latest"
        )
    assert outcome.status == 2
    assert "prediction_type" in outcome.errors[0]


def test_old_keys_are_read_with_one_warning_that_names_the_new_ones(runs):
    with pytest.warns(OldNameWarning, match="rename .*target to prediction_type") as caught:
        config = read_run(runs / "latent" / "config.yaml", ["schedule.steps=500"])
    assert len(caught) == 1
    assert config.schedule.num_train_timesteps == 500
    assert config.unet.attention_levels == (False, True)


def test_an_old_key_wins_over_a_preset():
    with pytest.warns(OldNameWarning, match="rename attention to attention_levels, groups to norm_num_groups"):
        config = check(UNetConfig, {"preset": "nano", "attention": [True, True, True], "groups": 16}, "here")
    assert config.attention_levels == (True, True, True)
    assert config.norm_num_groups == 16


def test_a_key_under_both_names_is_refused():
    with pytest.raises(UserError, match="unknown key 'groups'"):
        check(UNetConfig, {"groups": 8, "norm_num_groups": 8}, "here")


def test_new_keys_are_left_alone(runs):
    plain = {"preset": "nano", "attention_levels": [True, True, True]}
    assert rename_old_keys(UNetConfig, plain) == (plain, [])
    assert rename_old_keys(UNetConfig, None) == (None, [])
    assert "target" in tree(runs / "latent" / "config.yaml")
