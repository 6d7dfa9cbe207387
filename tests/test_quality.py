"""The benchmark of time to quality: its files, its tables, and that recipes are what they say."""

import json
from pathlib import Path

import pytest

from benchmarks.quality import __main__ as quality
from benchmarks.quality import trainings
from benchmarks.quality.recipes import CONFIG, Recipe
from benchmarks.quality.steps import ROWS
from benchmarks.quality.trainings import Job, Setting
from ldm_kit.config import read
from ldm_kit.methods.latent import LatentRun
from ldm_kit.wish import refuse


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "FOLDER", tmp_path)


def test_every_training_has_a_file_of_its_own_and_choices_share_the_demos(tmp_path):
    jobs = {job for rows in (quality.recipes(10, 3), quality.choices(10, 3)) for many in rows.values() for job in many}
    assert len({job.path(tmp_path) for job in jobs}) == len(jobs) == 3 * (3 + 1 + len(quality.CHOICES) - 1)


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
def test_a_choice_changes_the_demos_config(name):
    plain, changed = read(LatentRun, CONFIG, []), read(LatentRun, CONFIG, list(quality.CHOICES[name].overrides))
    assert (plain == changed) == (name == "the demo's recipe")


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
    refuse(ROWS[name].wish)


def test_what_a_picture_costs_the_network():
    found = {name: row.evaluations for name, row in ROWS.items()}
    assert (found["ddim, 50"], found["heun, 5"], found["dpm++, 10, guided at t / T of 0.2 to 0.9"]) == (100, 20, 17)


def test_no_autoencoder_is_one_sentence(capsys):
    from ldm_kit.cli import serve

    with pytest.raises(SystemExit):
        serve(quality.main, ["recipes", "--autoencoder", "nowhere", "--no_page"])
    assert capsys.readouterr().err.startswith("error: no autoencoder in nowhere; `make demo` trains one")
    assert not list(Path(trainings.FOLDER).iterdir())
