"""Any number of processes trains the same: the same draws for each position of a batch, and the same losses."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.torture.bench import KINDS, Bench
from benchmarks.torture.trial import Case
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.methods.autoencoder import Autoencoding
from ldm_kit.methods.classifier import Classifying
from ldm_kit.methods.latent import Latent
from tests.training.helpers import Played, digest, play, settings

LIMIT = 1e-6
# The game of these tiny autoencoders is chaotic: a learning rate that differs by 1e-7 moves the judge's loss by 8e-2
# within 100 steps, though by no more than 4e-7 within 30. Of VQ's codes one is chosen: there rounding may make a leap,
# in contiguous layout at the seventh step.
STEPS = {"kl": 30, "vq": 10, "text": 100, "classes": 100, "classifier": 100}
# Dropout masks belong to a micro-batch, not to a position; revival copies latents of the main process. Inside hinge's
# margins the judge's last bias has no gradient but rounding, of which Adam makes a whole step.
SMOOTH = ("criterion.adversarial.loss=vanilla",)
EXACT = {
    "kl": SMOOTH,
    "vq": (*SMOOTH, "autoencoder.revive_every=0", "train.channels_last=true"),
    "text": ("unet.dropout=0",),
    "classes": ("unet.dropout=0",),
    "classifier": ("net.dropout=0",),
}
TASKS = {"kl": Autoencoding, "vq": Autoencoding, "text": Latent, "classes": Latent, "classifier": Classifying}
Row = tuple[int, str, str]  # (position, what, its sha256)
CHANGES = {"2, 1, 2": (2, 1, 2), "1, 2, 1": (1, 2, 1), "4, 1, 2": (4, 1, 2), "1, 4, 2": (1, 4, 2)}


def cases(bench: Bench) -> Iterator[Case]:
    """Draws and losses of every kind on 2 and 4 processes, and changes of their number in the middle."""
    for kind in KINDS:
        for world in (2, 4):
            yield Case(f"{kind}, draws of {world} processes", lambda a=(kind, world): same_draws(bench, *a))
            yield Case(f"{kind}, losses of {world} processes", lambda a=(kind, world): same_losses(bench, *a))
        for name, path in CHANGES.items():
            yield Case(f"{kind}, on {name} processes", lambda a=(kind, path): changed(bench, *a))


def recorded(pictures: Path, kind: str, run: Path, *overrides: str) -> list[list[Row]]:
    """What belongs to each position: the picture with its augmentation, times, noises and drops, as they were used."""
    rows: list[Row] = []

    def note(positions: Tensor, what: str, values: Tensor) -> None:
        rows.extend((int(p), what, digest({"": value})) for p, value in zip(positions, values, strict=True))

    def drawing(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(seed: int, name: str, positions: Tensor, *more: Any) -> Tensor:
            values = draw(seed, name, positions, *more)
            if batches:  # every process may draw alike for itself, when it is set up and when it evaluates
                note(positions, name, values)
            return values

        return drawn

    def noising(schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        note(batches[-1]["position"], "time", t)
        return add_noise(schedule, x_0, eps, t)

    def losing(self: Any, batch: Any, step: int) -> Iterator[Any]:
        batches.append(batch)
        note(batch["position"], "picture", batch["x" if "x" in batch else "mean"])
        yield from losses(self, batch, step)
        batches.clear()

    batches, add_noise, losses = [], Schedule.add_noise, TASKS[kind].losses
    with ExitStack() as stack:
        for where, name, replacement in [
            (rng, "normal", drawing(rng.normal)),
            (rng, "uniform", drawing(rng.uniform)),
            (Schedule, "add_noise", noising),
            (TASKS[kind], "losses", losing),
        ]:
            stack.enter_context(patch.object(where, name, replacement))
        play(settings(KINDS[kind], pictures, run, *overrides))
    return [sorted(row for row in rows if row[0] // 8 == step) for step in range(8)]


def same_draws(bench: Bench, kind: str, world: int) -> None:
    """All processes together draw for each batch what one draws, each position once."""

    def alone() -> list[list[Row]]:
        with bench.folder() as folder:
            return recorded(bench.pictures, kind, folder / "run", *EXACT[kind])

    expected = bench.once(f"draws {kind}", alone)
    kinds = {what for _, what, _ in expected[0]}
    assert kinds >= ({"picture", "posterior"} if TASKS[kind] is Autoencoding else {"picture", "time", "noise"}), kinds
    with bench.folder() as folder:
        found = bench.together(world, recorded, bench.pictures, kind, folder / "run", *EXACT[kind])
    for step, whole in enumerate(expected):
        joined = sorted(row for rank in found for row in rank[step])
        assert joined == whole, f"step {step + 1}: {sorted({*joined} ^ {*whole})[:4]}"


def same_losses(bench: Bench, kind: str, world: int) -> None:
    """Every player's losses over many steps differ by rounding alone."""
    long = (f"train.steps={STEPS[kind]}", *EXACT[kind])

    def alone() -> Played:
        with bench.folder() as folder:
            return play(settings(KINDS[kind], bench.pictures, folder / "run", *long))

    expected = bench.once(f"losses {kind}", alone)
    with bench.folder() as folder:
        found = bench.together(world, played, bench.pictures, kind, folder / "run", None, STEPS[kind], *long)
    assert all(rank == found[0] for rank in found), "processes say different things"
    close(found[0], expected.lines)


def played(pictures: Path, kind: str, run: Path, resume: str | None, until: int, *overrides: str) -> list[dict]:
    """What a run says until it is stopped after a step."""
    config = settings(KINDS[kind], pictures, run, *overrides, f"train.checkpoint_every={until}")
    return play(config, resume, until=until).lines


def close(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """All losses within the limit, relatively; learning rates equal."""
    assert [line["lr"] for line in found] == [line["lr"] for line in expected]
    for key in {key for line in expected for key in line if key.endswith("loss")}:
        a, b = (
            torch.tensor([float.fromhex(line[key]) for line in x if key in line]).double() for x in (found, expected)
        )
        apart = ((a - b).abs() / b.abs().clamp_min(1e-12)).max()
        assert apart <= LIMIT, f"{key} is {apart:.1e} apart, at step {int(((a - b).abs() / b.abs()).argmax()) + 1}"


def changed(bench: Bench, kind: str, path: tuple[int, ...]) -> None:
    """A run whose number of processes changes twice has the losses of one process."""
    with bench.folder() as folder:
        lines, resume, end = [], None, 4 * len(path)
        more = (f"train.steps={end}", *EXACT[kind])
        alone = play(settings(KINDS[kind], bench.pictures, folder / "whole", *more))
        for part, world in enumerate(path, start=1):
            given = (bench.pictures, kind, folder / "run", resume, 4 * part, *more)
            lines += played(*given) if world == 1 else bench.together(world, played, *given)[0]
            resume = "latest"
        close(lines, alone.lines)
