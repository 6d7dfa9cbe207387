"""The promises of docs/training.md that are tried, with the sentence that stands in the table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.stress import chaos, corruption, faults, file_operations, kills, resume, world_size
from tests.stress.harness import Harness, Trial


@dataclass(frozen=True)
class Promise:
    """A promise and its trials."""

    name: str
    sentence: str
    trials: Callable[[Harness], Iterable[Trial]]
    sampled: bool = True  # False: it makes no more trials than the share asks for


PROMISES = (
    Promise("resume", "resumed is bit for bit uninterrupted", resume.trials),
    Promise("kills", "kill -9 at a random moment: process, one of two, launcher", kills.trials),
    Promise("file_operations", "killed, torn or stopped at every file operation", file_operations.death_trials),
    Promise("corruption", "damage found, file named, `latest` falls back", corruption.trials),
    Promise("world_size", "the same draws and losses on 1, 2, 4 processes", world_size.trials),
    Promise("nan", "a NaN stops all before the update; its bundle resumes", faults.nan_trials),
    Promise("signals", "SIGTERM, SIGINT, SIGUSR1: saved, code, same bits", faults.signal_trials),
    Promise("disk", "no room at every write: nothing lost, no traceback", file_operations.full_disk_trials),
    Promise("memory", "out of memory: the halved run, bit for bit", faults.memory_trials),
    Promise("chaos", "ckpt-chaos 0.1.8 judges train_ldm.py", chaos.trials, sampled=False),
)
