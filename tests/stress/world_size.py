"""Any number of processes trains the same: the same random draws for each position of a batch, and the same losses."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ldm_kit.diffusion import rng
from ldm_kit.diffusion.schedule import Schedule
from tests.stress.harness import Harness, Trial
from tests.stress.victims import KINDS, METHODS, SCRIPTS, train, train_lines
from tests.training.helpers import digest

LIMIT = 1e-6
# Adversarial training of these tiny autoencoders is chaotic: a learning rate that differs by 1e-7 moves the
# discriminator's loss by 8e-2 within 100 steps, though by no more than 4e-7 within 30. Of VQ's codes one is chosen:
# there rounding may make a leap, in contiguous layout at the seventh step.
STEPS = {"kl": 30, "vq": 10, "text": 100, "classes": 100, "classifier": 100}
# Dropout masks belong to a micro-batch, not to a position; revival copies latents of the main process. Inside hinge's
# margins the discriminator's last bias has no gradient but rounding, of which Adam makes a whole step.
SMOOTH = ("loss.adversarial.loss=vanilla",)
EXACT = {
    "kl": SMOOTH,
    "vq": (*SMOOTH, "autoencoder.revive_every=0", "train.channels_last=true"),
    "text": ("unet.dropout=0",),
    "classes": ("unet.dropout=0",),
    "classifier": ("net.dropout=0",),
}
CHANGES = ((2, 1, 2), (1, 2, 1), (4, 1, 2), (1, 4, 2))
OF_STEPS = ("judged", "move")  # draws that belong to a step; every process makes them for itself
Row = tuple[int, str, str]  # (position, what, its SHA-256)


def trials(harness: Harness) -> Iterator[Trial]:
    """Yield draws and losses of every kind on 2 and 4 processes, and changes of their number during a run."""
    for kind in KINDS:
        for world in (2, 4):
            yield f"{kind}, draws of {world} processes", partial(check_draws, harness, kind, world)
            yield f"{kind}, losses of {world} processes", partial(check_losses, harness, kind, world)
        for worlds in CHANGES:
            name = ", ".join(map(str, worlds))
            yield f"{kind}, on {name} processes", partial(check_changes, harness, kind, worlds)


class Recorder:
    """Digests of what belongs to each position of a batch: picture with augmentation, times, noises and drops."""

    def __init__(self, kind: str) -> None:
        self.rows: list[Row] = []
        self.batches: list[Any] = []
        self.losses = METHODS[kind].losses
        self.add_noise = Schedule.add_noise

    def note(self, positions: Tensor, what: str, values: Tensor) -> None:
        """Add a row for each position [B] of values [B, ...]."""
        self.rows.extend((int(p), what, digest({"": value})) for p, value in zip(positions, values, strict=True))

    def record_draws(self, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap a function of `rng` so that its draws within a loss are recorded."""

        def recorded(seed: int, name: str, positions: Tensor, *more: Any) -> Tensor:
            values = draw(seed, name, positions, *more)
            if (
                self.batches and name not in OF_STEPS
            ):  # every process may draw alike for itself, when it is set up and when it evaluates
                self.note(positions, name, values)
            return values

        return recorded

    def record_noised(self, schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Record the times of a batch that is noised."""
        self.note(self.batches[-1]["position"], "time", t)
        return self.add_noise(schedule, x_0, eps, t)

    def record_losses(self, task: Any, batch: Any, step: int) -> Iterator[Any]:
        """Record the pictures of a batch whose losses are computed."""
        self.batches.append(batch)
        self.note(batch["position"], "picture", batch["x" if "x" in batch else "mean"])
        yield from self.losses(task, batch, step)
        self.batches.clear()


def recorded_draws(pictures: Path, kind: str, run: Path, *overrides: str) -> list[list[Row]]:
    """Train 8 steps; return what was used for each position, step by step."""
    recorder = Recorder(kind)

    def losses(self: Any, batch: Any, step: int) -> Iterator[Any]:
        return recorder.record_losses(self, batch, step)

    def add_noise(self: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return recorder.record_noised(self, x_0, eps, t) if recorder.batches else recorder.add_noise(self, x_0, eps, t)

    with ExitStack() as stack:
        for owner, name, replacement in [
            (rng, "normal", recorder.record_draws(rng.normal)),
            (rng, "uniform", recorder.record_draws(rng.uniform)),
            (Schedule, "add_noise", add_noise),
            (METHODS[kind], "losses", losses),
        ]:
            stack.enter_context(patch.object(owner, name, replacement))
        train(pictures, kind, run, *overrides)
    return [sorted(row for row in recorder.rows if row[0] // 8 == step) for step in range(8)]


def check_draws(harness: Harness, kind: str, world: int) -> None:
    """Check that all processes together draw for each batch what one draws, each position once."""

    def alone() -> list[list[Row]]:
        with harness.folder() as folder:
            return recorded_draws(harness.pictures, kind, folder / "run", *EXACT[kind])

    expected = harness.once(f"draws {kind}", alone)
    names = {what for _, what, _ in expected[0]}
    needed = {"picture", "posterior"} if SCRIPTS[kind] == "train_ae" else {"picture", "time", "noise"}
    assert names >= needed, names
    with harness.folder() as folder:
        ranks = harness.run(world, recorded_draws, kind, folder / "run", *EXACT[kind])
    for step, whole in enumerate(expected):
        joined = sorted(row for rank in ranks for row in rank[step])
        assert joined == whole, f"step {step + 1}: {sorted({*joined} ^ {*whole})[:4]}"


def check_losses(harness: Harness, kind: str, world: int) -> None:
    """Check that the losses of every module over many steps differ by rounding alone."""
    overrides = (f"train.steps={STEPS[kind]}", *EXACT[kind])

    def alone() -> list[dict[str, str]]:
        with harness.folder() as folder:
            return train_lines(harness.pictures, kind, folder / "run", None, *overrides)

    expected = harness.once(f"losses {kind}", alone)
    with harness.folder() as folder:
        ranks = harness.run(world, train_until, kind, folder / "run", None, STEPS[kind], *overrides)
    assert all(lines == ranks[0] for lines in ranks), "processes say different things"
    check_close(ranks[0], expected)


def train_until(
    pictures: Path, kind: str, run: Path, resume: str | None, until: int, *overrides: str
) -> list[dict[str, str]]:
    """Return the lines of a run that is saved and stopped after a step."""
    saving = f"train.checkpoint_every={until}"
    return train(pictures, kind, run, *overrides, saving, resume=resume, until=until).lines


def check_close(lines: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Check that all losses are within the limit, relatively, and learning rates equal."""
    assert [line["lr"] for line in lines] == [line["lr"] for line in expected]
    for key in {key for line in expected for key in line if key.endswith("loss")}:
        a, b = (
            torch.tensor([float.fromhex(line[key]) for line in x if key in line]).double() for x in (lines, expected)
        )
        apart = ((a - b).abs() / b.abs().clamp_min(1e-12)).max()
        assert apart <= LIMIT, f"{key} is {apart:.1e} apart, at step {int(((a - b).abs() / b.abs()).argmax()) + 1}"


def check_changes(harness: Harness, kind: str, worlds: tuple[int, ...]) -> None:
    """Check that a run whose number of processes changes twice has the losses of one process."""
    with harness.folder() as folder:
        lines, resume = [], None
        overrides = (f"train.steps={4 * len(worlds)}", *EXACT[kind])
        expected = train_lines(harness.pictures, kind, folder / "whole", None, *overrides)
        for part, world in enumerate(worlds, start=1):
            lines += harness.run(world, train_until, kind, folder / "run", resume, 4 * part, *overrides)[0]
            resume = "latest"
        check_close(lines, expected)
