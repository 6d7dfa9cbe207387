"""Passes without gradients, such as held-out evaluation, that the main process starts and all processes share.

The main process evaluates, samples and saves, while the other processes wait. For each pass that it starts with
`SharedWork.run`, the waiting processes call the same function of their own method, within which
`ldm_kit.data.peers.divided` gives each process a part of the samples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ldm_kit.config import UserError
from ldm_kit.data.peers import Alone, Group, shared_by

T = TypeVar("T")


@dataclass
class SharedWork:
    """Connection of this process to a run's other processes, which take a share of the main process's evaluation.

    Attributes:
        everyone: all processes of the run.
        host: the processes on this machine.
        shared: whether the other processes wait for work now; always False except on the main process.
    """

    everyone: Group = field(default_factory=Alone)
    host: Group = field(default_factory=Alone)
    shared: bool = False

    def on_main(self, task: Callable[[], T], call: Callable[[str], Any]) -> T | None:
        """Call `task` on the main process; until it ends, the other processes take part in the passes that it starts.

        Args:
            task: what the main process does, such as to evaluate the run's method.
            call: calls a function of the training method by name. Other processes call it with each name that the main
                process passes to `run`.

        Returns:
            The result of `task` on the main process, None on the others.

        Raises:
            UserError: a pass failed on one of the processes.
        """
        if self.everyone.rank != 0:
            while (name := self.everyone.gather(None)[0]) is not None:
                self._call(call, name)
            return None
        self.shared = self.everyone.size > 1
        try:
            return task()
        finally:
            if self.shared:
                self.everyone.gather(None)
            self.shared = False

    def run(self, call: Callable[[str], Any], name: str) -> Any:
        """Return `call(name)`; the processes that wait in `on_main` make the same call, and each does its share.

        Raises:
            UserError: the call cannot read a file, or it failed on another process.
        """
        if not self.shared:
            return call(name)
        self.everyone.gather(name)
        return self._call(call, name)

    def _call(self, call: Callable[[str], Any], name: str) -> Any:
        with shared_by(self.everyone, self.host):
            try:
                return call(name)
            except Exception as error:
                self.shared = False  # a pass that fails on one process ends on all of them
                if isinstance(error, OSError):  # for which the main process alone would only skip the evaluation
                    raise UserError(f"cannot evaluate: {error}") from error
                raise
