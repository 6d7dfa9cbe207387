"""How processes come to one mind: small questions asked on the CPU, and gradients that are averaged once all can.

Whoever runs out of memory cannot take part in the collective operation that the others wait in. So every such operation
inside a step, and the averaging of gradients after it, begins with one question to all: can you still? A process that
cannot answers no once and leaves the step; the others hear it at their next question and leave as well. The questions
go over gloo even where gradients go over NCCL: they wait for processes, never for a device.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(hours=2)  # processes wait for the main one while it caches latents or draws pictures
BUCKET = 2**24  # numbers that travel at once


class StepAborted(Exception):
    """Another process has left this step; so must we, and without asking again."""


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_initialized() and dist.get_world_size() > 1


@lru_cache(maxsize=1)
def _questions(world: dist.ProcessGroup | None) -> Any:
    """The group of all processes for questions; one for each time that processes were brought together."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def all_reduce_max(value: int) -> int:
    """The largest number that any process brings. All must ask."""
    if not is_distributed():
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, dist.ReduceOp.MAX, group=_questions(dist.group.WORLD))
    return int(number)


def check_peers() -> None:
    """Ask before a collective operation whether all can take part in it. Raises Void when one cannot."""
    if is_distributed() and all_reduce_max(0):
        raise StepAborted


def all_gather_objects(value: Any) -> list[Any]:
    """What each process brings, by rank, on all of them."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=_questions(dist.group.WORLD))
    return found


@torch.no_grad()
def average_gradients(weights: Sequence[Tensor]) -> None:
    """Each gradient becomes its mean over the processes; who lacks one that another has brings zeros."""
    device = weights[0].device
    there = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8, device=device)
    dist.all_reduce(there, dist.ReduceOp.MAX)
    moved = [weight for weight, some in zip(weights, there.tolist(), strict=True) if some]
    for weight in moved:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    world = dist.get_world_size()
    for bucket in _buckets([weight.grad for weight in moved if weight.grad is not None]):
        flat = torch.cat([value.reshape(-1) for value in bucket]).div_(world)
        dist.all_reduce(flat)
        sizes = [value.numel() for value in bucket]
        parts = [part.view(v.shape) for part, v in zip(flat.split(sizes), bucket, strict=True)]
        torch._foreach_copy_(bucket, parts)


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Every process takes over what the main one holds."""
    for tensor in tensors if is_distributed() else ():
        whole = tensor if tensor.is_contiguous() else tensor.contiguous()
        dist.broadcast(whole, src=0)
        if whole is not tensor:
            tensor.copy_(whole)


def buffers(modules: Iterable[nn.Module]) -> list[Tensor]:
    """What forward passes may change beside gradients: the buffers of all modules."""
    return [buffer for module in modules for buffer in module.buffers()]


def _buckets(values: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for value in values:
        if bucket and (value.dtype != bucket[0].dtype or sum(v.numel() for v in bucket) + value.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(value)
    if bucket:
        yield bucket
