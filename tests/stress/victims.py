"""Training runs of the trials, and what runs in the processes that are killed or that talk to each other."""

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

from ldm_kit.methods.autoencoder import Autoencoding
from ldm_kit.methods.classifier import Classifying
from ldm_kit.methods.latent import Latent
from tests.stress import fault_injection
from tests.training.helpers import CLASSES, CLASSIFIER, KL, TEXT, VQ, Played, play, settings

KINDS = {"kl": KL, "vq": VQ, "text": TEXT, "classes": CLASSES, "classifier": CLASSIFIER}
SCRIPTS = {"kl": "train_ae", "vq": "train_ae", "text": "train_ldm", "classes": "train_ldm", "classifier": "train_ldm"}
# The classes whose `losses` the trials wrap.
METHODS = {"kl": Autoencoding, "vq": Autoencoding, "text": Latent, "classes": Latent, "classifier": Classifying}
LAUNCHED = "TORCHELASTIC_RUN_ID"  # tells a worker that a launcher started it


def train(
    pictures: Path,
    kind: str,
    run: Path,
    *overrides: str,
    resume: str | None = None,
    until: int | None = None,
    between: Callable[[int], object] = lambda step: None,
) -> Played:
    """Train a tiny run in this process, up to step `until` if given; `between` is called after every step."""
    return play(settings(KINDS[kind], pictures, run, *overrides), resume, until=until, between=between)


def train_lines(pictures: Path, kind: str, run: Path, resume: str | None, *overrides: str) -> list[dict[str, str]]:
    """Train to the end; return the losses, gradient norms and learning rate of each step as hex."""
    return train(pictures, kind, run, *overrides, resume=resume).lines


def rank() -> int:
    """Return the number of this process."""
    return int(os.environ.get("RANK", "0"))


def _prepare(environment: Mapping[str, str], output: Path) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a process that nobody forked
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def run_script(
    name: str, line: Sequence[str], environment: Mapping[str, str], output: Path, plan: fault_injection.Plan | None
) -> None:
    """Run a script as its command line does, with its output in a file."""
    from ldm_kit.cli import run_cli

    _prepare(environment, output)
    if plan is not None:
        fault_injection.arm(plan)
    run_cli(importlib.import_module(name).main, line)


def run_rank(
    environment: Mapping[str, str], file: Path, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """Run a function in one of several processes and pickle what it returns."""
    _prepare(environment, file.with_suffix(".txt"))
    warnings.simplefilter("ignore")
    file.write_bytes(pickle.dumps(function(*arguments)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def load_pickle(file: Path) -> Any:
    """Load what `run_rank` wrote."""
    return pickle.loads(file.read_bytes())


def launch(name: str, line: Sequence[str], environments: Sequence[Mapping[str, str]], output: Path) -> None:
    """Act as a launcher: start the script on several processes, write their numbers to a file, wait for all."""
    workers = []
    for environment in environments:
        worker = os.fork()
        if not worker:
            _run_worker(name, line, {**environment, LAUNCHED: "stress"}, output)
        workers.append(worker)
    partial = output.with_suffix(".partial")
    partial.write_text(" ".join(map(str, workers)))
    partial.rename(output.with_suffix(".pids"))
    for worker in workers:
        os.waitpid(worker, 0)


def _run_worker(name: str, line: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
    code = 1
    with contextlib.suppress(Exception):
        try:
            run_script(name, line, environment, output, None)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    sys.stdout.flush()
    os._exit(code)


def is_alive(pid: int) -> bool:
    """Check whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pids: Sequence[int], seconds: float) -> bool:
    """Wait for processes, then kill those that are left; return whether all ended by themselves."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in pids if is_alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not left


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
