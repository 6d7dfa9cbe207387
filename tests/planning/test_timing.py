"""Timing of a recipe by short trainings."""

from functools import partial

from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.sources import load
from ldm_kit.planning.pictures import summarise_folder
from ldm_kit.planning.recipes import recipes
from ldm_kit.planning.stages import data_section
from ldm_kit.planning.timing import time_recipe
from tests.planning.folders import folder_of
from tests.planning.folders import tiny as tiny


def test_short_trainings_leave_nothing_behind_and_measure_both_stages(tmp_path, tiny, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    summary = summarise_folder(folder_of(tmp_path / "photos", 20, 32))
    recipe = recipes(summary)[0]
    section = data_section(summary, recipe)
    time = time_recipe(recipe, partial(load, FolderConfig(**section)), section, steps=5)
    assert time.first is not None
    assert sum(time.pictures) == 20
    assert min(time.first.step, time.second.step, time.encoded, time.captions + 1e-9) > 0
    assert time.disk > time.first.disk + time.second.disk > 10_000
    assert [*temporary.iterdir()] == []
    assert {path.name for path in tmp_path.iterdir()} == {"temporary", "photos"}
    assert "step/s" not in "".join(capfd.readouterr())
