"""Progress of long computations: a bar on the terminal, and an observer that a program sets to follow or stop them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
Progress = Callable[[int, int], object]
"""Called with the finished and the total number of steps."""
Observer = Callable[[str, int, int], object]
"""Called with the name of a process, such as "sampling", and the finished and the total number of its steps."""

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observe_steps(observer: Observer) -> Iterator[None]:
    """Call `observer` after every step of sampling, inversion or decoding within the context, in this thread.

    An exception that it raises ends the computation, which leaves no result behind.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def report_step(description: str, finished: int, total: int) -> None:
    """Call the observer, if there is one, with the name of a process and the finished and total number of steps."""
    observer = _observer.get()
    if observer is not None:
        observer(description, finished, total)


def report_steps(states: Iterable[T], description: str, total: int, finished: int = 0) -> Iterator[T]:
    """Yield a sampler's states, and report each as a step; no bar is shown.

    Args:
        states: one state for each step.
        description: name of the process, such as "sampling".
        total: number of all steps.
        finished: number of steps before these.
    """
    for step, state in enumerate(states, finished + 1):
        report_step(description, step, total)
        yield state


@contextmanager
def step_bar(description: str) -> Iterator[Progress]:
    """Show a progress bar over steps, labelled `description`, within the context.

    Yields:
        The function to call with the finished and the total number of steps; it updates the bar and reports the step.
    """
    with tqdm(desc=description, unit="step") as progress_bar:

        def update(finished: int, total: int) -> None:
            progress_bar.total = total
            progress_bar.update(finished - progress_bar.n)
            report_step(description, finished, total)

        yield update
