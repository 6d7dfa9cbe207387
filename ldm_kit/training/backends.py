"""torch's process-wide switches of a run on a GPU: deterministic algorithms, TF32, search for fast convolutions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ldm_kit.training.config import TrainConfig

CUBLAS_VARIABLE, CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # with which cuBLAS repeats its sums


@contextmanager
def backends(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Set torch's switches as `train.deterministic` and `train.tf32` ask, within this context.

    On an NVIDIA GPU, without `train.deterministic`, cuDNN times its convolution algorithms once for each shape and uses
    the fastest (`torch.backends.cudnn.benchmark`), which may be another one in another process. The variable
    CUBLAS_WORKSPACE_CONFIG, which cuBLAS reads when it starts, stays set afterwards.

    Args:
        config: the `train:` section of the run's config.
        device: the device that trains; on a CPU, `train.tf32` changes nothing.
    """
    debug_mode, benchmark, precision = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark, None
    if config.deterministic:
        os.environ.setdefault(CUBLAS_VARIABLE, CUBLAS_WORKSPACE)  # read when the first matrix product is computed
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not config.deterministic
        if config.tf32:  # only then is the present precision read: that fails where a program has set torch's newer one
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(debug_mode)
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark
