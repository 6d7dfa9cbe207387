"""Collective helpers: a small gloo all-reduce before every collective lets one rank abort a step on all ranks.

A rank that has run out of memory cannot take part in the collective operation that the other ranks wait in. So every
collective inside a step, and the averaging of gradients after it, begins with a small all-reduce on the CPU
(`check_peers`, or an `all_reduce_max` of the outcome). A rank that cannot go on sends 1 once and leaves the step; the
others receive it at their next check and leave the step as well. These checks use gloo even where gradients use NCCL,
so that they wait for processes and never for a device.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from ldm_kit.config import UserError

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # the other ranks wait for the main one while it samples pictures
WORK_TIMEOUT = timedelta(days=30)  # to wait for another rank's share of a cache; a rank that dies closes its connection
BUCKET_SIZE = 2**24  # numbers in one all-reduce of gradients


class StepAborted(Exception):
    """Exception because another rank has aborted the step: this rank must leave it too, without another collective."""


def is_distributed() -> bool:
    """Return whether this run has more than one process."""
    return dist.is_initialized() and dist.get_world_size() > 1


@lru_cache(maxsize=1)
def _gloo_group(world: dist.ProcessGroup | None) -> Any:
    """Return a gloo process group of all ranks, created once and cached; `world`, torch's default group, is the key."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def all_reduce_max(value: int) -> int:
    """Return the maximum of `value` over all ranks; every rank must call this function."""
    if not is_distributed():
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_gloo_group(dist.group.WORLD))
    return int(tensor)


def check_peers() -> None:
    """Check, before a collective operation, that every rank can take part in it.

    Raises:
        StepAborted: another rank has left the step.
    """
    if is_distributed() and all_reduce_max(0):
        raise StepAborted


def all_gather_objects(value: Any) -> list[Any]:
    """Return a list of every rank's `value`, in rank order, on every rank; every rank must call this function."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_gloo_group(dist.group.WORLD))
    return values


def on_main(action: Callable[[], T]) -> T:
    """Call `action` on the main rank alone, and return its result on every rank; every rank must call this function.

    Raises:
        UserError: on the other ranks: `action` has raised a UserError or an OSError on the main rank, which raises it.
        RuntimeError: on the other ranks: `action` has raised another error on the main rank.
    """
    result: Any = None
    if not is_distributed() or dist.get_rank() == 0:
        try:
            result = action()
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            peer_error = UserError(text) if isinstance(error, UserError | OSError) else RuntimeError(text)
            all_gather_objects((None, peer_error))
            raise
    result, peer_error = all_gather_objects((result, None))[0]
    if peer_error is not None:
        raise peer_error
    return result


@dataclass(frozen=True)
class RankGroup:
    """A group of ranks that fill caches together; a rank waits for the others for up to `WORK_TIMEOUT` (30 days)."""

    rank: int = 0  # this process's number within the group, from 0
    size: int = 1  # number of ranks
    group: Any = None  # torch's process group; None: one rank

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of each rank in the group, in rank order; every rank of the group must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


def work_groups() -> tuple[RankGroup, RankGroup]:
    """Return the group of all ranks, and that of this machine's ranks, to fill caches; every rank must call this."""
    if not is_distributed():
        return RankGroup(), RankGroup()
    machine = (socket.gethostname(), os.environ.get("GROUP_RANK", "0"))  # several launchers may run on one host
    machines, own = all_gather_objects(machine), RankGroup()
    for other in sorted(set(machines)):
        ranks = [rank for rank, name in enumerate(machines) if name == other]
        group = dist.new_group(ranks, backend="gloo", timeout=WORK_TIMEOUT)
        if other == machine:
            own = RankGroup(ranks.index(dist.get_rank()), len(ranks), group)
    everyone = dist.new_group(backend="gloo", timeout=WORK_TIMEOUT)
    return RankGroup(dist.get_rank(), dist.get_world_size(), everyone), own


@torch.no_grad()
def average_gradients(weights: Sequence[Tensor]) -> None:
    """Replace the gradient of each of `weights` by its mean over ranks; every rank must call it.

    All ranks must pass the same weights in the same order.

    A rank without a gradient that another rank has contributes zeros. A weight that has no gradient on any rank keeps
    none.
    """
    device = weights[0].device
    has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8, device=device)
    dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
    shared = [weight for weight, flag in zip(weights, has_gradient.tolist(), strict=True) if flag]
    for weight in shared:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    world_size = dist.get_world_size()
    for bucket in _buckets([weight.grad for weight in shared if weight.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(world_size)
        dist.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [piece.view(g.shape) for piece, g in zip(pieces, bucket, strict=True)])


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors in place by the main rank's; every rank must call this, with tensors of the same shapes."""
    for tensor in tensors if is_distributed() else ():
        contiguous = tensor if tensor.is_contiguous() else tensor.contiguous()
        dist.broadcast(contiguous, src=0)
        if contiguous is not tensor:
            tensor.copy_(contiguous)


def buffers(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the buffers of all modules, such as running statistics, in order."""
    return [buffer for module in modules for buffer in module.buffers()]


def print_on_main(text: str) -> None:
    """Print a line to stderr, above any progress bar, on the main rank alone."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        tqdm.write(text, file=sys.stderr)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield lists of consecutive tensors of one dtype, to be reduced at once: at most BUCKET_SIZE (2^24) numbers each.

    A tensor that is larger is a list of its own.
    """
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(other.numel() for other in bucket) + tensor.numel()
        if bucket and (tensor.dtype != bucket[0].dtype or size > BUCKET_SIZE):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
