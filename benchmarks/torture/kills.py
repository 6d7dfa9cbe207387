"""Kill -9 of real doors at random moments: of the only process, of one of two, of the launcher alone."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.torture import victims
from benchmarks.torture.bench import DOORS, Bench, Door, ended, figures, good, outcome, places, same, until
from benchmarks.torture.trial import Case
from ldm_kit.training import checkpoint, run_folder
from tests.training.helpers import tensors_of

ALONE, RANKS, LAUNCHERS = 60, 16, 8  # trials
SAVING = ("train.checkpoint_every=2",)
STOPPING = 30.0  # seconds that torchrun gives a worker between SIGTERM and SIGKILL


def cases(bench: Bench) -> Iterator[Case]:
    """Trials with moments from a seed of their own."""
    kinds, draw = list(DOORS), random.Random(5)
    for number in range(ALONE):
        kind, again, workers = kinds[number % len(kinds)], number % 3 == 0, 2 * (number % 4 == 1)
        moments = [draw.random() for _ in range(1 + again)]
        name = f"{kind}, {workers} workers, killed at {', '.join(f'{m:.2f}' for m in moments)} of the run"
        yield Case(name, lambda a=(kind, workers, moments): killed(bench, *a))
    for number in range(RANKS):
        kind, lost, moment = kinds[number % len(kinds)], number // len(kinds) % 2, draw.random()
        name = f"{kind}, process {lost} of two killed at {moment:.2f} of the run"
        yield Case(name, lambda a=(kind, lost, moment): killed_rank(bench, *a))
    for number in range(LAUNCHERS):
        kind, pause = ("text", "vq")[number % 2], draw.random()
        yield Case(f"{kind}, launcher killed {pause:.2f} s into training", lambda a=(kind, pause): orphaned(bench, *a))


def undisturbed(bench: Bench, kind: str, world: int) -> tuple[dict[str, Any], float]:
    """What the door leaves when nobody disturbs it, and the seconds that it takes."""

    def make() -> tuple[dict[str, Any], float]:
        with bench.folder() as folder:
            door, began = bench.door(kind, folder / "run", *SAVING), time.monotonic()
            door.finish(world=world)
            return outcome(door.run), time.monotonic() - began

    return bench.once(f"door {kind} {world}", make)


def killed(bench: Bench, kind: str, workers: int, moments: list[float]) -> None:
    """One process, killed once or twice, goes on to the same bits."""
    expected, seconds = undisturbed(bench, kind, 1)
    with bench.folder() as folder:
        door = bench.door(kind, folder / "run", *SAVING, f"train.workers={workers}")
        for moment in moments:
            victim = door.start("--resume", "latest")
            time.sleep(moment * seconds)
            had = bool(checkpoint.steps(door.run))
            victim.kill()
            assert ended(victim) in (-signal.SIGKILL, 0), door.said.read_text()[-600:]
            good(door.run, had)
        door.finish()
        same(outcome(door.run), expected)


def killed_rank(bench: Bench, kind: str, lost: int, moment: float) -> None:
    """One of two is killed; asked to stop, as by a launcher, the other leaves, and both go on to the same bits."""
    expected, seconds = undisturbed(bench, kind, 2)
    with bench.folder() as folder:
        door = bench.door(kind, folder / "run", *SAVING)
        both = door.start_ranks(2, "--resume", "latest")
        time.sleep(moment * seconds)
        had = bool(checkpoint.steps(door.run))
        both[lost].kill()
        ended(both[lost])
        both[1 - lost].terminate()
        ended(both[1 - lost], STOPPING)
        good(door.run, had)
        door.finish(world=2)
        same(outcome(door.run), expected)


def orphaned(bench: Bench, kind: str, pause: float) -> None:
    """The launcher alone is killed: its workers save and leave, the folder is free, and both go on to the same bits."""
    with bench.folder() as folder:
        door = bench.door(kind, folder / "run", "train.steps=100000", "train.checkpoint_every=100000", *RARE)
        launcher = bench.process(victims.launch, door.name, [str(door.config)], places(2), door.said)
        until((door.run / "metrics.jsonl").exists, launcher)
        time.sleep(pause)
        workers = [int(pid) for pid in door.said.with_suffix(".pids").read_text().split()]
        assert all(map(victims.alive, workers)), door.said.read_text()[-600:]
        launcher.kill()
        ended(launcher)
        left = victims.gone(workers, STOPPING)
        for worker in filter(victims.alive, workers):
            victims.end(worker)
        assert left, "workers go on without their launcher"
        good(door.run, had=True)
        with run_folder.Lock(door.run):
            (step,) = checkpoint.steps(door.run)
        end = (f"train.steps={step + 2}", *RARE)
        _the_same_end(bench, kind, door, end, folder / "whole")


RARE = ("log.evaluate_every=100000",)


def _the_same_end(bench: Bench, kind: str, door: Door, end: tuple[str, ...], whole: Path) -> None:
    door.finish(*end, world=2)
    other = bench.door(kind, whole, "train.checkpoint_every=100000", *end)
    other.finish(world=2)
    last = max(checkpoint.steps(whole).items())[1].name
    same(tensors_of(door.run / last), tensors_of(whole / last))
    same({"metrics": figures(door.run)}, {"metrics": figures(whole)})
