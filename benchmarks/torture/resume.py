"""A resumed run is the run that was not interrupted: every later figure as hex, every tensor by its sha256."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.torture.bench import KINDS, Bench, same
from benchmarks.torture.trial import Case
from ldm_kit.training import checkpoint
from tests.training.helpers import play, settings, tensors_of

SAVED = {"mid-epoch": 5, "on the last batch": 3, "on the first": 4}  # an epoch is 24 pictures in 3 batches


def cases(bench: Bench) -> Iterator[Case]:
    """The whole matrix."""
    for kind, workers, world, parts, (moment, at) in product(KINDS, (0, 2), (1, 2), (1, 2), SAVED.items()):
        name = f"{kind}, {workers} workers, {world} processes, accumulation {parts}, saved {moment}"
        yield Case(name, lambda a=(kind, workers, world, parts, at): check(bench, *a))


def check(bench: Bench, kind: str, workers: int, world: int, parts: int, at: int) -> None:
    """Resumed at `at` equals uninterrupted."""
    micro = f"train.micro_batch={8 // world // parts}"

    def whole() -> Any:
        with bench.folder() as folder:
            return anywhere(bench, world, trained, kind, folder, (), micro)

    expected = bench.once(f"resume {kind} {world} {parts}", whole)
    with bench.folder() as folder:
        found = anywhere(bench, world, trained, kind, folder, (at,), micro, f"train.workers={workers}")
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)


def anywhere(bench: Bench, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of the pictures and more returns in each of some processes; one process is this one."""
    if world == 1:
        return [function(bench.pictures, *arguments)]
    return bench.together(world, function, bench.pictures, *arguments)


def trained(pictures: Path, kind: str, folder: Path, cuts: tuple[int, ...], *overrides: str) -> dict[str, Any]:
    """A run that is stopped after the steps of `cuts` and gone on with; what it said, and what it left."""
    lines, weights, resume = [], {}, None
    for stop in [*cuts, None]:
        config = settings(KINDS[kind], pictures, folder / "run", *overrides, f"train.checkpoint_every={stop or 100}")
        played = play(config, resume, until=stop, between=disturbed if cuts else lambda number: None)
        lines, weights, resume = lines + played.lines, played.weights, "latest"
    last = max(checkpoint.steps(folder / "run").items())[1]
    return {"figures": lines, "weights": weights, "tensors": tensors_of(last)}


def disturbed(number: int) -> None:
    """Somebody else draws from the global random state between steps."""
    torch.manual_seed(number)
    torch.rand(number)
