"""Choice of recipe and steps for a time, by timings that the test sets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm_kit.config import UserError
from ldm_kit.data.tensors import from_tensor
from ldm_kit.planning import plan as planning
from ldm_kit.planning.expected import MEASURED
from ldm_kit.planning.pictures import FolderSummary
from ldm_kit.planning.plan import MOST, describe, make_plan
from ldm_kit.planning.target import check_target
from ldm_kit.planning.timing import RecipeTime, StageTime
from tests.planning.folders import timed as timed

SUMMARY = FolderSummary(Path("pictures"), 1000, 64, 64, 64, 0.0, (), 0, False, 0.0)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    def load(config):
        x = torch.rand(20, config.channels, config.resolution, config.resolution) * 2 - 1
        return from_tensor(x, heldout=0.1)

    monkeypatch.setattr(planning, "load", load)
    monkeypatch.setattr(planning, "pca_psnr", lambda pictures: 20.0)


@pytest.mark.parametrize(
    ("minutes", "expected"), [(10, "32 small"), (30, "64 small"), (200, "64 small"), (20_000, "64 medium")]
)
def test_the_largest_recipe_of_which_enough_steps_fit_is_chosen(timed, minutes, expected):
    plan = make_plan(SUMMARY, minutes, None)
    assert f"{plan.recipe.resolution} {plan.recipe.scale}" == expected


@pytest.mark.parametrize("minutes", [3, 10, 30, 90])
def test_the_steps_fill_the_time(timed, minutes):
    plan = make_plan(SUMMARY, minutes, None)
    assert plan.minutes == pytest.approx(minutes, rel=0.05)
    assert plan.steps[1] / plan.steps[0] == pytest.approx(2.4, rel=0.05)


def test_no_more_steps_than_pay(timed):
    plan = make_plan(replace(SUMMARY, side=16), 600, None)
    assert plan.steps[1] == MOST * 2400
    assert plan.minutes < 100
    assert any("the time is not used up" in note for note in plan.notes)


def test_recipes_that_cannot_fit_are_not_timed(timed):
    make_plan(replace(SUMMARY, side=512), 10, None)
    assert [(recipe.resolution, recipe.scale) for recipe in timed] == [(32, "small")]


def test_few_steps_and_few_pictures_are_noted(timed):
    plan = make_plan(replace(SUMMARY, count=50), 3, None)
    assert any("expect blurred pictures" in note for note in plan.notes)
    assert any("trained on 50 pictures" in note for note in plan.notes)
    assert make_plan(SUMMARY, 30, None).notes == ()


@pytest.mark.parametrize(
    ("quality", "side", "expected"),
    [("draft", 64, "64 small"), ("good", 500, "128 small"), ("best", 500, "256 medium"), ("best", 16, "16 small")],
)
def test_a_quality_takes_the_time_that_it_takes(timed, quality, side, expected):
    plan = make_plan(replace(SUMMARY, side=side), None, quality)
    assert f"{plan.recipe.resolution} {plan.recipe.scale}" == expected
    times = {"draft": 0.5, "good": 2.0, "best": 1.0}[quality]
    assert plan.steps[1] == times * plan.recipe.steps[1]


def test_small_pictures_are_diffused_as_pixels(timed):
    plan = make_plan(replace(SUMMARY, side=8), 30, None)
    assert (plan.steps[0], plan.seconds[0], plan.psnr) == (0, 0.0, None)


def test_expected_psnr_is_a_range_of_the_measured_width(timed):
    low, high = make_plan(SUMMARY, 30, None).psnr
    assert high - low == pytest.approx(2 * MEASURED.error)


def test_the_description_names_what_a_user_asks(timed):
    text = "\n".join(describe(make_plan(SUMMARY, 30, None)))
    assert "64 px" in text
    assert "about 30 minutes" in text or "about 29 minutes" in text
    assert "dB PSNR" in text
    assert "MB" in text


@pytest.mark.parametrize(("minutes", "quality"), [(None, None), (3.0, "draft")])
def test_either_minutes_or_a_quality(minutes, quality):
    with pytest.raises(UserError, match="either --minutes MINUTES or --quality"):
        check_target(minutes, quality)


def test_too_little_time_says_how_much_it_takes(timed):
    with pytest.raises(UserError, match=r"^0\.2 minutes are too few for pictures .*; expected at least 0\.9$"):
        make_plan(SUMMARY, 0.2, None)


def test_too_few_pictures(timed):
    with pytest.raises(UserError, match="holds 15 pictures; expected at least 16"):
        make_plan(replace(SUMMARY, count=15), 30, None)


def test_seconds_grow_with_steps_and_pictures():
    stage = StageTime(0.6, 5.0, 0)
    recipe = planning.recipes(SUMMARY)[0]
    few = RecipeTime(recipe, (100, 10), 2.0, 3.0, 0.01, stage, stage)
    more = replace(few, pictures=(100_100, 10))
    first, second = (late - early for late, early in zip(more.seconds((0, 0)), few.seconds((0, 0)), strict=True))
    assert first == pytest.approx((50_000 - 100) * 0.01)
    assert second == pytest.approx(100_000 * 0.01)
    assert few.seconds((20, 10))[0] - few.seconds((10, 10))[0] == pytest.approx(6)
    assert few.of_steps((10, 10)) == pytest.approx(12)
