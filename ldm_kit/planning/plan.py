"""Plan of both trainings for a folder: choose recipe and steps for a time or a quality, from short timed trainings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ldm_kit.config import UserError
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.images import Split
from ldm_kit.data.near_duplicates import find_leaks
from ldm_kit.data.sources import load
from ldm_kit.planning.expected import MEASURED, pca_psnr
from ldm_kit.planning.pictures import FolderSummary
from ldm_kit.planning.recipes import Recipe, recipes
from ldm_kit.planning.stages import Tree, data_section
from ldm_kit.planning.target import QUALITIES, Quality, Scale, Target, check_target
from ldm_kit.planning.timing import RecipeTime, time_recipe

ENOUGH = 0.75  # share of a recipe's steps below which a cheaper recipe is taken
TOO_FEW = 0.02  # share of the steps of the cheapest recipe below which nothing is planned
MOST = 8.0  # times a recipe's steps that a plan trains at most
FEW = 500  # pictures below which a diffusion model is likely to copy them
LEAST = 16  # pictures that a plan needs


@dataclass(frozen=True)
class Plan:
    """Recipe and steps of both stages for a folder of pictures, and what to expect of them."""

    summary: FolderSummary
    recipe: Recipe
    data: Tree  # the configs' section `data`
    steps: tuple[int, int]  # of stage 1 and of stage 2; 0: there is no stage 1
    seconds: tuple[float, float]  # that each stage takes on this machine
    psnr: tuple[float, float] | None  # range, in dB, of held-out pictures after encoding and decoding; None: no stage 1
    disk: int  # bytes of both runs and of cached latents
    notes: tuple[str, ...]  # what a user should know

    @property
    def minutes(self) -> float:
        """Minutes that both stages take."""
        return sum(self.seconds) / 60


Progress = Callable[[str], object]
"""A callback that gets a line on what is done."""


def make_plan(
    summary: FolderSummary,
    minutes: float | None,
    quality: Quality | None,
    resolution: int | None = None,
    say: Progress = lambda line: None,
) -> Plan:
    """Choose recipe and steps by timing recipes on this machine.

    Args:
        summary: what the folder holds.
        minutes: minutes for both stages; None: as many as `quality` takes.
        quality: draft, good or best; None: what `minutes` allow.
        resolution: pixels along each side; None: chosen.
        say: gets a line on each recipe that is timed.

    Raises:
        UserError: both or none of `minutes` and `quality` are given, the minutes are too few, or the pictures are too
            few or not usable.
    """
    check_target(minutes, quality)
    if summary.count < LEAST:
        raise UserError(f"{summary.path} holds {summary.count} pictures; expected at least {LEAST}")
    planner = _Planner(summary, say)
    every = recipes(summary, resolution)
    if quality is not None:
        target = QUALITIES[quality]
        return planner.plan(_within(every, target), target.times)
    assert minutes is not None
    recipe, times = planner.choose(every, 60 * minutes)
    return planner.plan(recipe, times, minutes)


def describe(plan: Plan) -> list[str]:
    """Return lines that say what a plan trains, and what to expect."""
    first = f"{plan.steps[0]} steps of stage 1, " if plan.steps[0] else ""
    lines = [f"plan: {plan.recipe}; condition {plan.recipe.condition}; {first}{plan.steps[1]} steps of stage 2"]
    lines += [f"time: about {plan.minutes:.0f} minutes ({' + '.join(f'{s / 60:.1f}' for s in plan.seconds if s)})"]
    if plan.psnr is not None:
        lines += [f"expected: {plan.psnr[0]:.0f} to {plan.psnr[1]:.0f} dB PSNR of held-out pictures, autoencoded"]
    lines += [f"disk: {plan.disk / 1e6:.0f} MB"]
    return [*lines, *(f"note: {note}" for note in plan.notes)]


def _within(every: Sequence[Recipe], target: Target) -> Recipe:
    scales: list[Scale] = ["small", "medium", "large"]
    most = scales.index(target.scale)
    below = [recipe for recipe in every if recipe.resolution <= target.resolution] or [every[0]]
    return [recipe for recipe in below if scales.index(recipe.scale) <= most or recipe == below[0]][-1]


class _Planner:
    """Times recipes for a folder, each once."""

    def __init__(self, summary: FolderSummary, say: Progress) -> None:
        self.summary, self.say = summary, say
        self.timed: dict[Recipe, RecipeTime] = {}
        self.data: dict[int, Split] = {}

    def choose(self, every: Sequence[Recipe], seconds: float) -> tuple[Recipe, float]:
        """Return the best recipe of which the time allows enough steps, and the steps as a multiple of the recipe's.

        Raises:
            UserError: the time is too short even for a few steps of the cheapest recipe.
        """
        best = every[0]
        times = self.times(best, seconds)
        for recipe in every[1:]:
            if self.guess(best, recipe, seconds) < ENOUGH / 2:
                continue
            if (fitting := self.times(recipe, seconds)) >= ENOUGH:
                best, times = recipe, fitting
        if times < TOO_FEW:
            least = self.time(best).fixed + TOO_FEW * self.time(best).of_steps(best.steps)
            raise UserError(
                f"{seconds / 60:g} minutes are too few for {self.summary.path} on this machine; expected at least "
                f"{math.ceil(least / 6) / 10:g}"
            )
        return best, times

    def guess(self, timed: Recipe, other: Recipe, seconds: float) -> float:
        """Return about how many times the steps of `other` the time allows, from the time of another recipe."""
        ratio = timed.cost * timed.steps[1] / (other.cost * other.steps[1])
        return self.times(timed, seconds) * ratio

    def times(self, recipe: Recipe, seconds: float) -> float:
        """Return how many times the recipe's steps fit into the time; 0 if not even the rest does."""
        fixed, steps = self.time(recipe).fixed, self.time(recipe).of_steps(recipe.steps)
        return max(0.0, (seconds - fixed) / steps)

    def time(self, recipe: Recipe) -> RecipeTime:
        """Return what the recipe takes, timed once."""
        if recipe not in self.timed:
            section = data_section(self.summary, recipe)
            data = load(FolderConfig(**section))
            find_leaks(data)  # whose result is cached, as are large folders: each stage will then start as fast
            self.timed[recipe] = time = time_recipe(recipe, partial(load, FolderConfig(**section)), section)
            self.data[recipe.resolution] = data
            self.say(f"{recipe}: {time}")
        return self.timed[recipe]

    def plan(self, recipe: Recipe, times: float, minutes: float | None = None) -> Plan:
        """Return the plan of a recipe with `times` its steps, at most `MOST` times."""
        time = self.time(recipe)
        data = self.data[recipe.resolution]
        first, second = (max(10, 10 * round(min(times, MOST) * steps / 10)) for steps in recipe.steps)
        steps = (0 if recipe.in_pixels else first, second)
        psnr = None
        if not recipe.in_pixels:
            psnr = MEASURED.range(pca_psnr(data.train), steps[0] * recipe.networks.batches[0])
        seconds = time.seconds(steps)
        notes = tuple(_notes(self.summary, recipe, times, minutes))
        return Plan(self.summary, recipe, data_section(self.summary, recipe), steps, seconds, psnr, time.disk, notes)


def _notes(summary: FolderSummary, recipe: Recipe, times: float, minutes: float | None) -> list[str]:
    notes: list[str] = []
    if times < ENOUGH:
        notes.append(f"these are {times:.0%} of the steps that a good result takes: expect blurred pictures")
    if minutes is not None and times > MOST:
        notes.append(f"more than {MOST:g} times a recipe's steps are not planned: the time is not used up")
    if summary.count < FEW:
        notes.append(
            f"a model trained on {summary.count} pictures is likely to copy them; `ldm-kit memorisation` shows how far"
        )
    if recipe.scale != "small":
        notes.append("networks of this size have not been measured by us: PSNR and minutes are extrapolated")
    return notes
