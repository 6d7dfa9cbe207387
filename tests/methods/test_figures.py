"""A figure's name says of which pictures it is, it is known before anything is built, and a resumed run has it too."""

import json

import pytest

from ldm_kit.config import UserError
from ldm_kit.methods.run_summary import list_metrics
from ldm_kit.methods.train import open_method, train
from tests.training.helpers import CLASSES, CLASSIFIER, DIFFAE, KL, VQ, picture_folder, reset, settings

KINDS = {"kl": KL, "vq": VQ, "class": CLASSES, "classifier": CLASSIFIER, "diffae": DIFFAE}
QUICK = ("train.steps=2", "log.evaluate_every=2", "log.pictures=2")
SAMPLED = {"class": ("sample.solver=ddim",)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set", count=12)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    reset()


def config_of(kind, pictures, tmp_path, *overrides):
    return settings(KINDS[kind], pictures, tmp_path / "run", *QUICK, *SAMPLED.get(kind, ()), *overrides)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heldout", [0.25, 0.0])
def test_figures_are_what_is_measured_and_named_by_their_pictures(kind, heldout, pictures, tmp_path):
    config = config_of(kind, pictures, tmp_path, f"data.heldout={heldout}")
    method = open_method(config)
    assert ("as pixels (3, " in method.describe()) == (kind in ("class", "classifier", "diffae"))
    measured = method.evaluate(2, tmp_path)
    assert type(method).figures(config, method.data) == list(measured)
    assert {*measured} <= {*type(method).figures(config, None)}
    prefix = "heldout_" if heldout else "train_"
    assert all(name.startswith(prefix) for name in measured), measured
    assert ("held-out" in list_metrics(method.metrics)) == bool(heldout)


@pytest.mark.parametrize(
    ("kind", "figure", "heldout"),
    [
        ("kl", "heldout_pnsr", 0.25),
        ("kl", "max:heldout_psnr", 0.0),
        ("kl", "max:train_psnr", 0.25),
        ("class", "heldout_loss", 0.0),
        ("classifier", "max:heldout_accuracy5", 0.25),
        ("diffae", "heldout_mse", 0.25),
    ],
)
def test_keep_best_names_a_figure_before_anything_is_built(kind, figure, heldout, pictures, tmp_path, monkeypatch):
    config = config_of(kind, pictures, tmp_path, f"data.heldout={heldout}", f"train.keep_best={figure}")
    monkeypatch.setattr("ldm_kit.methods.train.open_method", lambda *_: pytest.fail("it was built"))
    with pytest.raises(UserError, match=f"keep_best is '{figure}', but the evaluation has no such figure; expected"):
        train(config)


def test_without_a_perceptual_distance_none_is_measured(pictures, tmp_path):
    config = config_of("kl", pictures, tmp_path, "perceptual.spec=none")
    assert not any("perceptual" in name for name in open_method(config).evaluate(2, tmp_path))


@pytest.mark.parametrize("figure", ["min:heldout_loss", "heldout loss"])
def test_what_is_no_name_of_a_figure_is_said(figure, pictures, tmp_path):
    with pytest.raises(UserError, match="expected the name of a figure, such as heldout_loss, or max:NAME"):
        config_of("class", pictures, tmp_path, f"train.keep_best={figure}")


def test_a_typo_in_keep_best_leaves_no_folder(pictures, tmp_path):
    with pytest.raises(UserError, match="expected one of heldout_loss"):
        train(config_of("class", pictures, tmp_path, "train.keep_best=heldout_lss"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_that_is_resumed_has_its_figures(pictures, tmp_path, monkeypatch, capfd):
    config, plotted = config_of("class", pictures, tmp_path, "data.heldout=0.25"), []
    monkeypatch.setattr("ldm_kit.methods.run_summary.curves", lambda log, out, keys: plotted.append(keys))
    train(config)
    reset()
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    said = "".join(capfd.readouterr())
    train(config, resume="latest")
    again = "".join(capfd.readouterr())
    loss = next(entry["heldout_loss"] for entry in map(json.loads, log.splitlines()) if "heldout_loss" in entry)
    assert f"held-out loss {loss:.4f}" in said
    assert f"held-out loss {loss:.4f}" in again
    assert plotted == [["denoiser_loss", "heldout_loss"]] * 2
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log, "nothing is logged twice"
    (tmp_path / "run" / "metrics.jsonl").unlink()
    reset()
    train(config, resume="latest")
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["heldout_loss"] == loss
