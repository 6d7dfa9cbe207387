"""Resumed runs equal uninterrupted ones: every later figure as hex, every tensor by its SHA-256."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ldm_kit.training import checkpoint
from tests.stress import victims
from tests.stress.harness import Harness, Trial, check_equal
from tests.training.helpers import tensors_of

SAVED = {"mid-epoch": 5, "on the last batch": 3, "on the first": 4}  # an epoch is 24 pictures in 3 batches


def trials(harness: Harness) -> Iterator[Trial]:
    """Yield every combination of kind, loader workers, processes, micro-batches and moment."""
    for kind, workers, world, micro_batches, (moment, step) in product(
        victims.KINDS, (0, 2), (1, 2), (1, 2), SAVED.items()
    ):
        name = f"{kind}, {workers} workers, {world} processes, accumulation {micro_batches}, saved {moment}"
        micro = f"train.micro_batch={8 // world // micro_batches}"
        yield name, partial(check, harness, kind, world, step, (micro, f"train.workers={workers}"))


def check(harness: Harness, kind: str, world: int, step: int, overrides: tuple[str, str]) -> None:
    """Check that a run resumed after a step equals the one without loader workers and interruption."""
    micro = overrides[0]

    def make() -> Any:
        with harness.folder() as folder:
            return harness.run(world, train_in_parts, kind, folder, (), micro)

    expected = harness.once(f"resume {kind} {world} {micro}", make)
    with harness.folder() as folder:
        results = harness.run(world, train_in_parts, kind, folder, (step,), *overrides)
    for result, whole in zip(results, expected, strict=True):
        check_equal(result, whole)


def train_in_parts(pictures: Path, kind: str, folder: Path, cuts: tuple[int, ...], *overrides: str) -> dict[str, Any]:
    """Train a run, stopped after the steps of `cuts` and resumed; return its lines and the digests of what it left."""
    lines, weights, resume = [], {}, None
    for stop in [*cuts, None]:
        every = f"train.checkpoint_every={stop or 100}"
        between = _draw_elsewhere if cuts else lambda step: None
        played = victims.train(
            pictures, kind, folder / "run", *overrides, every, resume=resume, until=stop, between=between
        )
        lines, weights, resume = lines + played.lines, played.weights, "latest"
    last = max(checkpoint.steps(folder / "run").items())[1]
    return {"figures": lines, "weights": weights, "tensors": tensors_of(last)}


def _draw_elsewhere(step: int) -> None:
    """Disturb the global random state between steps."""
    torch.manual_seed(step)
    torch.rand(step)
