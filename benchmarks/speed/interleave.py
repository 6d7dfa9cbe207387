"""Interleaved timing (A B A B ...) of variants, each in its own process, so that a busy machine slows all alike."""

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

Work = Callable[[], Iterator[object]]  # opens a variant; each `next` does one unit of work, such as a training step

PRELOAD = ("benchmarks.kit", "benchmarks.speed.peers", "benchmarks.speed.machine")
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOAD))  # imported once; each variant then starts at once


@dataclass(frozen=True)
class Plan:
    """Lengths of a measurement, in units of work such as training steps."""

    blocks: int = 5  # how many times each variant has its turn
    steps: int = 4  # units of work in a turn, called a block
    warmup: int = 2  # units of work of each variant before the first block


class Block(NamedTuple):
    """What one block (several units of work) of a variant took."""

    wall: float  # seconds by the clock for each unit
    cpu: float  # seconds of processor time for each unit
    memory: int  # most bytes that the process has held so far


@dataclass
class Timing:
    """Measured times of one variant."""

    wall: list[float] = field(default_factory=list)  # seconds by the clock for a unit of work, in each block
    cpu: list[float] = field(default_factory=list)  # likewise of processor time, of all the variant's threads
    first: float = 0.0  # seconds by the clock from opening the variant to the end of its first unit
    memory: int = 0  # most bytes that the variant's process held

    @property
    def seconds(self) -> float:
        """Seconds by the clock for a unit of work: the median over blocks."""
        return statistics.median(self.wall)

    def speedup(self, slower: "Timing") -> float:
        """Return how many times as fast as `slower` this variant is: the ratio of median times by the clock."""
        return slower.seconds / self.seconds

    def spread(self, slower: "Timing") -> tuple[float, float]:
        """Return the smallest and the largest speed-up over `slower`, by the clock, within any single block."""
        ratios = [b / a for a, b in zip(self.wall, slower.wall, strict=True)]
        return min(ratios), max(ratios)

    def speedup_cpu(self, slower: "Timing") -> float:
        """Return how many times less processor time than `slower` this variant takes: the ratio of medians."""
        return statistics.median(slower.cpu) / statistics.median(self.cpu)


class Worker:
    """One variant, opened in its own process, which waits while others are timed.

    Args:
        name: the variant's name, for messages.
        work: function that opens the variant in that process.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        self.pipe, far = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_run_blocks, args=(work, far), daemon=True)
        self.process.start()
        far.close()

    def run(self, count: int) -> Block:
        """Do `count` units of work and return their times and memory; raises RuntimeError if the variant fails."""
        self.pipe.send(count)
        try:
            block = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}: its process has died") from None
        if isinstance(block, str):
            raise RuntimeError(f"{self.name} failed:\n{block}")
        return block

    def close(self) -> None:
        """End the process, by SIGKILL if it does not end by itself."""
        self.pipe.close()
        self.process.join(20)
        self.process.kill()
        self.process.join()


def time_interleaved(variants: Mapping[str, Work], plan: Plan) -> dict[str, Timing]:
    """Open all variants, by name, warm them up, and time them in turns of one block; return their times by name."""
    timings = {name: Timing() for name in variants}
    with ExitStack() as stack:
        workers = [Worker(name, work) for name, work in variants.items()]
        for worker in workers:
            stack.callback(worker.close)
        for worker in workers:
            timings[worker.name].first = worker.run(1).wall
            if plan.warmup > 1:
                worker.run(plan.warmup - 1)
        for _ in range(plan.blocks):
            for worker in workers:
                block, timing = worker.run(plan.steps), timings[worker.name]
                timing.wall.append(block.wall)
                timing.cpu.append(block.cpu)
                timing.memory = block.memory
    return timings


def _run_blocks(work: Work, pipe: Any) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        try:
            units: Iterator[object] | None = None
            while True:
                count = pipe.recv()
                units = work() if units is None else units
                pipe.send(_time(units, count))
        except EOFError:
            return
        except Exception:
            pipe.send(traceback.format_exc())


def _time(units: Iterator[object], count: int) -> Block:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(units)
    spent = (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
    return Block(*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
