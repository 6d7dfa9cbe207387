"""Which kinds of launch a run can be part of: one process, or plain data parallelism on any number of machines.

What a launcher asks for stands in environment variables. They are read before accelerate is, which would import what is
not installed, or (on a CPU) train without sharding and say nothing.
"""

from collections.abc import Mapping

from accelerate.utils import DistributedType

from ldm_kit.config import UserError

KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_INSTEAD = "launch with --multi_gpu (docs/scale.md has the lines), and see there what to do when memory is short"
_SHARDING = f"its shards are not in our checkpoints, and no GPU has proven it yet; {_INSTEAD}"
_ASKED = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed",
        f"it steps one optimiser per run and ties a checkpoint to its number of GPUs; {_INSTEAD}",
    ),
    "ACCELERATE_USE_FSDP": ("FSDP", _SHARDING),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", f"it is for language models; {_INSTEAD}"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism config (tensor, context or sharded parallelism)", _SHARDING),
    "ACCELERATE_USE_SAGEMAKER": ("SageMaker's own data parallelism", _INSTEAD),
    "ACCELERATE_IN_TPU_POD": ("a TPU", "nothing here has been run on one; use GPUs or a CPU"),
}


def check_supported(environment: Mapping[str, str]) -> None:
    """Raise UserError, with advice, where the launcher asks for more than plain data parallelism."""
    for variable, (name, advice) in _ASKED.items():
        if environment.get(variable, "").lower() in ("true", "1", "yes", "on"):
            raise UserError(f"{name} is not supported ({variable} is set, perhaps by `accelerate config`): {advice}")
    if environment.get("PJRT_DEVICE", "").upper() == "TPU":
        raise UserError("a TPU is not supported (PJRT_DEVICE is set): nothing here has been run on one; use GPUs")


def check_known(kind: DistributedType) -> None:
    """Raise UserError for a kind of distribution that nobody has tried, whatever it was asked by."""
    if kind not in KNOWN:
        raise UserError(f"{kind.value} is not supported: it has not been tried; {_INSTEAD}")
