"""Work shared by the processes of a run: each process makes a part of a cache.

This package knows nothing of torch.distributed: a training run passes its process groups to `shared_by`. Within that
context, every process must load the same data and build the same caches, in the same order. Outside the context, a
process works alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ldm_kit.config import UserError

T = TypeVar("T")
U = TypeVar("U")


class PeerError(UserError):
    """Error raised on this process because another process of the run has failed, with that process's message."""


class Group(Protocol):
    """A group of processes of a run; this process is one of the group."""

    @property
    def rank(self) -> int:
        """Number of this process in the group, 0 to size - 1."""
        ...

    @property
    def size(self) -> int:
        """Number of processes in the group."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` that each process of the group has passed, in order of rank.

        Every process must call `gather`; a call waits, for days if need be, until all others have called it.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """A group of processes that consists of this process alone."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """Return [value], the values of all processes of this group of one."""
        return [value]


_groups: ContextVar[tuple[Group, Group]] = ContextVar("groups", default=(Alone(), Alone()))


@contextmanager
def shared_by(everyone: Group, host: Group) -> Iterator[None]:
    """Return a context within which the processes of a run fill caches together; outside it, each works alone.

    Args:
        everyone: group of all processes of the run.
        host: group of the processes on this machine, which see the same files.
    """
    token = _groups.set((everyone, host))
    try:
        yield
    finally:
        _groups.reset(token)


def everyone() -> Group:
    """Return the group of all processes of the run; outside a `shared_by` context, a group of this process alone."""
    return _groups.get()[0]


def host() -> Group:
    """Return the group of the run's processes on this machine; outside `shared_by`, a group of this process alone."""
    return _groups.get()[1]


def from_first(group: Group, make: Callable[[], T]) -> T:
    """Call `make` on the first process of a group, and return its result on every process of the group.

    Raises:
        UserError: `make` has failed on the first process; that process raises the error of `make` instead.
    """
    return agreed(group, make if group.rank == 0 else _nothing)[0]


def _nothing() -> Any:
    return None


def first_alone(make: Callable[[], T]) -> T:
    """Call `make` on the first process of this machine, then on its others; return the result of this process's call.

    So `make` can fill a cache in the first process, and read from the cache in the others.

    Raises:
        UserError: `make` has failed on the first process.
    """
    made: list[T] = []
    from_first(host(), lambda: made.append(make()))
    return made[0] if made else make()


def agreed(group: Group, make: Callable[[], T]) -> list[T]:
    """Call `make` on every process of a group, and return the results of all processes, in order of rank.

    Raises:
        PeerError: `make` has failed on another process; the message is that of the other process's error.
    """
    if group.size == 1:
        return [make()]
    try:
        result = make()
    except Exception as error:
        group.gather((None, error_text(error)))
        raise
    gathered = group.gather((result, None))
    for _, text in gathered:
        if text is not None:
            raise PeerError(text)
    return [value for value, _ in gathered]


def error_text(error: Exception) -> str:
    """Return an error's message for other processes to raise, after the class name unless it is a UserError."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def divided(count: int, compute: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Divide the indices 0 to N - 1 among all processes of the run, and join their results in order of index.

    Args:
        count: N.
        compute: function of some indices that returns one result for each of them, [number of indices, ...].

    Returns:
        The results of all indices, [N, ...]; the same tensor on every process.

    Raises:
        UserError: `compute` has failed on another process.
    """
    group = everyone()
    own = range(group.rank, count, group.size)
    first, *others = agreed(group, lambda: compute(own) if own or group.rank == 0 else torch.zeros(0))
    results = first.new_empty(count, *first.shape[1:])
    for rank, share in enumerate([first, *others][:count]):  # further processes have no index
        results[rank :: group.size] = share
    return results


def summed(count: int, compute: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Divide the indices 0 to N - 1 among all processes of the run, and add up their results.

    Args:
        count: N, at least 1.
        compute: function of some indices that returns a sum over them, of the same shape for any indices.

    Returns:
        The sum over all indices; the same tensor on every process.

    Raises:
        UserError: `compute` has failed on another process.
    """
    group = everyone()
    own = range(group.rank, count, group.size)
    shares = agreed(group, lambda: compute(own) if own else None)  # further processes have no index
    first, *others = [share for share in shares if share is not None]
    return sum(others, first)


def make_missing(missing: Callable[[], Sequence[T]], make: Callable[[T], object]) -> None:
    """Make the missing parts of a cache, divided among the processes of a run.

    All processes of the run share the work first. Then the processes of each machine make the parts that are still
    missing there, because machines may not have a file system in common.

    Args:
        missing: function that lists the parts that are not in the cache yet, in a fixed order.
        make: function that makes one of these parts and writes it into the cache.

    Raises:
        UserError: `make` has failed on another process.
    """
    for group in (everyone(), host()):
        parts = from_first(group, missing)[group.rank :: group.size]
        agreed(group, partial(_make_all, make, parts))


def _make_all(make: Callable[[T], object], parts: Iterable[T]) -> None:
    for item in parts:
        make(item)


def in_threads(function: Callable[[U], T], items: Iterable[U]) -> Iterator[T]:
    """Yield `function(item)` for each item, in order, computed by several threads.

    The number of threads is this machine's number of cores divided by the number of the run's processes on it.
    """
    count = max(1, _cores() // host().size)
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(function, items)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
