"""Recipes and the configs of their stages: each is valid, fits its pictures, and can be built."""

from pathlib import Path

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.methods import check_run
from ldm_kit.nets.unet import build_unet
from ldm_kit.planning import stages
from ldm_kit.planning.pictures import FolderSummary
from ldm_kit.planning.recipes import RESOLUTIONS, Recipe, recipes


def summary(side=64, *, captioned=0.0, classes=(), grey=False, count=1000):
    return FolderSummary(Path("pictures"), count, side, side, side, captioned, classes, 9, grey, 0.0)


@pytest.mark.parametrize(
    ("side", "resolutions"), [(8, {8}), (5, {8}), (30, {28}), (32, {32}), (100, {32, 64}), (3000, set(RESOLUTIONS))]
)
def test_resolutions_are_those_that_the_pictures_have(side, resolutions):
    assert {recipe.resolution for recipe in recipes(summary(side))} == resolutions


def test_recipes_are_ordered_by_resolution_and_size():
    names = [(recipe.resolution, recipe.scale) for recipe in recipes(summary(64))]
    assert names == [(32, "small"), (32, "medium"), (64, "small"), (64, "medium"), (64, "large")]


@pytest.mark.parametrize("resolution", [0, 7, 36, 72, 1024])
def test_a_resolution_that_cannot_be_halved_is_refused(resolution):
    with pytest.raises(UserError, match=f"--resolution is {resolution}; expected 8 to 512"):
        recipes(summary(), resolution)


EVERY = [
    recipe
    for side in (8, 12, 28, 500, 1000)
    for condition in ({"captioned": 1.0}, {"classes": ("a", "b")}, {"grey": True})
    for recipe in recipes(summary(side, **condition))
]


@pytest.mark.parametrize("recipe", EVERY, ids=str)
def test_configs_are_valid_and_their_networks_can_be_built(recipe, tmp_path):
    data = stages.data_section(summary(grey=recipe.channels == 1), recipe)
    second = check_run(stages.second_stage(recipe, data, "ldm", 100, "ae", words=9), "ldm")
    side, channels = recipe.latent_side, recipe.channels if recipe.in_pixels else 4
    with torch.device("meta"):
        unet = build_unet(second.unet, sample_size=side, channels=channels, cross_width=128)
    assert unet.config.in_channels == channels
    assert second.condition.kind == {"none": "none", "class": "class"}.get(recipe.condition, second.condition.kind)
    if not recipe.in_pixels:
        first = check_run(stages.first_stage(recipe, data, "ae", 100), "ae")
        assert recipe.resolution == side * 2 ** (len(first.autoencoder.widths) - 1)
        assert first.data.channels == recipe.channels


def test_a_few_pictures_hold_out_more():
    recipe = Recipe(64, "small", "none", 3)
    assert stages.data_section(summary(count=50), recipe)["heldout"] == 0.1
    assert "heldout" not in stages.data_section(summary(count=500), recipe)


def test_the_text_encoder_is_the_pretrained_one_where_it_is_installed(monkeypatch):
    recipe = Recipe(64, "small", "text", 3)
    monkeypatch.setattr(stages, "find_spec", lambda name: object())
    pretrained = stages.second_stage(recipe, {}, "ldm", 100, "ae", words=31)["condition"]
    assert (pretrained["kind"], pretrained["length"]) == ("pretrained", 64)
    monkeypatch.setattr(stages, "find_spec", lambda name: None)
    assert stages.second_stage(recipe, {}, "ldm", 100, "ae", words=31)["condition"] == {"kind": "text", "length": 64}
    assert stages.second_stage(recipe, {}, "ldm", 100, "ae", words=2)["condition"]["length"] == 16
    assert stages.second_stage(recipe, {}, "ldm", 100, "ae", words=300)["condition"]["length"] == 77


def test_without_weights_there_is_no_perceptual_distance(monkeypatch):
    recipe = Recipe(64, "small", "none", 3)
    monkeypatch.setattr(stages, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "absent")
    tree = stages.first_stage(recipe, {}, "ae", 100)
    assert tree["perceptual"] == {"spec": "none"}
    assert tree["loss"]["perceptual_weight"] == 0
