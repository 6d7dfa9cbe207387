"""Death at a chosen file operation: the run's code stays as it is, the interpreter tells us of every operation.

Counted are, under one folder: opening for writing, renaming, removing, making and removing directories, changing modes
(audit events of CPython), fsync, and the native writer of safetensors, which raises no audit event.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

Mode = Literal["log", "before", "torn", "term", "full", "filled"]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ONE_PATH = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.chmod": 2}  # event -> which argument is the directory


@dataclass(frozen=True)
class Plan:
    """Where to die.

    `before` dies instead of the operation, `torn` in the middle of what is written, `term` asks the run to stop there.
    `full` refuses the operation for want of room, `filled` the later ones too.
    """

    folder: Path
    mode: Mode
    at: int = 0  # number of the operation; 1 = the first
    log: Path | None = None


@dataclass
class _Armed:
    plan: Plan
    count: int = 0
    quiet: bool = False
    torn: tuple[str, int] | None = None  # a file that is being written, and its size before
    lines: list[str] = field(default_factory=list)

    def meet(self, kind: str, path: str, writes: bool = False) -> None:
        """An operation is about to happen."""
        if self.quiet or not path.startswith(str(self.plan.folder)):
            return
        self.quiet = True
        try:
            self._meet(kind, path, writes)
        finally:
            self.quiet = False

    def _meet(self, kind: str, path: str, writes: bool) -> None:
        if self.torn is not None:
            self.tear(*self.torn)
        self.count += 1
        if self.plan.log is not None:
            with self.plan.log.open("a") as file:
                file.write(f"{kind} {'w' if writes else '-'} {os.path.relpath(path, self.plan.folder)}\n")
        if self.plan.mode == "filled" and self.count > self.plan.at and (writes or kind in ("mkdir", "rename")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.count != self.plan.at:
            return
        match self.plan.mode:
            case "before":
                die()
            case "torn":
                self.torn = path, os.path.getsize(path) if os.path.exists(path) else 0
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
            case "full" | "filled":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def tear(self, path: str, before: int) -> NoReturn:
        """Half of what was added to a file is there, and no more."""
        now = os.path.getsize(path) if os.path.exists(path) else 0
        if now > before:
            os.truncate(path, before + (now - before) // 2)
        die()


def die() -> NoReturn:
    """As by `kill -9`: nothing more is run."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(plan: Plan) -> None:
    """Count this process's file operations from now on."""
    import safetensors.torch

    armed = _Armed(plan)
    sys.addaudithook(lambda event, arguments: _heard(armed, event, arguments))
    os.fsync = _before(armed, "fsync", os.fsync, lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    native = safetensors.torch.serialize_file

    def serialize(tensors: Any, path: Any, *more: Any, **named: Any) -> None:
        armed.meet("safetensors", os.path.abspath(path), writes=True)
        armed.quiet = True
        native(tensors, path, *more, **named)
        armed.quiet = False
        if armed.torn is not None:
            armed.tear(*armed.torn)

    safetensors.torch.serialize_file = serialize


def _before(armed: _Armed, kind: str, original: Callable[..., Any], path: Callable[..., str]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        armed.meet(kind, path(*arguments))
        return original(*arguments)

    return counted


def _heard(armed: _Armed, event: str, arguments: tuple[Any, ...]) -> None:
    if armed.quiet:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & WRITING:
            armed.meet("open", os.path.abspath(os.fsdecode(path)), writes=True)
    elif event == "os.rename":
        armed.meet("rename", os.path.abspath(os.fsdecode(arguments[1])))
    elif event in _ONE_PATH and not isinstance(arguments[0], int):
        armed.meet(event.removeprefix("os."), _placed(arguments[0], arguments[_ONE_PATH[event]]))


def _placed(path: Any, directory: int) -> str:
    """An absolute path, also where it was given relative to an open directory."""
    name = os.fsdecode(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name) if directory >= 0 else os.path.abspath(name)
