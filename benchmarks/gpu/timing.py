"""Timing of work on a device: blocks of units of work between synchronisations, and the most memory in use."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from accelerate.state import AcceleratorState

from benchmarks.gpu.sizes import Sizes
from ldm_kit.config import UserError

Work = Callable[[], Iterator[object]]  # opens a variant; each `next` does one unit of work, such as a training step
Figures = dict[str, Any]


def measure(work: Work, sizes: Sizes, units: int | None = None, warmup: int | None = None) -> Figures:
    """Open a variant, warm it up, and time it in blocks.

    Args:
        work: function that opens the variant; the variant is closed afterwards.
        sizes: lengths of the measurement, and the device.
        units: units of work in a block; None: `sizes.block`.
        warmup: units of work before the first block; None: `sizes.warmup`.

    Returns:
        `seconds`, the median over blocks of a unit's seconds; `blocks`, those of each block; `first`, the seconds of
        opening and of the first unit; `memory`, the most bytes of the device that tensors took while it was timed.
    """
    release()
    units, warmup = units or sizes.block, warmup or sizes.warmup
    with closing(work()) as running:  # pyright: ignore[reportArgumentType]
        first = _timed(running, 1, sizes.device)
        _timed(running, max(0, warmup - 1), sizes.device)
        if sizes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        blocks = [_timed(running, units, sizes.device) / units for _ in range(sizes.blocks)]
        memory = torch.cuda.max_memory_allocated() if sizes.device.type == "cuda" else 0
    release()
    return {"seconds": statistics.median(blocks), "blocks": blocks, "first": first, "memory": memory}


def measure_all(
    variants: Mapping[str, Work], sizes: Sizes, units: int | None = None, warmup: int | None = None
) -> dict[str, Figures]:
    """Measure variants one after another, and print what each took; one that fails has the figure `error` alone.

    Args:
        variants: functions that open the variants, by name.
        sizes: lengths of the measurement, the device, and the names of the variants to measure if not all.
        units: units of work in a block; None: `sizes.block`.
        warmup: units of work before the first block; None: `sizes.warmup`.
    """
    chosen = {name: work for name, work in variants.items() if not sizes.only or name in sizes.only}
    if not chosen:
        raise UserError(f"--only names none of this section's variants: {', '.join(variants)}")
    results: dict[str, Figures] = {}
    for name, work in chosen.items():
        AcceleratorState._reset_state()  # variants differ in precision
        try:
            results[name] = measure(work, sizes, units, warmup)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(f"{name}: {results[name]}", flush=True)
    return results


def _timed(running: Iterator[object], count: int, device: torch.device) -> float:
    began = time.perf_counter()
    for _ in range(count):
        next(running)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def release() -> None:
    """Free the memory of what is no longer used, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
