"""The best checkpoint by a figure of the evaluations stays, and best.json says which it is."""

import json

import pytest

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from ldm_kit.training.retention import BestCheckpoint
from tests.training.helpers import CLASSES, picture_folder, play, settings

NAN = float("nan")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures") / "set")


def judged(figures):
    """Hand these figures over after the steps that they belong to."""

    def opened(run):
        save = run.save_when_due
        run.save_when_due = lambda trainer, step: save(trainer, step, figures.get(step.number))

    return opened


def losses(*values):
    return {step: {"heldout_loss": value} for step, value in enumerate(values, 1) if value is not None}


def best(run):
    return json.loads((run / "best.json").read_text())


def test_the_best_is_saved_at_once_and_never_removed(pictures, tmp_path):
    run = tmp_path / "run"
    config = settings(
        CLASSES, pictures, run, "train.keep_last=1", "train.keep_best=heldout_loss", "train.checkpoint_every=4"
    )
    play(config, opened=judged(losses(3.0, NAN, 1.0, 1.0, None, None, 2.0, NAN)))
    assert best(run) == {"metric": "heldout_loss", "value": 1.0, "step": 3, "checkpoint": "checkpoint-00000003"}
    assert list(checkpoint.steps(run)) == [3, 8]
    checkpoint.verify(run / "checkpoint-00000003")


def test_a_resumed_run_knows_the_best_so_far(pictures, tmp_path):
    run, keep = tmp_path / "run", ("train.keep_last=1", "train.keep_best=max:heldout_loss", "train.checkpoint_every=4")
    play(settings(CLASSES, pictures, run, *keep), until=4, opened=judged(losses(None, 5.0, None, 4.0)))
    play(settings(CLASSES, pictures, run, *keep), "latest", opened=judged(losses(*[None] * 5, 4.5)))
    assert (best(run)["value"], list(checkpoint.steps(run))) == (5.0, [2, 4, 8])  # the best, the source, the newest
    longer = settings(CLASSES, pictures, run, *keep, "train.steps=10")
    play(longer, "latest", opened=judged(losses(*[None] * 8, 6.0)))
    assert (best(run)["step"], list(checkpoint.steps(run))) == (9, [8, 9, 10])


def test_a_figure_that_is_not_measured_is_named(pictures, tmp_path):
    wanted = "train.keep_best=heldout_lss"
    with pytest.raises(
        UserError, match=r"keep_best is 'heldout_lss', but .* no such figure; expected one of heldout_loss"
    ):
        play(settings(CLASSES, pictures, tmp_path, wanted), opened=judged(losses(None, 1.0)))
    with pytest.raises(UserError, match="expected one of none: nothing is held out"):
        BestCheckpoint(tmp_path, "a").is_beaten_by({})


def test_an_infinite_figure_is_valid_json(tmp_path):
    record = BestCheckpoint(tmp_path, "max:psnr")
    (tmp_path / "checkpoint-00000001").mkdir()
    record.record(tmp_path / "checkpoint-00000001", 1, {"psnr": float("inf")})
    assert json.loads((tmp_path / "best.json").read_text(), parse_constant=pytest.fail)["value"] == "inf"
    assert not record.is_beaten_by({"psnr": 99.0})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"checkpoint": "checkpoint-1"}', '{"checkpoint": "../x", "value": 1}']
)
def test_a_broken_note_is_no_best(tmp_path, text):
    (tmp_path / "best.json").write_text(text)
    assert BestCheckpoint(tmp_path, "loss").path is None
    assert BestCheckpoint(tmp_path, "loss").is_beaten_by({"loss": 9.0})


def test_pruning_wants_the_newest_whole(tmp_path):
    old, new = (checkpoint.write(tmp_path / f"checkpoint-{n}", lambda d: (d / "a").write_text("abc")) for n in (1, 2))
    (new / "a").write_text("abd")
    with pytest.raises(UserError, match="contents of a have changed"):
        checkpoint.prune(tmp_path, keep=1)
    checkpoint.verify(old)
