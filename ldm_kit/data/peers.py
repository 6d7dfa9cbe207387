"""Shared work: the processes of a run make a cache together, each a part of it.

Data knows no process groups: a training run tells its groups by `shared_by`, and within that context every process
must load the same data and build the same caches, in the same order. Elsewhere a process works alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from ldm_kit.config import UserError

T = TypeVar("T")
U = TypeVar("U")


class Group(Protocol):
    """Some processes of a run, of which this is one."""

    @property
    def rank(self) -> int:
        """Number of this process in the group, 0 to size - 1."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in the order of ranks; all must call it, and wait as long as it takes."""
        ...


@dataclass(frozen=True)
class Alone:
    """The group of a single process."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """Return the value."""
        return [value]


_groups: ContextVar[tuple[Group, Group]] = ContextVar("groups", default=(Alone(), Alone()))


@contextmanager
def shared_by(everyone: Group, host: Group) -> Iterator[None]:
    """Share work among processes within this context.

    Args:
        everyone: all processes of the run.
        host: those on this machine, which see the same files.
    """
    token = _groups.set((everyone, host))
    try:
        yield
    finally:
        _groups.reset(token)


def everyone() -> Group:
    """Return all processes that share work."""
    return _groups.get()[0]


def host() -> Group:
    """Return the processes on this machine that share work."""
    return _groups.get()[1]


def from_first(group: Group, make: Callable[[], T]) -> T:
    """Return on every process of a group what the first one makes.

    Raises:
        UserError: `make` has failed on another process.
    """
    return agreed(group, make if group.rank == 0 else _nothing)[0]


def _nothing() -> Any:
    return None


def first_alone(make: Callable[[], T]) -> T:
    """Return what `make` returns; the first process on a machine calls it before the others, and fills their cache.

    Raises:
        UserError: `make` has failed on the first process.
    """
    made: list[T] = []
    from_first(host(), lambda: made.append(make()))
    return made[0] if made else make()


def agreed(group: Group, make: Callable[[], T]) -> list[T]:
    """Call `make` on every process of a group, and return all results on each.

    Raises:
        UserError: `make` has failed on another process; the message is that of its error.
    """
    if group.size == 1:
        return [make()]
    try:
        result = make()
    except Exception as error:
        group.gather((None, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"))
        raise
    gathered = group.gather((result, None))
    for _, text in gathered:
        if text is not None:
            raise UserError(text)
    return [value for value, _ in gathered]


def make_missing(missing: Callable[[], Sequence[T]], make: Callable[[T], object]) -> None:
    """Make the missing parts of a cache: by all processes, then by those of a machine that does not see their files.

    Args:
        missing: returns the parts that are not there yet, in a fixed order.
        make: makes one of them.

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
    """Yield `function` of each item, in order, computed in as many threads as this process has cores."""
    count = max(1, _cores() // host().size)
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(function, items)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
