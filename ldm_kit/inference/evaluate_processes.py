"""Evaluation on several processes, which `accelerate launch` or torchrun has started; an error on one ends all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ldm_kit.data.peers import Alone
from ldm_kit.methods.shared_work import call_on_all

T = TypeVar("T")


def is_main_process() -> bool:
    """Return whether this process, of those that a launcher has started, is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def on_all_processes(compute: Callable[[str | None], T]) -> T:
    """Call `compute` on every process that a launcher has started; within it `ldm_kit.data.peers` divides the work.

    Args:
        compute: function of the name of this process's device; None: this process is alone, and may choose.

    Returns:
        What `compute` returns on this process.

    Raises:
        UserError: `compute` has failed on another process, with that process's message; or the launcher asks for a
            mode other than data parallelism.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return call_on_all(Alone(), lambda: compute(None))
    from ldm_kit.training import launch
    from ldm_kit.training.accelerator import open_accelerator
    from ldm_kit.training.distributed import work_groups

    device = open_accelerator("no", Path()).device
    launch.use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if launch.is_launched():
        launch.watch_parent()
    return call_on_all(work_groups()[0], lambda: compute(str(device)))
