"""Passes without gradients, such as held-out evaluation, that the main process starts and all processes share.

The main process evaluates, samples and saves, while the other processes wait. For each pass that it starts with
`SharedWork.run`, the waiting processes call the same function of their own method, within which
`ldm_kit.data.peers.divided` gives each process a part of the samples.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ldm_kit.data.peers import Alone, Group, PeerError, error_text, shared_by

T = TypeVar("T")
_others_wait: ContextVar[bool] = ContextVar("others_wait", default=False)  # whether a task of `on_main` runs here


class _Message(NamedTuple):
    """Message of the main process to the waiting processes: which pass begins, or that its task has ended."""

    name: str | None = None  # function to call; None: the task has ended
    error: str | None = None  # message of the error with which the task ended; None: it succeeded


class _Outcome(NamedTuple):
    """Result of a pass (a call that all processes make together) on one process: success, or an error."""

    error: str | None = None  # message of the process's own error; None: there is none
    os_error: tuple[Any, ...] = ()  # arguments of the error if it is an OSError, such as a full disk; the run goes on


@dataclass(frozen=True)
class SharedWork:
    """Connection of this process to a run's other processes, which take a share of the main process's evaluation.

    Attributes:
        everyone: all processes of the run.
        host: the processes on this machine.
    """

    everyone: Group = field(default_factory=Alone)
    host: Group = field(default_factory=Alone)

    def on_main(self, task: Callable[[], T], call: Callable[[str], Any]) -> T | None:
        """Call `task` on the main process; the other processes wait until it ends, and take part in its calls of `run`.

        Args:
            task: what the main process does, such as to evaluate the run's method.
            call: calls a function of the training method by name. Other processes call it with each name that the main
                process passes to `run`.

        Returns:
            The result of `task` on the main process, None on the others.

        Raises:
            UserError: on the other processes: `task` has failed on the main process, which raises the error of `task`.
        """
        if self.everyone.rank != 0:
            return self._wait(call)
        token = _others_wait.set(True)
        try:
            result = task()
        except Exception as error:
            self.everyone.gather(_Message(error=error_text(error)))
            raise
        finally:
            _others_wait.reset(token)
        self.everyone.gather(_Message())
        return result

    def _wait(self, call: Callable[[str], Any]) -> None:
        """Call `call` with the name of each pass that the main process starts, until its task ends.

        Raises UserError if the task has failed.
        An error of `call` on this process is sent to the main process, which decides whether it ends the run.
        """
        error = None
        while (message := self.everyone.gather(None)[0]).name is not None:
            _, error, _ = _attempt(call, message.name, _Pass(self.everyone), self.host)
        if message.error is not None:
            raise PeerError(message.error) from error

    def run(self, call: Callable[[str], Any], name: str) -> Any:
        """Return `call(name)`; the processes that wait in `on_main` make the same call, and each does its share.

        Within the call, processes may exchange values by `ldm_kit.data.peers`, but only among all processes of the run,
        not among those of one machine.

        Raises:
            OSError: the call has failed on another process with an OSError, and on none with another error.
            UserError: the call has failed on another process with another error.
            RuntimeError: this is not within a task of `on_main`, so that no process waits to take part.
        """
        if self.everyone.size == 1:
            return call(name)
        if not _others_wait.get():
            raise RuntimeError(f"{name} is shared by the run's processes; call it on all of them, within on_main")
        self.everyone.gather(_Message(name))
        result, error, outcomes = _attempt(call, name, _Pass(self.everyone), self.host)
        failures = [outcome for outcome in outcomes if outcome.error is not None]
        worst = min(failures, key=lambda outcome: bool(outcome.os_error), default=outcomes[0])
        if worst != outcomes[0]:
            raise OSError(*worst.os_error) if worst.os_error else PeerError(str(worst.error))
        if error is not None:
            raise error
        return result


def call_on_all(everyone: Group, call: Callable[[], T]) -> T:
    """Return `call()` on this process; every process of the group must make this call, and shares work within it.

    A process that fails ends the call on all others at their next exchange of values, so that none waits for it.

    Raises:
        UserError: the call has failed on another process; that process raises its own error.
    """
    if everyone.size == 1:
        return call()
    group = _Pass(everyone)
    result, error, outcomes = _attempt(lambda _: call(), "", group, group)
    if error is not None and not isinstance(error, PeerError):
        raise error
    if failures := [outcome.error for outcome in outcomes if outcome.error is not None]:
        raise PeerError(failures[0])
    return result


def _attempt(
    call: Callable[[str], Any], name: str, group: "_Pass", host: Group
) -> tuple[Any, Exception | None, list[_Outcome]]:
    """Return the result of `call(name)`, the error that it raised (or None), and how it ended on each process.

    `group` are the processes that make the call, `host` those of them on this machine.
    """
    result, error = None, None
    with shared_by(group, host):
        try:
            result = call(name)
        except Exception as failure:
            error = failure
    return result, error, group.end(_outcome(error))


def _outcome(error: Exception | None) -> _Outcome:
    if error is None or isinstance(error, PeerError):
        return _Outcome()
    if not isinstance(error, OSError):
        return _Outcome(error_text(error))
    has_number = error.errno is not None and error.strerror is not None
    return _Outcome(error_text(error), (error.errno, error.strerror, error.filename) if has_number else (str(error),))


@dataclass(frozen=True)
class _Pass:
    """The group of all processes during one pass, a call that all make; if one fails, the others do not wait for it.

    With each value a process sends whether it has ended the pass. If one has ended it, those that still exchange values
    leave the pass with an error. All then exchange outcomes until every process has ended the pass, so that all call
    `gather` equally often.
    """

    everyone: Group

    @property
    def rank(self) -> int:
        """Number of this process, 0 to size - 1."""
        return self.everyone.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.everyone.size

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of rank.

        Raises:
            PeerError: another process has ended the pass with an error.
            RuntimeError: another process has ended the pass without an error.
        """
        outcomes, values = zip(*self.everyone.gather((None, value)), strict=True)
        if ended := [outcome for outcome in outcomes if outcome is not None]:
            errors = [outcome.error for outcome in ended if outcome.error is not None]
            if errors:
                raise PeerError(errors[0])
            raise RuntimeError("another process has ended the pass without this one")
        return list(values)

    def end(self, outcome: _Outcome) -> list[_Outcome]:
        """End the pass on this process with `outcome`; wait for the others, and return the outcomes of all."""
        while True:
            outcomes = [other for other, _ in self.everyone.gather((outcome, None))]
            if None not in outcomes:
                return outcomes
