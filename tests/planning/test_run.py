"""From a folder of pictures to a sheet: the files of a plan, both trainings, and what goes wrong."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm_kit.cli import app
from ldm_kit.config import UserError, tree
from ldm_kit.planning.files import find_plan, read_plan, write_plan
from ldm_kit.planning.pictures import summarise_folder
from ldm_kit.planning.plan import make_plan
from ldm_kit.planning.run import run_plan
from tests.planning.folders import folder_of
from tests.planning.folders import timed as timed
from tests.planning.folders import tiny as tiny


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2


def plan_of(folder):
    """Return the plan of a draft, which trains ten steps of each stage."""
    return make_plan(summarise_folder(folder), None, "draft")


def test_both_stages_are_trained_and_shown(here, tiny, timed):
    pictures = folder_of(here / "photos", 24, 32, classes=2)
    write_plan(plan_of(pictures), here / "runs" / "photos")
    plan = find_plan(pictures)  # by the folder of pictures, as the command is given in the README
    assert [path.name for path in plan.stages] == ["ae.yaml", "ldm.yaml"]
    assert tree(plan.stages[1])["condition"]["kind"] == "class"
    lines = []
    result = run_plan(plan, lines.append)
    assert len(result.seconds) == 2
    assert result.psnr is not None
    assert result.expected == plan.seconds
    assert [line[:3] for line in lines] == ["1/2", "2/2"]
    with Image.open(result.sheet) as sheet:
        assert sheet.width > 4 * 96
    assert json.loads((plan.folder / "result.json").read_text())["psnr"] == result.psnr
    text = "\n".join(result.sentences(plan.psnr))
    assert f"{result.psnr:.1f} dB PSNR; expected" in text

    again = run_plan(plan, lines.append)
    assert (again.seconds, again.sentences(plan.psnr)[0]) == ((), "trained before")
    assert "trained already" in lines[-1]


def test_a_stopped_training_goes_on(here, tiny, timed, monkeypatch):
    pictures = folder_of(here / "photos", 20, 8)
    plan = write_plan(plan_of(pictures), here / "plan")
    assert [path.name for path in plan.stages] == ["ldm.yaml"]
    from ldm_kit.training.loop import Trainer

    train = Trainer.train

    def stopping(self, *arguments):
        for step in train(self, *arguments):
            yield step
            if step.number == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, lambda line: None)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    lines = []
    result = run_plan(plan, lines.append)
    assert "resumed" in lines[0]
    assert result.seconds == ()  # a part of the time is not compared with the plan
    assert result.sheet.is_file()


def test_configs_carry_what_was_seen_and_expected(here, tiny, timed):
    plan = plan_of(folder_of(here / "photos", 24, 32))
    files = write_plan(plan, here / "plan")
    text = files.stages[0].read_text()
    assert text.startswith("# Command:   ldm-kit train ")
    assert "24 pictures of 32 px" in text
    assert "dB PSNR" in text
    content = tree(files.stages[0])
    assert content["train"]["steps"] == plan.steps[0]
    assert content["data"]["path"] == str(here / "photos")
    assert read_plan(here / "plan").psnr == tuple(round(value, 1) for value in plan.psnr)


def test_a_plan_does_not_overwrite(here):
    (here / "plan").mkdir()
    (here / "plan" / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["new", str(folder_of(here / "photos", 20, 8)), "--minutes", "1", "--out", "plan"])
    assert result.exit_code == 2
    assert "plan is not empty; name another folder with --out" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["new", "absent", "--minutes", "3"], "absent is no folder"),
        (["new", "photos"], "either --minutes MINUTES or --quality"),
        (["new", "photos", "--minutes", "3", "--quality", "draft"], "either --minutes MINUTES or --quality"),
        (["new", "photos", "--minutes", "3", "--resolution", "50"], "--resolution is 50"),
        (["train", "photos"], "no plan for photos"),
        (["train", "absent"], "no plan for absent"),
    ],
)
def test_mistakes_are_one_sentence(here, arguments, sentence):
    folder_of(here / "photos", 20, 8)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_a_plan_of_other_pictures_is_not_taken(here, tiny, timed):
    write_plan(plan_of(folder_of(here / "photos", 20, 8)), here / "runs" / "photos")
    other = folder_of(here / "elsewhere" / "photos", 20, 8)
    with pytest.raises(UserError, match="is of the pictures in"):
        find_plan(other)


@pytest.mark.parametrize("content", ["", "{}", '{"pictures": 3, "stages": 4, "seconds": 5, "psnr": 6}'])
def test_a_damaged_plan_is_a_sentence(here, content):
    (here / "plan").mkdir()
    (here / "plan" / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan.json is damaged"):
        find_plan(here / "plan")


def test_several_processes_are_told_how_to_launch_each_stage(here, tiny, timed, monkeypatch):
    plan = write_plan(plan_of(folder_of(here / "photos", 20, 32)), here / "plan")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"launch each stage, train-ae .*ae\.yaml and train-ldm .*ldm\.yaml, and then"):
        run_plan(plan, lambda line: None)
    assert {path.name for path in plan.folder.iterdir()} == {"ae.yaml", "ldm.yaml", "plan.json"}
