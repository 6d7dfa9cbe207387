"""The order of training samples as a pure function of (seed, position), where position counts all samples ever seen.

No loader state exists: resume starts at `step * global_batch`, on any number of processes or workers.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.training import signals

SampleIndex = tuple[int, int]  # (position, index of the sample in its set)


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """The permutation [count] in which an epoch walks the set."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def sample_index(seed: int, position: int, count: int) -> int:
    """Which sample stands at a position; epochs follow each other without gaps."""
    return int(epoch_permutation(seed, position // count, count)[position % count])


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is shared: over processes, and over micro-batches within each."""

    global_batch: int
    world: int = 1
    rank: int = 0
    accumulation: int = 1

    @classmethod
    def of(cls, global_batch: int, micro_batch: int | None, world: int, rank: int) -> "BatchSplit":
        """Split `global_batch` evenly, at most `micro_batch` pictures at a time.

        Raises:
            UserError: the numbers do not divide.
        """
        local, rest = divmod(global_batch, world)
        if rest or not local:
            raise UserError(f"train.batch_size {global_batch} cannot be shared evenly by {world} processes")
        accumulation = -(-local // (micro_batch or local))
        if local % accumulation:
            raise UserError(
                f"train.micro_batch {micro_batch}: {local} pictures a process do not split into {accumulation} equal "
                "parts"
            )
        return cls(global_batch, world, rank, accumulation)

    @property
    def size(self) -> int:
        """Pictures in a micro-batch."""
        return self.global_batch // (self.world * self.accumulation)

    def halved(self) -> "BatchSplit | None":
        """The same share in micro-batches of half the size or less; None when they have one picture already."""
        local = self.global_batch // self.world
        parts = next((n for n in range(2 * self.accumulation, local + 1) if local % n == 0), None)
        return None if parts is None else replace(self, accumulation=parts)

    def micro_batches(self, step: int) -> list[list[int]]:
        """The positions that this process sees in a step, one list for each micro-batch."""
        mine = range(step * self.global_batch + self.rank, (step + 1) * self.global_batch, self.world)
        size = len(mine) // self.accumulation
        return [list(mine[i : i + size]) for i in range(0, len(mine), size)]


@dataclass(frozen=True)
class StepBatchSampler:
    """A batch sampler: this process's micro-batches of steps `first` to `last`, as (position, index) pairs."""

    share: BatchSplit
    seed: int
    count: int
    first: int
    last: int

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for step in range(self.first, self.last):
            for positions in self.share.micro_batches(step):
                yield [(p, sample_index(self.seed, p, self.count)) for p in positions]

    def __len__(self) -> int:
        return (self.last - self.first) * self.share.accumulation


def loader(dataset: Any, batches: StepBatchSampler, workers: int = 0) -> DataLoader[Any]:
    """A DataLoader over a set whose `__getitems__(places)` returns a whole batch; the global random state stays.

    On Linux workers are forked, whatever Python's default: those of a fork server outlive a killed trainer.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_whole,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=workers > 0,
        worker_init_fn=signals.ignore if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


def _whole(batch: Any) -> Any:
    return batch


def positions(places: Sequence[SampleIndex]) -> Tensor:
    """The positions of a batch, int64 [B]."""
    return torch.tensor([position for position, _ in places])


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case dict():
            return {key: to_device(value, device) for key, value in batch.items()}
        case _:
            return batch
