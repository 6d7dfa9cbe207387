"""Order of samples that are in groups, such as pictures of several shapes: each batch holds samples of one group.

The batch of a step is a function of (seed, step) and the sizes of the groups, so that any number of processes and a
resumed run agree. A group of n samples is passed through again and again, each time in a new order; batches of B are
cut from this endless sequence, so that what is left over at the end of a pass begins the next batch of the group. By
the end of epoch e the group has had floor((e + 1) n / B) batches. So no sample is ever lost: each is trained on as
often as any other, to within one batch and one pass of its group. The batches of an epoch come in random order.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm_kit.diffusion.rng import derive_seed

Groups = Sequence[Tensor]  # int64 [n]: indices of the samples of each group
_Compute = Callable[[Tensor], Tensor]


@runtime_checkable
class GroupedSource(Protocol):
    """A batch source whose samples may be in groups."""

    @property
    def groups(self) -> Groups:
        """Indices of the samples of each group; empty: all samples may share a batch."""
        ...


def groups_of(source: Any) -> Groups:
    """Return the groups of a batch source; empty: all its samples may share a batch."""
    return source.groups if isinstance(source, GroupedSource) else ()


@dataclass(frozen=True)
class GroupOrder:
    """Order in which batches of one group each are trained on.

    Args:
        seed: seed of the run.
        sizes: number of samples in each group, at least 1.
        global_batch: samples in a batch, over all ranks.
    """

    seed: int
    sizes: tuple[int, ...]
    global_batch: int

    def steps_before(self, epoch: int) -> int:
        """Return the number of batches in the epochs before `epoch`."""
        return sum(epoch * size // self.global_batch for size in self.sizes)

    def batch_of(self, step: int) -> tuple[int, int]:
        """Return the group of the batch of a step (0, 1, ...), and that batch's number among those of the group."""
        last = (step + len(self.sizes)) * self.global_batch // sum(self.sizes) + 2
        epoch = bisect_right(range(last), step, key=self.steps_before) - 1
        groups, numbers = _epoch_batches(self.seed, self.sizes, self.global_batch, epoch)
        offset = step - self.steps_before(epoch)
        return int(groups[offset]), int(numbers[offset])

    def sample(self, position: int) -> tuple[int, int]:
        """Return the group of the sample at a position (0, 1, ...) in the run, and its number within the group."""
        step, slot = divmod(position, self.global_batch)
        group, number = self.batch_of(step)
        turn, rank = divmod(number * self.global_batch + slot, self.sizes[group])
        return group, int(_group_permutation(self.seed, group, turn, self.sizes[group])[rank])


@lru_cache(maxsize=4)
def _epoch_batches(seed: int, sizes: tuple[int, ...], global_batch: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the groups of an epoch's batches, in order, and the number of each batch among those of its group."""
    counts = [((epoch + 1) * n // global_batch, epoch * n // global_batch) for n in sizes]
    groups = torch.cat([torch.full((after - before,), k) for k, (after, before) in enumerate(counts)])
    numbers = torch.cat([torch.arange(before, after) for after, before in counts])
    generator = torch.Generator().manual_seed(derive_seed(seed, "order of groups", epoch))
    order = torch.randperm(len(groups), generator=generator)
    return groups[order], numbers[order]


@lru_cache(maxsize=64)
def _group_permutation(seed: int, group: int, turn: int, size: int) -> Tensor:
    """Return the order of a group's `size` samples in a pass through them, 0, 1, ..."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order in group", group, turn))
    return torch.randperm(size, generator=generator)


def by_group(source: Any, rows: Tensor) -> Callable[[_Compute], _Compute]:
    """Return a decorator, by which a function is called for the samples of one group at a time.

    The function returns a value [b, ...] for each of b indices into `rows`.

    Args:
        source: a batch source, whose samples may be in groups.
        rows: indices of samples of the source.
    """
    groups = groups_of(source)

    def decorator(compute: _Compute) -> _Compute:
        if not groups:
            return compute
        number = torch.zeros(sum(map(len, groups)), dtype=torch.long)
        for k, members in enumerate(groups):
            number[members] = k

        def grouped(indices: Tensor) -> Tensor:
            own = number[rows[indices]]
            order = [(own == k).nonzero().flatten() for k in own.unique()]
            values = torch.cat([compute(indices[members]) for members in order])
            return values[torch.cat(order).argsort()]

        return grouped

    return decorator
