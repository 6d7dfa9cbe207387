"""The demo's commands, its sheet, and what it says of runs that it cannot measure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_kit.config import UserError
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.demo import __main__ as demo
from ldm_kit.demo import show as showing
from ldm_kit.demo.show import Summary, show
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder import AutoencoderRun
from ldm_kit.methods.latent import LatentRun
from ldm_kit.viz.sheet import COLUMNS, Section, sheet


def test_the_two_stages_fit_each_other_and_are_trained_on_faces():
    first, second = (read_run(config, overrides) for _, config, *overrides in (demo.STAGE_1, demo.STAGE_2))
    assert isinstance(first, AutoencoderRun)
    assert isinstance(second, LatentRun)
    assert (first.run, second.run) == (str(demo.AE), str(demo.LDM))
    assert second.autoencoder == first.run
    assert first.data == second.data == FacesConfig(resolution=64)
    assert [command for command, *_ in (demo.STAGE_1, demo.STAGE_2)] == ["train-ae", "train-ldm"]


def test_a_stage_that_fails_ends_the_demo_with_its_status(monkeypatch, tmp_path, capfd):
    import subprocess

    import typer

    ran = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: ran.append(command) or subprocess.CompletedProcess([], 3)
    )
    (tmp_path / "run").mkdir()
    with pytest.raises(typer.Exit) as stopped:
        demo._train(demo.STAGE_1, tmp_path / "run", fresh=True)
    assert stopped.value.exit_code == 3
    assert not (tmp_path / "run").exists()
    assert [*ran[0][-3:]] == [*demo.STAGE_1]
    with pytest.raises(typer.Exit):
        demo._train(demo.STAGE_2, tmp_path / "run", fresh=False)
    assert ran[1][-2:] == ["--resume", "latest"]


def test_a_finished_run_is_measured_with_the_given_options(monkeypatch, tmp_path, capsys):
    asked = []
    summary = Summary({"mean": None}, "the table", tmp_path / "sheet.png")
    monkeypatch.setattr(showing, "show", lambda *given: asked.append(given) or summary)
    demo.main(prompts=3, measure=tmp_path, guidance_scale=1.3, steps=40)
    ((run, count, options),) = asked
    assert (run, count) == (tmp_path, 3)
    assert options.model_fields_set == {"guidance_scale", "steps"}
    assert (options.guidance_scale, options.steps) == (1.3, 40)
    assert "the table" in capsys.readouterr().out
    assert json.loads((tmp_path / "demo.json").read_text())["mean"] is None
    summary.figures["mean"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        demo.main(measure=tmp_path)


def test_a_wrong_option_is_said_before_training(monkeypatch, capsys):
    import typer

    monkeypatch.setattr(demo, "_train", lambda *rest: pytest.fail("trained first"))
    with pytest.raises(typer.Exit):
        demo.main(steps=0)
    assert "steps" in capsys.readouterr().err


def test_the_sheet_has_every_picture_below_its_title_and_ends_with_the_attribution():
    pictures = torch.zeros(COLUMNS + 1, 3, 32, 32, dtype=torch.uint8)
    pictures[:, 0] = 255
    prompts = ["a face"] * len(pictures)
    one, two = (sheet([Section(f"{i}", pictures, prompts) for i in range(n)], "by somebody") for n in (1, 2))
    assert one.width == two.width

    def red(image: Image.Image) -> int:
        return int((np.asarray(image) == (255, 0, 0)).all(-1).sum())

    assert red(two) == 2 * red(one) == 2 * len(pictures) * (32 * 6) ** 2
    without = sheet([Section("0", pictures, prompts)], "")
    assert one.height > without.height or one.tobytes() != without.tobytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [("configs/openmoji/ldm_quick.yaml", "was trained on openmoji; expected a run on faces"), (None, "config.yaml")],
)
def test_a_run_that_cannot_be_measured_is_one_sentence(config, message, tmp_path):
    if config is not None:
        (tmp_path / "config.yaml").write_text(Path(config).read_text(encoding="utf-8"))
    with pytest.raises(UserError, match=message):
        show(tmp_path, 1)
