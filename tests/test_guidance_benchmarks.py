"""The benchmarks of guidance that costs little: a weaker model without training, and the scale as an input."""

from dataclasses import replace

import pytest
import torch

from benchmarks.claims import guidance_speed
from benchmarks.claims.free_guides import without_self_attention
from ldm_kit.config import UserError
from ldm_kit.methods.train import open_method
from tests.training.helpers import CLASSES, picture_folder, settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a model with two evaluations a step, and of one that takes the guidance scale."""
    folder = tmp_path_factory.mktemp("runs")
    pictures = picture_folder(folder / "set")
    for name, more in (("base", ()), ("scaled", ("guidance.max_scale=6", "sample.guidance_scale=2"))):
        (folder / name / "model").mkdir(parents=True)
        open_method(settings(CLASSES, pictures, folder / name, *more)).save_model(folder / name / "model")
    return folder


@torch.no_grad()
def test_the_weaker_model_mixes_no_positions_by_itself(runs):
    """A change of one position of the input of self-attention changes that position of its output alone."""
    model = guidance_speed.Pipeline.load(runs / "base" / "model")
    weak = without_self_attention(model)
    name, module = next((name, module) for name, module in weak.unet.named_modules() if name.endswith("attn1"))
    states = torch.randn(1, 6, module.to_v.in_features, generator=torch.Generator().manual_seed(0))
    other = states.clone()
    other[:, 2] += 1
    changed = (module(states) != module(other)).any(-1)[0]
    assert changed.tolist() == [i == 2 for i in range(6)]
    strong = model.unet.get_submodule(name)
    assert (strong(states) != strong(other)).any(-1).all(), "the model itself is as it was"


def test_a_model_without_self_attention_is_refused(runs):
    model = guidance_speed.Pipeline.load(runs / "base" / "model")
    with pytest.raises(UserError, match="no self-attention"):
        without_self_attention(replace(model, unet=torch.nn.Linear(2, 2)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_both_kinds_of_guidance_are_timed_in_turn(runs, capsys):
    guidance_speed.main(runs / "base", runs / "scaled", prompt="a", batch=2, steps=2, rounds=2, page=False)
    table = capsys.readouterr().out
    assert table.count("2 steps, ") == 2
    with pytest.raises(UserError, match="not to take the guidance scale as input"):
        guidance_speed.main(runs / "scaled", runs / "base", page=False)
