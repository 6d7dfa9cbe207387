"""Variants in processes of their own, measured in turns (A B A B ...), so that a noisy machine disturbs all alike."""

import os
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, NamedTuple

Work = Callable[[], Iterator[object]]  # opens a variant; each `next` is one unit of its work

PRELOAD = ("benchmarks.speed.ours", "benchmarks.speed.peers", "benchmarks.speed.strangers", "benchmarks.speed.machine")
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOAD))  # imported once; each variant then starts at once


@dataclass(frozen=True)
class Plan:
    """How often: `blocks` turns of `steps` units each, after `warmup` units."""

    blocks: int = 5
    steps: int = 4
    warmup: int = 2


class Turn(NamedTuple):
    """Of a block: seconds a unit by the clock and of processor time, and the most memory so far, in bytes."""

    wall: float
    cpu: float
    memory: int


@dataclass
class Measured:
    """Seconds a unit, of each block."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of all threads: free of what else the machine does meanwhile
    first: float = 0.0  # seconds by the clock until the first unit is done, with all that opens
    memory: int = 0  # most bytes that its process held

    @property
    def seconds(self) -> float:
        """The median of the blocks by the clock."""
        return statistics.median(self.wall)

    def times(self, slower: "Measured") -> float:
        """How many times faster than another: the ratio of medians."""
        return slower.seconds / self.seconds

    def spread(self, slower: "Measured") -> tuple[float, float]:
        """The smallest and the largest of the ratios within a turn."""
        ratios = [b / a for a, b in zip(self.wall, slower.wall, strict=True)]
        return min(ratios), max(ratios)

    def times_cpu(self, slower: "Measured") -> float:
        """The ratio of medians in processor time."""
        return statistics.median(slower.cpu) / statistics.median(self.cpu)


class Runner:
    """One variant, open in its own process; it idles between its turns."""

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(work, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, count: int) -> Turn:
        """Make `count` units; raises RuntimeError if it fails."""
        self.pipe.send(count)
        try:
            found = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}: its process has died") from None
        if isinstance(found, str):
            raise RuntimeError(f"{self.name} failed:\n{found}")
        return found

    def close(self) -> None:
        """Let the process end; kill it if it does not."""
        self.pipe.close()
        self.process.join(20)
        self.process.kill()
        self.process.join()


def in_turns(variants: Mapping[str, Work], plan: Plan) -> dict[str, Measured]:
    """Open all variants, warm them up, and measure them block by block in turns."""
    found = {name: Measured() for name in variants}
    with ExitStack() as stack:
        runners = [Runner(name, work) for name, work in variants.items()]
        for runner in runners:
            stack.callback(runner.close)
        for runner in runners:
            found[runner.name].first = runner.run(1).wall
            if plan.warmup > 1:
                runner.run(plan.warmup - 1)
        for _ in range(plan.blocks):
            for runner in runners:
                turn, one = runner.run(plan.steps), found[runner.name]
                one.wall.append(turn.wall)
                one.cpu.append(turn.cpu)
                one.memory = turn.memory
    return found


def _serve(work: Work, pipe: Any) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        try:
            units: Iterator[object] | None = None
            while True:
                count = pipe.recv()
                units = work() if units is None else units
                pipe.send(_timed(units, count))
        except EOFError:
            return
        except Exception:
            pipe.send(traceback.format_exc())


def _timed(units: Iterator[object], count: int) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(units)
    spent = (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
    return Turn(*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
