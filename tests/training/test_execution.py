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
def test_the_layout_is_kept_by_hooks_where_it_is_asked_for(kind, pictures, tmp_path, monkeypatch):
    kept, hooked = [], execution.channels_last

    def noted(net):
        kept.append(type(net).__name__)
        hooked(net)

    monkeypatch.setattr(execution, "channels_last", noted)
    for last in (True, False):
        config = settings(KINDS[kind], pictures, tmp_path / f"{last}", "train.steps=1", f"train.channels_last={last}")
        assert config.train.layout(torch.device("cpu")) is (torch.channels_last if last else torch.contiguous_format)
        play(config)
        assert bool(kept) == last
        kept.clear()
