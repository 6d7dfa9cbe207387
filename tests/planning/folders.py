"""Folders of small pictures, and networks that train in no time, for tests of plans."""

from pathlib import Path

import pytest
from PIL import Image

from ldm_kit.planning import plan, recipes, stages
from ldm_kit.planning.recipes import Networks, Recipe
from ldm_kit.planning.timing import RecipeTime, StageTime


def folder_of(path: Path, count: int, side: int, classes: int = 0) -> Path:
    """Write `count` pictures of one colour each, in sub-folders if there are classes; return the folder."""
    for number in range(count):
        place = path / f"class{number % classes}" if classes else path
        place.mkdir(parents=True, exist_ok=True)
        colour = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
        Image.new("RGB", (side, side), colour).save(place / f"{number:03d}.png")
    return path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the small networks tiny, a good result a matter of 20 steps, and perceptual distances zero."""
    monkeypatch.setitem(recipes.NETWORKS, "small", Networks((8, 8), (32, 32), 1, (4, 8), (20, 20), (8, 128)))
    monkeypatch.setattr(stages, "_perceptual", lambda: {"spec": "none"})


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Time recipes by their cost: a step of the small recipe at 64 px takes 1 s in stage 1 and 0.5 s in stage 2.

    The value lists the recipes that were timed.
    """
    every: list[Recipe] = []

    def time_recipe(recipe: Recipe, load: object, section: object) -> RecipeTime:
        every.append(recipe)
        first = None if recipe.in_pixels else StageTime(recipe.cost, 5.0, 10**6)
        return RecipeTime(recipe, (900, 100), 2.0, 3.0, 0.01, first, StageTime(recipe.cost / 2, 5.0, 10**6))

    monkeypatch.setattr(plan, "time_recipe", time_recipe)
    return every
