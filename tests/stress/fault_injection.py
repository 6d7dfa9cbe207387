"""Faults at a chosen file operation of a process, without changing the code that runs in it.

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
    """The operation that fails, and how.

    `before` kills the process before the operation, `torn` halfway through its write; `term` sends SIGTERM there.
    `full` raises ENOSPC for the operation, `filled` for the later ones too. `log` lets all succeed.
    """

    folder: Path
    mode: Mode
    at: int = 0  # number of the operation; 1 = the first
    log: Path | None = None


@dataclass
class Injector:
    """Counter of a process's file operations, which makes the planned one fail."""

    plan: Plan
    count: int = 0
    quiet: bool = False  # operations of the injector itself are not counted
    torn: tuple[str, int] | None = None  # a file that is being written, and its size before
    lines: list[str] = field(default_factory=list)

    def observe(self, kind: str, path: str, writes: bool = False) -> None:
        """Count an operation that is about to happen, and fail it if it is the planned one."""
        if self.quiet or not path.startswith(str(self.plan.folder)):
            return
        self.quiet = True
        try:
            self._observe(kind, path, writes)
        finally:
            self.quiet = False

    def _observe(self, kind: str, path: str, writes: bool) -> None:
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
                kill_self()
            case "torn":
                self.torn = path, os.path.getsize(path) if os.path.exists(path) else 0
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
            case "full" | "filled":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def tear(self, path: str, before: int) -> NoReturn:
        """Cut off the second half of what was added to a file, and die."""
        now = os.path.getsize(path) if os.path.exists(path) else 0
        if now > before:
            os.truncate(path, before + (now - before) // 2)
        kill_self()


def kill_self() -> NoReturn:
    """End this process by SIGKILL: nothing more is run."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(plan: Plan) -> None:
    """Count this process's file operations from now on and make the planned one fail."""
    import safetensors.torch

    injector = Injector(plan)
    sys.addaudithook(lambda event, arguments: _on_audit(injector, event, arguments))
    os.fsync = _counted(injector, "fsync", os.fsync, lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    native = safetensors.torch.serialize_file

    def serialize(tensors: Any, path: Any, *more: Any, **named: Any) -> None:
        injector.observe("safetensors", os.path.abspath(path), writes=True)
        injector.quiet = True
        native(tensors, path, *more, **named)
        injector.quiet = False
        if injector.torn is not None:
            injector.tear(*injector.torn)

    safetensors.torch.serialize_file = serialize


def _counted(
    injector: Injector, kind: str, original: Callable[..., Any], path: Callable[..., str]
) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        injector.observe(kind, path(*arguments))
        return original(*arguments)

    return counted


def _on_audit(injector: Injector, event: str, arguments: tuple[Any, ...]) -> None:
    if injector.quiet:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & WRITING:
            injector.observe("open", os.path.abspath(os.fsdecode(path)), writes=True)
    elif event == "os.rename":
        injector.observe("rename", os.path.abspath(os.fsdecode(arguments[1])))
    elif event in _ONE_PATH and not isinstance(arguments[0], int):
        injector.observe(event.removeprefix("os."), _absolute(arguments[0], arguments[_ONE_PATH[event]]))


def _absolute(path: Any, directory: int) -> str:
    """Return the absolute path, also of a name relative to an open directory."""
    name = os.fsdecode(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name) if directory >= 0 else os.path.abspath(name)
