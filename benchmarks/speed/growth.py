"""What a step costs as things grow, and how long doors take to open."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.speed import ours
from benchmarks.speed.page import table
from benchmarks.speed.sections import Bench
from benchmarks.speed.turns import Work
from benchmarks.speed.world import LDM

TOKENS = 8  # few, so that a hundred thousand captions fit in memory
DOORS = ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")
STARTS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import ldm_kit": ("-c", "import ldm_kit"),
    "import ldm_kit.models.pipeline": ("-c", "import ldm_kit.models.pipeline"),
    **{f"{door} --help": (door, "--help") for door in DOORS},
    "ldm-kit --help": ("-c", "from ldm_kit.cli import app; app()", "--help"),
}


def growth(bench: Bench) -> str:
    """Seconds a step against batch, resolution and size of the set."""
    batches, records = ((2, 4), 20) if bench.quick else ((8, 16, 32, 64), 1000)
    small = bench.size.overrides[0]
    batch = batches[len(batches) // 2 - 1]

    def step(side: int, count: int, size: int) -> Work:
        return partial(ours.synthetic, bench.world, side, count, TOKENS, (small, f"train.batch_size={size}"))

    grown = {f"batch {size}": step(8, records, size) for size in batches}
    grown |= {f"latents {side} x {side}, batch {batch}": step(side, records, batch) for side in (8, 16)}
    grown |= {f"{n} records, batch {batch}": step(8, n, batch) for n in (records, 100 * records)}
    found = bench.measured(grown)
    rows = [
        (name, f"{one.seconds * 1e3:.0f}", f"{statistics.median(one.cpu) * 1e3:.0f}") for name, one in found.items()
    ]
    head = ("our stage-2 step", "milliseconds", "... of processor time")
    return f"## Growth\n\nA U-Net {bench.size.wide} on random latents, {TOKENS} tokens:\n\n{table(head, rows)}"


def processes(bench: Bench) -> str:
    """Steps a second of the door itself with one process and two, a thread each, gradients averaged over gloo."""
    batch = 8 if bench.quick else 64
    cases = {
        f"1 process, batch {batch}": (1, batch),
        f"2 processes, batch {batch} between them": (2, batch),
        f"2 processes, batch {batch} each": (2, 2 * batch),
    }
    rows, first = [], 0.0
    for name, (count, size) in cases.items():
        pictures = size * _steps_a_second(bench, count, size)
        first = first or pictures
        rows.append((name, f"{pictures / size:.2f}", f"{pictures:.0f}", f"{pictures / first:.2f}"))
    head = (f"stage 2, U-Net {bench.size.wide}", "steps a second", "pictures a second", "times the first row")
    return f"## Growth with processes\n\nOne thread each, so two processes have two cores:\n\n{table(head, rows)}"


def _steps_a_second(bench: Bench, count: int, batch: int) -> float:
    settings, size = bench.world.stage2(), bench.size
    steps = 4 if bench.quick else 8 * bench.plan.blocks
    given = {
        "run": settings.run,
        "autoencoder": bench.world.autoencoder,
        "data.cache": bench.world.raster,
        "train.steps": steps,
        "log.every": steps // 4,  # the first quarter is not counted
        "log.evaluate_every": 10 * steps,
        "log.tensorboard": "false",
    }
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "train_ldm.py")
    told = [f"{key}={value}" for key, value in given.items()]
    arguments = [*launch, str(LDM), *told, *size.overrides, f"train.batch_size={batch}"]
    alone = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, check=True, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = (Path(settings.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [line["steps_per_second"] for line in map(json.loads, lines) if "steps_per_second" in line]
    return statistics.median(speeds[1:])


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
