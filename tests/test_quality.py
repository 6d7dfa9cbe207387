"""The benchmark of time to quality: its files, its tables, and that recipes are what they say."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.quality import __main__ as quality
from benchmarks.quality import recipes, trainings
from benchmarks.quality.recipes import CONFIG, Place, Recipe, theirs
from benchmarks.quality.steps import ROWS
from benchmarks.quality.trainings import Job, Setting
from benchmarks.quality.trials import TRIALS, dispersion
from ldm_kit.config import read
from ldm_kit.methods.autoencoder import AutoencoderRun
from ldm_kit.methods.latent import Latent, LatentRun
from ldm_kit.models.options import check_options


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "FOLDER", tmp_path)


def test_every_training_has_a_file_of_its_own_but_for_one_that_two_tables_share(tmp_path):
    tables = [rows(10, 3) for rows in quality.TRAINED.values()]
    jobs = {job for rows in tables for many in rows.values() for job in many}
    assert len({job.path(tmp_path) for job in jobs}) == len(jobs) == 3 * (sum(map(len, tables)) - 1)


@pytest.mark.parametrize("name", quality.PEERS)
def test_the_peers_train_the_network_of_their_row(name, tmp_path, monkeypatch):
    def opened(world, precision, overrides, lr):
        widths.append(world.stage2(*overrides).unet.widths)
        return iter([object()])

    widths, recipe = [], quality.PEERS[name]
    monkeypatch.setattr(recipes.peers, "stage2", opened)
    monkeypatch.setattr(recipes, "_averaged", lambda player, world, recipe: world.stage2(*recipe.overrides))
    theirs(
        recipe, Place(tmp_path / "run", tmp_path), 0.0, lambda pipeline: {"judged": widths.append(pipeline.unet.widths)}
    )
    assert widths[0] == widths[1]
    assert (widths[0] == (128, 256)) == (quality.WIDE_NAME in name)


def test_figures_are_not_taken_for_those_of_another_setting(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text(name)
    (tmp_path / "other.yaml").write_text("train: {}\n")
    found = {
        Setting(tmp_path / "one", 200).folder,
        Setting(tmp_path / "two", 200).folder,
        Setting(tmp_path / "one", 9).folder,
    }
    monkeypatch.setattr(trainings, "CONFIG", tmp_path / "other.yaml")
    assert len(found | {Setting(tmp_path / "one", 200).folder}) == 4


@pytest.mark.parametrize("name", quality.CHOICES)
def test_a_choice_changes_something_that_there_is(name):
    recipe = quality.CHOICES[name]
    assert recipe.overrides[0] == quality.WIDE
    changed = [read(LatentRun, CONFIG, list(recipe.overrides)) != read(LatentRun, CONFIG, [quality.WIDE])]
    changed += [recipe.trial is not None and issubclass(TRIALS[recipe.trial], Latent)]
    if recipe.first_stage is not None:
        given = list(recipe.first_stage)
        changed += [
            read(AutoencoderRun, trainings.FIRST_STAGE, given) != read(AutoencoderRun, trainings.FIRST_STAGE, [])
        ]
    assert sum(changed) == (name != "the recipe")


def test_a_first_stage_of_its_own_is_not_taken_for_another(monkeypatch, tmp_path):
    setting = Setting(tmp_path / "table", 200)
    plain, own = Recipe(), Recipe(first_stage=("loss.pixel=l1",))
    found = [
        setting.first_stage(plain),
        setting.first_stage(own),
        setting.first_stage(Recipe(first_stage=("flip=false",))),
    ]
    assert found[0] == setting.autoencoder
    (tmp_path / "other.yaml").write_text("train: {}\n")
    monkeypatch.setattr(trainings, "FIRST_STAGE", tmp_path / "other.yaml")
    assert len({*found, setting.first_stage(own)}) == 4


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 4, 2, 2, generator=generator) for _ in range(2)]


def test_assigned_noise_is_the_same_noise_with_less_to_move(latents):
    x_0, eps = latents
    made = object.__new__(TRIALS["assigned"]).chosen(x_0, eps, torch.arange(16))  # pyright: ignore
    assert {tuple(one.flatten().tolist()) for one in made} == {tuple(one.flatten().tolist()) for one in eps}
    assert (made - x_0).flatten(1).norm(dim=1).sum() < (eps - x_0).flatten(1).norm(dim=1).sum()


def test_the_nearest_noise_depends_on_no_batch_mate(latents):
    x_0, eps = latents
    task = object.__new__(TRIALS["nearest"])
    task.config = SimpleNamespace(seed=0)
    whole = task.chosen(x_0, eps, torch.arange(16))
    parts = [task.chosen(x_0[i : i + 1], eps[i : i + 1], torch.tensor([i])) for i in range(16)]
    assert torch.equal(whole, torch.cat(parts))
    assert ((whole - x_0).flatten(1).norm(dim=1) <= (eps - x_0).flatten(1).norm(dim=1)).all()
    assert not torch.equal(whole, eps)


def test_dispersion_is_its_formula_and_falls_as_features_part(latents):
    h = latents[0]
    pairs = [math.exp(-float((a - b).square().sum()) / (h[0].numel() * 0.5)) for a in h for b in h]
    assert float(dispersion(h, 0.5)) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-4)
    assert dispersion(3 * h) < dispersion(h) < dispersion(0 * h) == 0


def test_the_table_has_means_and_ranges():
    jobs, setting = [Job(Recipe(), 1, seed) for seed in range(3)], Setting(Path("nowhere"), 1)
    setting.folder.mkdir()
    for job, rank in zip(jobs, (0.1, 0.2, 0.6), strict=True):
        found = {"steps": 50, "seconds": 60.2, "lite0": 900.0, "seen rank1": rank, "seen rank5": 1, "unseen rank5": 0}
        job.path(setting.folder).write_text(json.dumps(found))
    (row,) = quality._table({"ours": jobs}, setting).splitlines()[2:]
    assert row == "| ours | 60 | 50 | 900 (900 to 900) | 30 % (10 to 60) | 100 % (100 to 100) | 0 % (0 to 0) |"


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_steps_can_be_drawn(name):
    check_options(ROWS[name].wish)


def test_what_a_picture_costs_the_network():
    found = {name: row.evaluations for name, row in ROWS.items()}
    assert (found["ddim, 50"], found["heun, 5"], found["dpm++, 10, guided at t / T of 0.2 to 0.9"]) == (100, 20, 17)


def test_no_autoencoder_is_one_sentence(capsys):
    from ldm_kit.cli import run_cli

    with pytest.raises(SystemExit):
        run_cli(quality.main, ["recipes", "--autoencoder", "nowhere", "--no_page"])
    assert capsys.readouterr().err.startswith("error: no autoencoder in nowhere; `make demo` trains one")
    with pytest.raises(SystemExit):
        run_cli(quality.main, ["steps", "--autoencoder", "tests", "--model", "tests/model", "--no_page"])
    assert capsys.readouterr().err.startswith("error: no config.yaml beside tests/model; `steps` draws with the model")
    assert not list(Path(trainings.FOLDER).iterdir())


def test_the_table_of_steps_tells_which_model_and_what_guides_it(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(CONFIG.read_text().replace("widths: [64, 64]", "widths: [32, 96]"))
    figures = {"seconds a picture": 1.0, "lite0": 9.0, "seen rank1": 0.5, "seen rank5": 0.5, "unseen rank5": 0.5}
    asked = []
    monkeypatch.setattr(quality, "guide", lambda setting, recipe, steps: asked.append((recipe.overrides, steps)))
    monkeypatch.setattr(quality, "drawn", lambda model, worse, prompts: dict.fromkeys(ROWS, figures))
    section, title, _ = quality._drawn(tmp_path / "model", Setting(tmp_path, 1))
    whole = read(LatentRun, CONFIG, []).train.steps
    assert asked == [(("unet.widths=[32,96]",), whole // 6)]
    assert section == "steps 32 and 96"
    assert f"run={tmp_path} unet.widths=[32,96] train.steps={whole}`" in title
