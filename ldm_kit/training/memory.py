"""When a device is out of memory: what counts as that, and giving back what the failed attempt held."""

import gc

import torch

_ALSO = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def short(error: RuntimeError) -> bool:
    """Whether an error says that there was too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _ALSO)


def free() -> None:
    """Give cached memory back to the device, so that smaller pieces can be cut from it."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
