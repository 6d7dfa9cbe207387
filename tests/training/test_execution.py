"""How networks compute reaches every kind of training, and what only saves memory changes no bit."""

from pathlib import Path

import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin

from ldm_kit.nets import execution
from tests.training.helpers import CLASSIFIER, DIFFAE, KL, TEXT, picture_folder, play, settings

KINDS = {"kl": KL, "text": TEXT, "classifier": CLASSIFIER, "diffae": DIFFAE}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_is_on_and_changes_no_bit(kind, pictures, tmp_path, monkeypatch):
    asked, enable = [], ModelMixin.enable_gradient_checkpointing

    def noted(net, *more, **named):
        asked.append(type(net).__name__)
        return enable(net, *more, **named)

    monkeypatch.setattr(ModelMixin, "enable_gradient_checkpointing", noted)
    plain = play(settings(KINDS[kind], pictures, tmp_path / "plain", "train.steps=3"))
    assert not asked
    saving = play(settings(KINDS[kind], pictures, tmp_path / "saving", "train.steps=3", "train.checkpointing=true"))
    assert len(asked) == 1
    assert saving == plain


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_module_has_the_layout_of_the_config(kind, pictures, tmp_path, monkeypatch, layout):
    """The config goes before the environment variable, which the fixture sets."""
    formats, set_layout = [], execution.set_layout

    def recorded(net, memory_format):
        formats.append((type(net).__name__, memory_format))
        set_layout(net, memory_format)

    monkeypatch.setattr(execution, "set_layout", recorded)
    for setting, last in (("null", layout == "channels_last"), ("true", True), ("false", False)):
        play(settings(KINDS[kind], pictures, tmp_path / setting, "train.steps=1", f"train.channels_last={setting}"))
        assert {memory_format for _, memory_format in formats[-1:]} == {
            torch.channels_last if last else torch.contiguous_format
        }
        formats.clear()
