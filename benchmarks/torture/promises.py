"""The promises by name, with the sentence that stands in the table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.torture import boundaries, chaos, corruption, disks, faults, kills, resume, worlds
from benchmarks.torture.bench import Bench
from benchmarks.torture.trial import Case


@dataclass(frozen=True)
class Promise:
    """What is promised, and the trials of it."""

    name: str
    sentence: str
    cases: Callable[[Bench], Iterable[Case]]
    sampled: bool = True  # else it makes no more cases than the share wants


PROMISES = (
    Promise("resume", "resumed is bit for bit uninterrupted", resume.cases),
    Promise("kills", "kill -9 at a random moment: process, one of two, launcher", kills.cases),
    Promise("boundaries", "dead, torn or stopped at every file operation", boundaries.cases),
    Promise("corruption", "damage found, file named, `latest` falls back", corruption.cases),
    Promise("worlds", "the same draws and losses on 1, 2, 4 processes", worlds.cases),
    Promise("nan", "a NaN stops all before the update; its bundle goes on", faults.spoilt_cases),
    Promise("signals", "SIGTERM, SIGINT, SIGUSR1: saved, code, same bits", faults.asked_cases),
    Promise("disk", "no room at every write: nothing lost, no traceback", disks.cases),
    Promise("memory", "out of memory: the halved run, bit for bit", faults.short_cases),
    Promise("chaos", "ckpt-chaos 0.1.8 judges train_ldm.py", chaos.cases, sampled=False),
)
