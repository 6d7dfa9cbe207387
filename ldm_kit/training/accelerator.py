"""Set up accelerate for a run, with the device, processes and precision that launcher and config ask for."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from ldm_kit.config import Precision
from ldm_kit.training import distributed, launch
from ldm_kit.training.precision import check_trainable, resolve_precision


def open_accelerator(precision: Precision, folder: Path, trackers: Sequence[str] = ()) -> Accelerator:
    """Return accelerate's `Accelerator` of a run, which holds its device, processes and precision.

    Args:
        precision: the config's `train.precision`: no, fp16, bf16 or auto (bf16 where it is fast).
        folder: the run's folder, in which TensorBoard events are written.
        trackers: accelerate's names of the trackers that get metrics, such as tensorboard; installed all of them.

    Raises:
        UserError: the launcher asks for a mode other than one process or data parallelism, or the device cannot train
            in this precision.
    """
    launch.check_environment(os.environ)
    accelerators = torch.accelerator.is_available() and not launch.asks_for_cpu(os.environ)
    device = torch.accelerator.current_accelerator() if accelerators else None
    resolved = resolve_precision(precision, device or "cpu")
    check_trainable(resolved, device or "cpu")
    accelerator = Accelerator(
        mixed_precision=resolved,
        cpu=device is None,
        log_with=[*trackers] or None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=distributed.TIMEOUT)],
    )
    launch.check_distributed_type(accelerator.distributed_type)
    return accelerator
