"""Launch of a run: supported modes (one process, data parallelism), exit with the launcher, threads per process.

What a launcher requests is read from environment variables before accelerate reads them. For an unsupported mode
accelerate would import packages that are not installed or, on a CPU, train without sharding and give no warning.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping

import torch
from accelerate.utils import DistributedType

from ldm_kit.config import Precision, UserError
from ldm_kit.training.config import TrainConfig

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
GRACE = 600.0  # seconds to finish a step and its checkpoint; a process that waits longer waits for one that died
_ADVICE = "launch with --multi_gpu (docs/scale.md has the lines), and see there what to do when memory is short"
_SHARDING = f"its shards are not in our checkpoints, and it has not been tested on GPUs; {_ADVICE}"
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed",
        f"it steps one optimiser per run and ties a checkpoint to its number of GPUs; {_ADVICE}",
    ),
    "ACCELERATE_USE_FSDP": ("FSDP", _SHARDING),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", f"it is for language models; {_ADVICE}"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism config (tensor, context or sharded parallelism)", _SHARDING),
    "ACCELERATE_USE_SAGEMAKER": ("SageMaker's own data parallelism", _ADVICE),
    "ACCELERATE_IN_TPU_POD": ("a TPU", "nothing here has been run on one; use GPUs or a CPU"),
}


def check_environment(environment: Mapping[str, str]) -> None:
    """Check that a launcher's environment variables request nothing beyond data parallelism.

    Raises:
        UserError: an unsupported mode is requested; the message says what to use instead.
    """
    for variable, (name, advice) in _UNSUPPORTED.items():
        if _is_set(environment, variable):
            raise UserError(f"{name} is not supported ({variable} is set, perhaps by `accelerate config`): {advice}")
    if environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":  # accelerate would divide losses by it
        raise UserError(
            "gradient accumulation is not the launcher's (ACCELERATE_GRADIENT_ACCUMULATION_STEPS is set): "
            "train.batch_size is the whole step's, and train.micro_batch how much of it is computed at once"
        )
    if environment.get("PJRT_DEVICE", "").upper() == "TPU":
        raise UserError("a TPU is not supported (PJRT_DEVICE is set): nothing here has been run on one; use GPUs")


def asks_for_cpu(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher's variables `environment` ask for the CPU, even if there is an accelerator."""
    return _is_set(environment, "ACCELERATE_USE_CPU")


def _is_set(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("true", "1", "yes", "on")


def launched_precision(config: TrainConfig, environment: Mapping[str, str]) -> Precision:
    """Return a run's precision: the launcher's if it asks for one, else the config's.

    `accelerate launch` also sets "no" if the user asked for no precision, so "no" is taken for no request.

    Args:
        config: the run's section `train`.
        environment: the environment variables.

    Raises:
        UserError: the config sets a precision that is neither `auto` nor the launcher's, or the launcher's is not fp16
            or bf16.
    """
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"
    source = "--mixed_precision of `accelerate launch`, or `accelerate config`"
    if asked == "no":
        return config.precision
    if asked not in ("bf16", "fp16"):
        raise UserError(f"mixed precision {asked} is not supported ({source}); expected no, bf16 or fp16")
    if config.precision not in ("auto", asked) and "precision" in config.model_fields_set:
        raise UserError(
            f"train.precision is {config.precision}, but the launcher asks for {asked} ({source}); make them equal, or "
            "leave one of them out"
        )
    return "bf16" if asked == "bf16" else "fp16"


def check_distributed_type(kind: DistributedType) -> None:
    """Check that the distributed mode that accelerate has chosen is supported.

    Raises:
        UserError: the mode is neither a single process nor data parallelism on CPUs or CUDA GPUs.
    """
    if kind not in SUPPORTED:
        raise UserError(f"{kind.value} is not supported: it has not been tried; {_ADVICE}")


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the variables `environment` show that torchrun or `accelerate launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in environment or "ACCELERATE_MIXED_PRECISION" in environment


def watch_parent(interval: float = 1.0, grace: float = GRACE) -> None:
    """Start a thread that ends this process when its parent, the launcher, has died.

    A process that outlives its launcher would keep the run's folder locked. So this process gets a SIGTERM, as if the
    launcher had sent it, upon which a training run saves and exits. If this process still runs `grace` seconds later
    (it may wait for another process that was killed), it is ended at once.

    Args:
        interval: seconds between checks.
        grace: seconds between SIGTERM and the end.
    """
    arguments = (os.getppid(), interval, grace)
    threading.Thread(target=_exit_with_parent, args=arguments, daemon=True, name="parent watch").start()


def use_all_cores(processes: int) -> None:
    """Undo the single thread per process that `accelerate launch` sets: on a CPU, divide the cores among processes.

    This applies only if the user chose no number of threads: accelerate launched this process, OMP_NUM_THREADS has
    accelerate's default of 1, and there is no accelerator.

    Args:
        processes: number of the run's processes on this machine.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    if "ACCELERATE_MIXED_PRECISION" in os.environ and threads == "1" and not torch.accelerator.is_available():
        torch.set_num_threads(max(1, cores() // processes))


def cores() -> int:
    """Return the number of processor cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _exit_with_parent(parent: int, interval: float, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(interval)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)
