"""Interleaved timing (A B A B ...) of variants in processes of their own, so that a noisy machine disturbs all."""

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

PRELOAD = ("benchmarks.kit", "benchmarks.speed.peers", "benchmarks.speed.machine")
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOAD))  # imported once; each variant then starts at once


@dataclass(frozen=True)
class Plan:
    """Lengths of a measurement: `blocks` blocks of `steps` units of each variant, after `warmup` units."""

    blocks: int = 5
    steps: int = 4
    warmup: int = 2


class Block(NamedTuple):
    """Seconds a unit of one block by the clock and of processor time, and the most memory so far, in bytes."""

    wall: float
    cpu: float
    memory: int


@dataclass
class Timing:
    """Seconds a unit in each block of one variant."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of all threads: free of what else the machine does meanwhile
    first: float = 0.0  # seconds by the clock until the first unit is done, with all that opens
    memory: int = 0  # most bytes that its process held

    @property
    def seconds(self) -> float:
        """Median of the blocks by the clock."""
        return statistics.median(self.wall)

    def speedup(self, slower: "Timing") -> float:
        """Return how many times faster this is than another: the ratio of medians."""
        return slower.seconds / self.seconds

    def spread(self, slower: "Timing") -> tuple[float, float]:
        """Return the smallest and the largest of the ratios of neighbouring blocks."""
        ratios = [b / a for a, b in zip(self.wall, slower.wall, strict=True)]
        return min(ratios), max(ratios)

    def speedup_cpu(self, slower: "Timing") -> float:
        """Return the ratio of medians in processor time."""
        return statistics.median(slower.cpu) / statistics.median(self.cpu)


class Worker:
    """One variant, open in its own process, which idles between its blocks."""

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        self.pipe, far = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_run_blocks, args=(work, far), daemon=True)
        self.process.start()
        far.close()

    def run(self, count: int) -> Block:
        """Do `count` units of work; raises RuntimeError if the variant fails."""
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
    """Open all variants, warm them up, and time them block by block."""
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
