"""Out-of-memory errors: recognise them, and repeat a forward pass without gradients with half as many samples.

This is for computations whose result for a sample does not depend on the others in the batch.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

T = TypeVar("T")
MOST_SAMPLES, MOST_PIXELS = 64, 2**21  # most in a batch of no configured size: 8 pictures of 512 px, 32 of 256 px
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN 9
    "CUDA error: out of memory",  # memory that is not the allocator's: libraries, kernels
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device, or the CPU, has run out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Free the memory that PyTorch's allocator caches on the device, so that it can be allocated anew."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


@dataclass
class BatchSize:
    """Batch size of forward passes without gradients; it is halved, for all later batches too, when memory runs out.

    Attributes:
        size: most samples in a batch.
    """

    size: int

    @classmethod
    def of(cls, size: "int | BatchSize") -> "BatchSize":
        """Wrap a number in a new BatchSize; return a given BatchSize unchanged, so that it stays halved if it was."""
        return size if isinstance(size, BatchSize) else cls(size)

    @classmethod
    def for_pictures(cls, size: int | None, resolution: int) -> "BatchSize":
        """Return the batch size for square pictures of `resolution` pixels a side.

        Args:
            size: the configured size; None: as many pictures as have MOST_PIXELS (2^21) pixels together, at most
                MOST_SAMPLES (64), but at least one.
            resolution: pixels along each side of a picture.
        """
        return cls(size or max(1, min(MOST_SAMPLES, MOST_PIXELS // resolution**2)))

    def batches(self, count: int, compute: Callable[[range], T]) -> Iterator[T]:
        """Divide the indices 0 to count - 1 into batches, and yield `compute(indices)` for each batch, in order.

        A batch for which memory runs out is computed again in halves, so `compute` must have no side effects.

        Raises:
            torch.OutOfMemoryError: memory runs out even for a batch of one sample.
        """
        start = 0
        while start < count:
            indices = range(start, min(start + self.size, count))
            try:
                result = compute(indices)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(indices) == 1:
                    raise torch.OutOfMemoryError(f"out of memory with one sample at a time: {error}") from error
            else:
                yield result
                start = indices.stop
                continue
            self._halve(len(indices))  # here, where the error no longer holds the tensors of its frames

    def map(self, samples: Tensor, compute: Callable[[Tensor], T]) -> Iterator[T]:
        """Yield `compute(batch)` for each batch of `samples` [N, ...], in order; halve batches if memory runs out."""
        return self.batches(len(samples), lambda indices: compute(samples[indices.start : indices.stop]))

    def _halve(self, failed: int) -> None:
        free_memory()
        self.size = failed // 2
        tqdm.write(f"out of memory with {failed} samples at once: it goes on with {self.size}", file=sys.stderr)


Batch = int | BatchSize  # most samples in a batch: a number, or a BatchSize, which remembers between passes what fits
