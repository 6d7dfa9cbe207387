"""The benchmark of time to quality: its files, its tables, and that recipes are what they say."""

import json
from pathlib import Path

import pytest

from benchmarks import kit
from benchmarks.claims import quality, recipes, timed_training
from benchmarks.claims.recipes import Job, Recipe, Setting
from benchmarks.claims.sampling_steps import ROWS


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)


def test_every_training_has_a_file_of_its_own_but_for_one_that_two_tables_share(tmp_path):
    tables = [rows(10, 3) for rows in quality.TRAINED.values()]
    jobs = {job for rows in tables for many in rows.values() for job in many}
    assert len({job.path(tmp_path) for job in jobs}) == len(jobs) == 3 * (sum(map(len, tables)) - 1)


@pytest.mark.parametrize("name", recipes.PEERS)
def test_the_peers_train_the_network_of_their_row(name, tmp_path, monkeypatch):
    def opened(space, precision, overrides, lr):
        widths.append(space.stage2(*overrides).unet.widths)
        return iter([object()])

    widths, recipe = [], recipes.PEERS[name]
    monkeypatch.setattr(timed_training.peers, "train_stage2", opened)
    averaged = lambda module, space, recipe: space.stage2(*recipe.overrides)  # noqa: E731
    monkeypatch.setattr(timed_training, "_averaged_pipeline", averaged)
    judge = lambda pipeline: {"judged": widths.append(pipeline.unet.widths)}  # noqa: E731
    timed_training.train_peers(Job(recipe, 0.0, 0), tmp_path, judge)
    assert widths[0] == widths[1]
    assert (widths[0] == (128, 256)) == (recipes.WIDE_NAME in name)


def test_figures_are_not_taken_for_those_of_another_setting(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text(name)
    (tmp_path / "other.yaml").write_text("train: {}\n")
    folders = {
        Setting(tmp_path / "one", 200).folder,
        Setting(tmp_path / "two", 200).folder,
        Setting(tmp_path / "one", 9).folder,
    }
    monkeypatch.setattr(kit, "LDM", tmp_path / "other.yaml")
    assert len(folders | {Setting(tmp_path / "one", 200).folder}) == 4


@pytest.mark.parametrize("name", recipes.CHOICES)
def test_a_choice_changes_something_that_there_is(name):
    recipe = recipes.CHOICES[name]
    assert recipe.overrides[0] == recipes.WIDE
    changed = [kit.read_latent(*recipe.overrides) != kit.read_latent(recipes.WIDE)]
    if recipe.first_stage is not None:
        changed += [kit.read_autoencoder(*recipe.first_stage) != kit.read_autoencoder()]
    assert sum(changed) == (name != "the recipe")


def test_a_first_stage_of_its_own_is_not_taken_for_another(monkeypatch, tmp_path):
    setting = Setting(tmp_path / "table", 200)
    plain, own = Recipe(), Recipe(first_stage=("loss.pixel=l1",))
    stages = [
        setting.first_stage(plain),
        setting.first_stage(own),
        setting.first_stage(Recipe(first_stage=("flip=false",))),
    ]
    assert stages[0] == setting.autoencoder
    (tmp_path / "other.yaml").write_text("train: {}\n")
    monkeypatch.setattr(kit, "AE", tmp_path / "other.yaml")
    assert len({*stages, setting.first_stage(own)}) == 4


def test_the_table_has_means_and_ranges():
    jobs, setting = [Job(Recipe(), 1, seed) for seed in range(3)], Setting(Path("nowhere"), 1)
    setting.folder.mkdir()
    for job, rank in zip(jobs, (0.1, 0.2, 0.6), strict=True):
        figures = {"steps": 50, "seconds": 60.2, "lite0": 900.0, "seen rank1": rank, "seen rank5": 1, "unseen rank5": 0}
        job.path(setting.folder).write_text(json.dumps(figures))
    (row,) = quality.trained_table({"ours": jobs}, setting).splitlines()[2:]
    assert row == "| ours | 60 | 50 | 900 (900 to 900) | 30 % (10 to 60) | 100 % (100 to 100) | 0 % (0 to 0) |"


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_steps_can_be_sampled(name):
    assert isinstance(ROWS[name].options, kit.SamplingOptions)


def test_what_a_picture_costs_the_network():
    counts = {name: row.evaluations for name, row in ROWS.items()}
    assert (counts["ddim, 50"], counts["heun, 5"], counts["dpm++, 10, guided at t / T of 0.2 to 0.9"]) == (100, 20, 17)


def test_no_autoencoder_is_one_sentence(capsys):
    from ldm_kit.cli import run_cli

    with pytest.raises(SystemExit):
        run_cli(quality.quality, ["recipes", "--autoencoder", "nowhere", "--no_page"])
    assert capsys.readouterr().err.startswith(
        "error: no autoencoder in nowhere; configs/openmoji/ae_quick.yaml trains one"
    )
    with pytest.raises(SystemExit):
        run_cli(quality.quality, ["steps", "--autoencoder", "tests", "--model", "tests/model", "--no_page"])
    assert capsys.readouterr().err.startswith(
        "error: no config.yaml beside tests/model; `steps` samples from the model"
    )
    assert not list(Path(recipes.FOLDER).iterdir())


def test_the_table_of_steps_tells_which_model_and_what_guides_it(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(kit.LDM.read_text().replace("widths: [64, 64]", "widths: [32, 96]"))
    figures = {"seconds a picture": 1.0, "lite0": 9.0, "seen rank1": 0.5, "seen rank5": 0.5, "unseen rank5": 0.5}
    asked = []
    monkeypatch.setattr(quality, "guide_model", lambda setting, recipe, steps: asked.append((recipe.overrides, steps)))
    monkeypatch.setattr(quality, "measure_rows", lambda model, guide, prompts: dict.fromkeys(ROWS, figures))
    section, text = quality.steps_section(tmp_path / "model", Setting(tmp_path, 1))
    whole = kit.read_latent().train.steps
    assert asked == [(("unet.widths=[32,96]",), whole // 6)]
    assert section == "steps 32 and 96"
    assert f"run={tmp_path} unet.widths=[32,96] train.steps={whole}`" in text
