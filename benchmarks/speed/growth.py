"""Tables of a step's cost as sizes and processes grow, and of start-up times."""

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

from benchmarks.kit import LDM
from benchmarks.speed import workspace
from benchmarks.speed.interleave import Work
from benchmarks.speed.sections import Bench
from benchmarks.tables import markdown

TOKENS = 8  # few, so that a hundred thousand captions fit in memory
SCRIPTS = ("train_ae.py", "train_ldm.py", "sample.py", "edit.py")
STARTS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import ldm_kit": ("-c", "import ldm_kit"),
    "import ldm_kit.models.pipeline": ("-c", "import ldm_kit.models.pipeline"),
    **{f"{script} --help": (script, "--help") for script in SCRIPTS},
    "ldm-kit --help": ("-c", "from ldm_kit.cli import app; app()", "--help"),
}


def growth(bench: Bench) -> str:
    """Time training steps of the denoiser for several sizes of batch, latents and data set; return a Markdown table."""
    batches, records = ((2, 4), 20) if bench.quick else ((8, 16, 32, 64), 1000)
    small = bench.size.overrides[0]
    batch = batches[len(batches) // 2 - 1]

    def step(side: int, count: int, size: int) -> Work:
        return partial(workspace.train_random, bench.space, side, count, TOKENS, (small, f"train.batch_size={size}"))

    grown = {f"batch {size}": step(8, records, size) for size in batches}
    grown |= {f"latents {side} x {side}, batch {batch}": step(side, records, batch) for side in (8, 16)}
    grown |= {f"{n} records, batch {batch}": step(8, n, batch) for n in (records, 100 * records)}
    timings = bench.time(grown)
    rows = [
        (name, f"{timing.seconds * 1e3:.0f}", f"{statistics.median(timing.cpu) * 1e3:.0f}")
        for name, timing in timings.items()
    ]
    head = ("our stage-2 step", "milliseconds", "... of processor time")
    return (
        f"## Growth\n\nA U-Net {bench.size.widths_text} on random latents, {TOKENS} tokens:\n\n{markdown(head, rows)}"
    )


def processes(bench: Bench) -> str:
    """Time train_ldm.py with one process and with two, of one thread each; return a Markdown table of speeds."""
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
    head = (f"stage 2, U-Net {bench.size.widths_text}", "steps a second", "pictures a second", "times the first row")
    return f"## Growth with processes\n\nOne thread each, so two processes have two cores:\n\n{markdown(head, rows)}"


def _steps_a_second(bench: Bench, count: int, batch: int) -> float:
    config, size = bench.space.stage2(), bench.size
    steps = 4 if bench.quick else 8 * bench.plan.blocks
    given = {
        "run": config.run,
        "autoencoder": bench.space.autoencoder,
        "data.cache": bench.space.raster,
        "train.steps": steps,
        "log.every": steps // 4,  # the first quarter is not counted
        "log.evaluate_every": 10 * steps,
        "log.tensorboard": "false",
    }
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "train_ldm.py")
    overrides = [f"{key}={value}" for key, value in given.items()]
    arguments = [*launch, str(LDM), *overrides, *size.overrides, f"train.batch_size={batch}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = (Path(config.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [line["steps_per_second"] for line in map(json.loads, lines) if "steps_per_second" in line]
    return statistics.median(speeds[1:])


def start(bench: Bench) -> str:
    """Time the imports and `--help` commands in STARTS, in turns; return a Markdown table of medians."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for _ in range(bench.plan.blocks):
        for name, arguments in STARTS.items():
            times[name].append(_time(arguments))
    rows = [
        (name, *(f"{statistics.median(column):.2f}" for column in zip(*pairs, strict=True)))
        for name, pairs in times.items()
    ]
    return f"## Start-up\n\nMedians:\n\n{markdown(('', 'seconds', '... of processor time'), rows)}"


def _time(arguments: Sequence[str]) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu
