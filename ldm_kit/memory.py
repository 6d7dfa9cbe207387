"""Memory that runs out: how it is recognised, and passes without gradients that go on with half as many samples.

What one sample gives must not depend on those beside it, so that the size of a batch changes nothing but rounding.
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
MOST_SAMPLES, MOST_PIXELS = 64, 2**21  # in a batch whose size is not configured: 8 pictures of 512 px, 32 of 256
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device, or this machine, has too little memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Return cached memory to the device, so that it can be allocated in smaller pieces."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


@dataclass
class BatchSize:
    """Samples at once in passes without gradients; halved when memory runs out, and from then on it stays so.

    Attributes:
        size: most samples in a batch.
    """

    size: int

    @classmethod
    def of(cls, size: "int | BatchSize") -> "BatchSize":
        """Return a size as it is, so that halving is remembered from pass to pass, or a number as a new size."""
        return size if isinstance(size, BatchSize) else cls(size)

    @classmethod
    def for_pictures(cls, size: int | None, resolution: int) -> "BatchSize":
        """Return a configured size; None: as many pictures of `resolution` pixels a side as hold MOST_PIXELS."""
        return cls(size or max(1, min(MOST_SAMPLES, MOST_PIXELS // resolution**2)))

    def batches(self, count: int, compute: Callable[[range], T]) -> Iterator[T]:
        """Yield what `compute` returns for the indices of each batch of `count` samples, in their order.

        A batch for which memory runs out is computed anew in halves, so `compute` must change nothing.

        Raises:
            torch.OutOfMemoryError: not even one sample at a time fits.
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
        """Yield what `compute` returns for each batch of `samples` [N, ...]; otherwise as `batches`."""
        return self.batches(len(samples), lambda indices: compute(samples[indices.start : indices.stop]))

    def _halve(self, failed: int) -> None:
        free_memory()
        self.size = failed // 2
        tqdm.write(f"out of memory with {failed} samples at once: it goes on with {self.size}", file=sys.stderr)


Batch = int | BatchSize  # most samples at once: a number, or a size that remembers from pass to pass what fits
