"""Fixtures of the tests of tasks on whole folders and data sets."""

import pytest

from ldm_kit.inference import evaluate_job
from ldm_kit.models.feature_nets import FeatureNet
from tests.inference.colours import Colours


@pytest.fixture
def colours(monkeypatch, tmp_path):
    """Put `Colours` in the place of every feature network, with an empty cache and an empty current folder."""
    monkeypatch.setenv("LDM_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    network = Colours()
    net = FeatureNet("colours", network, "not at all", "0" * 64)
    monkeypatch.setattr(evaluate_job, "load_feature_net", lambda *_: net)
    return network
