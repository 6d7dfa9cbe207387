"""SIGKILL of training scripts at random moments: of the only process, of one of two, of the launcher alone."""

import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from ldm_kit.training import checkpoint, run_folder
from tests.stress import victims
from tests.stress.harness import (
    ENDLESS,
    Harness,
    Trial,
    check_checkpoints,
    check_equal,
    exit_code,
    rank_environments,
    run_result,
    wait_until,
)

ALONE, RANKS, LAUNCHERS = 60, 16, 8  # trials
SAVING = ("train.checkpoint_every=2",)
GRACE = 30.0  # seconds that torchrun gives a worker between SIGTERM and SIGKILL


def trials(harness: Harness) -> Iterator[Trial]:
    """Yield trials whose moments are drawn with a fixed seed."""
    kinds, draw = list(victims.KINDS), random.Random(5)
    for number in range(ALONE):
        kind, again, workers = kinds[number % len(kinds)], number % 3 == 0, 2 * (number % 4 == 1)
        moments = [draw.random() for _ in range(1 + again)]
        name = f"{kind}, {workers} workers, killed at {', '.join(f'{m:.2f}' for m in moments)} of the run"
        yield name, partial(check_killed, harness, kind, workers, moments)
    for number in range(RANKS):
        kind, lost, moment = kinds[number % len(kinds)], number // len(kinds) % 2, draw.random()
        name = f"{kind}, process {lost} of two killed at {moment:.2f} of the run"
        yield name, partial(check_killed_rank, harness, kind, lost, moment)
    for number in range(LAUNCHERS):
        kind, pause = ("text", "vq")[number % 2], draw.random()
        yield f"{kind}, launcher killed {pause:.2f} s into training", partial(check_orphans, harness, kind, pause)


def _uninterrupted(harness: Harness, kind: str, world: int) -> tuple[dict[str, Any], float]:
    """Return what an uninterrupted script leaves, and the seconds that it takes."""

    def make() -> tuple[dict[str, Any], float]:
        with harness.folder() as folder:
            script, start = harness.script(kind, folder / "run", *SAVING), time.monotonic()
            script.finish(world=world)
            return run_result(script.run), time.monotonic() - start

    return harness.once(f"kills {kind} {world}", make)


def check_killed(harness: Harness, kind: str, workers: int, moments: list[float]) -> None:
    """Check that one process, killed once or twice, resumes to the same bits."""
    expected, seconds = _uninterrupted(harness, kind, 1)
    with harness.folder() as folder:
        script = harness.script(kind, folder / "run", *SAVING, f"train.workers={workers}")
        for moment in moments:
            process = script.start("--resume", "latest")
            time.sleep(moment * seconds)
            expect_one = bool(checkpoint.steps(script.run))
            process.kill()
            assert exit_code(process) in (-signal.SIGKILL, 0), script.tail
            check_checkpoints(script.run, expect_one)
        script.finish()
        check_equal(run_result(script.run), expected)


def check_killed_rank(harness: Harness, kind: str, lost: int, moment: float) -> None:
    """Check that after one of two processes is killed the other ends on SIGTERM, and both resume to the same bits."""
    expected, seconds = _uninterrupted(harness, kind, 2)
    with harness.folder() as folder:
        script = harness.script(kind, folder / "run", *SAVING)
        both = script.start_ranks(2, "--resume", "latest")
        time.sleep(moment * seconds)
        expect_one = bool(checkpoint.steps(script.run))
        both[lost].kill()
        exit_code(both[lost])
        both[1 - lost].terminate()  # as a launcher does
        exit_code(both[1 - lost], GRACE)
        check_checkpoints(script.run, expect_one)
        script.finish(world=2)
        check_equal(run_result(script.run), expected)


def check_orphans(harness: Harness, kind: str, pause: float) -> None:
    """Check that workers whose launcher is killed save and end, free the folder, and resume to the same bits."""
    with harness.folder() as folder:
        script = harness.script(kind, folder / "run", *ENDLESS)
        line, environments = [str(script.config)], rank_environments(2)
        launcher = harness.process(victims.launch, victims.SCRIPTS[kind], line, environments, script.output)
        wait_until((script.run / "metrics.jsonl").exists, launcher)
        time.sleep(pause)
        workers = [int(pid) for pid in script.output.with_suffix(".pids").read_text().split()]
        assert all(map(victims.is_alive, workers)), script.tail
        launcher.kill()
        exit_code(launcher)
        assert victims.wait_for_end(workers, GRACE), "workers outlive their launcher"
        check_checkpoints(script.run, expect_one=True)
        with run_folder.Lock(script.run):
            pass
        script.check_two_more_steps(folder / "whole", world=2)
