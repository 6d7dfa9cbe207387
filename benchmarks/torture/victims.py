"""What runs in the processes that are killed, or that talk to each other."""

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.torture import crash

TOGETHER = "TORCHELASTIC_RUN_ID"  # by which a worker knows that a launcher started it


def _settle_in(environment: Mapping[str, str], said: Path) -> None:
    """Environment, one thread, and everything printed into a file."""
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a process that nobody forked
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    with said.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def door(name: str, line: Sequence[str], environment: Mapping[str, str], said: Path, plan: crash.Plan | None) -> None:
    """A door as its command line runs it."""
    from ldm_kit.cli import run_cli

    _settle_in(environment, said)
    if plan is not None:
        crash.arm(plan)
    run_cli(importlib.import_module(name).main, line)


def rank(environment: Mapping[str, str], file: Path, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """A function in one of several processes; what it returns goes to a file."""
    _settle_in(environment, file.with_suffix(".txt"))
    warnings.simplefilter("ignore")
    file.write_bytes(pickle.dumps(function(*arguments)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def unpickled(file: Path) -> Any:
    """What `rank` wrote."""
    return pickle.loads(file.read_bytes())


def launch(name: str, line: Sequence[str], places: Sequence[Mapping[str, str]], said: Path) -> None:
    """A launcher: starts the door on several processes, says their numbers, and waits for all of them."""
    workers = []
    for environment in places:
        worker = os.fork()
        if not worker:
            _work(name, line, {**environment, TOGETHER: "torture"}, said)
        workers.append(worker)
    draft = said.with_suffix(".draft")
    draft.write_text(" ".join(map(str, workers)))
    draft.rename(said.with_suffix(".pids"))
    for worker in workers:
        os.waitpid(worker, 0)


def _work(name: str, line: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
    code = 1
    with contextlib.suppress(Exception):
        try:
            door(name, line, environment, said, None)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    sys.stdout.flush()
    os._exit(code)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: Sequence[int], seconds: float) -> bool:
    """Whether all processes end in time."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def end(pid: int) -> None:
    """Kill a process that should have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
