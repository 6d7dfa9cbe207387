"""What a step costs as things grow, and how long doors take to open."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.speed import ours
from benchmarks.speed.page import table
from benchmarks.speed.sections import Bench
from benchmarks.speed.turns import Work

TOKENS = 8  # few, so that a hundred thousand captions fit in memory
DOORS = ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")
STARTS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import ldm_kit": ("-c", "import ldm_kit"),
    "import ldm_kit.pipeline": ("-c", "import ldm_kit.pipeline"),
    **{f"{door} --help": (door, "--help") for door in DOORS},
    "ldm-kit --help": ("-c", "from ldm_kit.cli import app; app()", "--help"),
}


def growth(bench: Bench) -> str:
    """Seconds a step against batch, resolution and size of the set."""
    few = replace(bench, plan=replace(bench.plan, steps=1))
    batches, records = ((2, 4), 20) if bench.quick else ((8, 16, 32, 64), 1000)
    small = bench.sizes[0].overrides[0]
    batch = batches[len(batches) // 2 - 1]

    def step(side: int, count: int, size: int) -> Work:
        return partial(ours.synthetic, bench.world, side, count, TOKENS, (small, f"train.batch_size={size}"))

    grown = {f"batch {size}": step(8, records, size) for size in batches}
    grown |= {f"latents {side} x {side}, batch {batch}": step(side, records, batch) for side in (8, 16)}
    grown |= {f"{n} records, batch {batch}": step(8, n, batch) for n in (records, 100 * records)}
    found = few.measured(grown)
    rows = [
        (name, f"{one.seconds * 1e3:.0f}", f"{statistics.median(one.cpu) * 1e3:.0f}") for name, one in found.items()
    ]
    head = ("our stage-2 step", "milliseconds", "... of processor time")
    return f"## Growth\n\nThe demo's U-Net on random latents, {TOKENS} tokens:\n\n{table(head, rows)}"


def start(bench: Bench) -> str:
    """Seconds until doors have opened, in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for _ in range(bench.plan.blocks):
        for name, arguments in STARTS.items():
            found[name].append(_timed(arguments))
    rows = [
        (name, *(f"{statistics.median(column):.2f}" for column in zip(*times, strict=True)))
        for name, times in found.items()
    ]
    return f"## Start-up\n\nMedians:\n\n{table(('', 'seconds', '... of processor time'), rows)}"


def _timed(arguments: Sequence[str]) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu
