"""Batch sampler: which sample of the data set is trained on depends only on the run's seed and a position.

A position numbers the training samples of a whole run, over all epochs and ranks: 0, 1, 2, ... So there is no loader
state to save: a run that is resumed after `step` steps goes on at position `step * global_batch`, on any number of
ranks or data-loader workers.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm_kit.config import UserError
from ldm_kit.diffusion.rng import derive_seed
from ldm_kit.training import signals
from ldm_kit.training.groups import GroupOrder, Groups
from ldm_kit.training.groups import by_group as by_group
from ldm_kit.training.groups import groups_of as groups_of

SampleIndex = tuple[int, int]  # (position in the run, index in the data set)


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order, drawn by `seed`, in which an epoch (0, 1, ...) visits the samples 0..count-1, int64 [count]."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def sample_index(seed: int, position: int, count: int) -> int:
    """Return the index, in a data set of `count` samples, of the sample at a position (0, 1, ...) in the run.

    Each `count` positions are an epoch, which visits every sample once, in an order drawn by `seed` and epoch.
    """
    return int(epoch_permutation(seed, position // count, count)[position % count])


@dataclass(frozen=True)
class Mixture:
    """The order of samples from several parts of a data set, each of which has a share of every batch.

    A step's batch has from each part its share, rounded so that the shares of all samples so far are exact up to one
    or two; which of its positions they have is drawn by seed and step. The samples of a part are visited as those of a
    data set alone are: each once in an epoch of the part.
    """

    sizes: Sequence[int]  # samples of each part, which lie one part after the other in the data set
    weights: Sequence[int]  # share of each part, in units of which all are multiples
    orders: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # of the parts' present epochs

    @classmethod
    def of(cls, sizes: Sequence[int], shares: Sequence[float]) -> "Mixture":
        """Return the order of samples from parts of `sizes` samples, each with a share of any positive number."""
        fractions = [Fraction(repr(float(share))) for share in shares]  # 0.1 as 1/10
        unit = math.lcm(*(fraction.denominator for fraction in fractions))
        return cls(sizes, [int(fraction * unit) for fraction in fractions])

    def index(self, seed: int, position: int, global_batch: int) -> int:
        """Return the index, in the data set, of the sample at a position in the run, in batches of `global_batch`."""
        step, slot = divmod(position, global_batch)
        shuffled = epoch_permutation(derive_seed(seed, "mixture"), step, global_batch)
        which, number = self.part(step * global_batch + int(shuffled[slot]))
        epoch, row = divmod(number, self.sizes[which])
        return sum(self.sizes[:which]) + int(self._order(derive_seed(seed, "part", which), which, epoch)[row])

    def _order(self, seed: int, which: int, epoch: int) -> Tensor:
        """Return the order of an epoch of a part; those of its last even and odd epoch are held."""
        key = which, epoch % 2
        if key not in self.orders or self.orders[key][0] != (seed, epoch):
            self.orders[key] = (seed, epoch), epoch_permutation.__wrapped__(seed, epoch, self.sizes[which])
        return self.orders[key][1]

    def part(self, number: int) -> tuple[int, int]:
        """Return the part from which sample `number` (0, 1, ...) comes, and how many samples of it came before."""
        rest = sum(self.weights)
        for which, weight in enumerate(self.weights):
            before = number * weight // rest
            if (number + 1) * weight // rest > before:
                return which, before
            number, rest = number - before, rest - weight
        raise AssertionError("the last part takes all that is left")


@dataclass(frozen=True)
class BatchSplit:
    """The division of a global batch among ranks, and of each rank's samples into micro-batches."""

    global_batch: int  # samples per optimiser step, over all ranks
    world: int = 1  # number of ranks
    rank: int = 0  # this process's rank, 0 to world - 1
    accumulation: int = 1  # micro-batches per step on each rank

    @classmethod
    def of(cls, global_batch: int, micro_batch: int | None, world: int, rank: int) -> "BatchSplit":
        """Split a batch evenly over ranks, and into the fewest equal micro-batches of at most `micro_batch` samples.

        Args:
            global_batch: samples per optimiser step, over all ranks.
            micro_batch: most samples at once in a process; None: all samples of the rank.
            world: number of ranks.
            rank: this process's rank, 0 to world - 1.

        Raises:
            UserError: the batch does not divide evenly over ranks, or a rank's samples into equal micro-batches.
        """
        local, remainder = divmod(global_batch, world)
        if remainder or not local:
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
        """Number of samples in a micro-batch."""
        return self.global_batch // (self.world * self.accumulation)

    def halved(self) -> "BatchSplit | None":
        """Return this division with equal micro-batches of at most half the size; None if they have one sample."""
        local = self.global_batch // self.world
        accumulation = next((n for n in range(2 * self.accumulation, local + 1) if local % n == 0), None)
        return None if accumulation is None else replace(self, accumulation=accumulation)

    def limited_to(self, micro_batch: int | None) -> "BatchSplit":
        """Return this division with micro-batches halved to `micro_batch` samples or fewer (>= 1); None: no limit."""
        split: BatchSplit | None = self
        while micro_batch is not None and split is not None and split.size > micro_batch:
            split = split.halved()
        assert split is not None
        return split

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the positions of this rank's samples in step `step` (0, 1, ...), a list for each micro-batch.

        A position numbers the samples of the whole run: 0, 1, 2, ...
        """
        positions = range(step * self.global_batch + self.rank, (step + 1) * self.global_batch, self.world)
        return [list(positions[i : i + self.size]) for i in range(0, len(positions), self.size)]


@dataclass(frozen=True)
class StepBatchSampler:
    """Batch sampler of this rank, which yields one micro-batch after another.

    A micro-batch is a list of pairs (position in the run, index in the data set).
    """

    split: BatchSplit  # division of a batch among ranks and into micro-batches
    seed: int  # seed of the order of samples
    count: int | Mixture  # samples in the data set, or the order of those of its parts
    start: int  # first step, counted from 0
    stop: int  # the step after the last one
    groups: Groups = ()  # indices of the samples that may share a batch; empty: all may

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        index = self._index
        for step in range(self.start, self.stop):
            for positions in self.split.micro_batches(step):
                yield [(p, index(p)) for p in positions]

    @property
    def _index(self) -> Callable[[int], int]:
        """The function of a position to the index of its sample."""
        if self.groups:
            order = GroupOrder(self.seed, tuple(map(len, self.groups)), self.split.global_batch)
            return partial(_grouped_index, self.groups, order)
        if isinstance(self.count, Mixture):
            return partial(self.count.index, self.seed, global_batch=self.split.global_batch)
        return partial(sample_index, self.seed, count=self.count)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.split.accumulation


def _grouped_index(groups: Groups, order: GroupOrder, position: int) -> int:
    group, number = order.sample(position)
    return int(groups[group][number])


def loader(
    dataset: Any, batches: StepBatchSampler, workers: int = 0, device: torch.device | str = "cpu"
) -> DataLoader[Any]:
    """Return a DataLoader that yields the micro-batches of a data set; the global random state is left unchanged.

    Worker processes are forked on Linux, whatever Python's default: workers of a fork server would outlive a trainer
    that is killed.

    Args:
        dataset: a `BatchSource`, whose `__getitems__` returns a whole micro-batch for a list of samples.
        batches: the sampler, which yields, for each micro-batch, its samples as (position in the run, index) pairs.
        workers: number of data-loader processes; 0: load in this process.
        device: where batches will be moved to; for a GPU they are put into page-locked memory, for fast copies.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_identity,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=workers > 0,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=signals.ignore_signals if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


def _identity(batch: Any) -> Any:
    return batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch (a tensor, or nested dicts) with its tensors moved to a device; other values are unchanged."""
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case dict():
            return {key: to_device(value, device) for key, value in batch.items()}
        case _:
            return batch
