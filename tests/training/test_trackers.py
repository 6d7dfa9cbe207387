"""Trackers of accelerate: which are taken, what they are started with, and which pictures they get."""

from pathlib import Path

import accelerate.tracking
import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm_kit.config import UserError
from ldm_kit.training.accelerator import open_accelerator
from ldm_kit.training.trackers import check_trackers, flat, log_pictures, start_trackers


class Tracker(GeneralTracker):
    """Stands for W&B: keeps what it is given."""

    name, requires_logging_directory, main_process_only = "wandb", False, True
    tracker = None

    def __init__(self, run_name, **options):
        super().__init__()
        self.project, self.options, self.shown, self.values, self.pictures = run_name, options, {}, [], []

    def store_init_configuration(self, values):
        self.shown = values

    def log(self, values, step=None, **options):
        self.values.append((step, values))

    def log_images(self, values, step=None, **options):
        self.pictures.append((step, values, options))


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    available = [*accelerate.tracking.get_available_trackers(), LoggerType.WANDB]
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: available)
    monkeypatch.setattr("ldm_kit.training.trackers.get_available_trackers", lambda: available)


def grid(path: Path, value: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path)


def test_metrics_config_and_grids_reach_tensorboard_and_another_tracker(tmp_path, wandb):
    check_trackers(["wandb"])
    accelerator = open_accelerator("no", tmp_path, ["tensorboard", "wandb"])
    start_trackers(accelerator, ["wandb"], tmp_path, {"train": {"steps": 3}, "init": None}, None)
    tensorboard, other = accelerator.trackers
    assert (tensorboard.name, other.name) == ("tensorboard", "wandb")
    assert (other.project, other.options["name"]) == ("ldm_kit", tmp_path.name)
    assert other.shown == {"train.steps": 3, "init": "None"}
    accelerator.log({"loss": 0.5}, step=1)
    assert other.values == [(1, {"loss": 0.5})]
    grid(tmp_path / "pictures" / "samples-00000001.png", 200)
    grid(tmp_path / "pictures" / "samples-00000002.png", 100)
    log_pictures(accelerator, tmp_path, 2)
    ((step, values, options),) = other.pictures
    assert (step, [*values], options) == (2, ["samples"], {})
    assert values["samples"].shape == (1, 4, 6, 3)
    assert np.all(values["samples"][..., 0] == 100)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.value for event in events.Scalars("loss")] == [0.5]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (2, 6, 4)


def test_a_tracker_that_takes_no_pictures_is_passed_over(tmp_path, wandb, monkeypatch):
    monkeypatch.delattr(Tracker, "log_images")
    accelerator = open_accelerator("no", tmp_path, ["wandb"])
    start_trackers(accelerator, ["wandb"], tmp_path, {}, None)
    grid(tmp_path / "pictures" / "samples-00000002.png", 100)
    log_pictures(accelerator, tmp_path, 2)
    assert accelerator.trackers[0].pictures == []


def test_without_trackers_nothing_is_started(tmp_path):
    accelerator = open_accelerator("no", tmp_path)
    start_trackers(accelerator, [], tmp_path, {}, None)
    assert accelerator.trackers == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("weights", "log.trackers names 'weights'; expected some of .*mlflow.*wandb"),
        ("tensorboard", "which log.tensorboard switches"),
        ("comet_ml", "log.trackers names comet_ml, which is not installed; expected `pip install comet-ml`"),
    ],
)
def test_trackers_that_cannot_be_used_are_a_sentence(monkeypatch, name, sentence):
    monkeypatch.setattr("ldm_kit.training.trackers.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(UserError, match=sentence):
        check_trackers([name])


def test_a_nested_config_is_shown_with_dotted_keys():
    assert flat({"a": {"b": [1, 2], "c": {"d": 0.5}}, "e": True}) == {"a.b": "[1, 2]", "a.c.d": 0.5, "e": True}
