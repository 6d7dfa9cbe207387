"""Cases, how many of them are tried, and what came of it."""

import contextlib
import io
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One trial: `check` raises whatever it finds wrong."""

    name: str
    check: Callable[[], object]


class Missing(Exception):
    """What a case needs is not installed, or not permitted here; it is then no trial."""


@dataclass
class Result:
    """What came of a promise."""

    promise: str
    planned: int
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, case: Case) -> None:
        """Try a case and count it."""
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # runs in this process have much to say
                case.check()
        except Missing as absent:
            self.missing.append(str(absent))
            return
        except (Exception, SystemExit) as error:
            self.failures.append(f"{case.name}: {told(error)}")
        self.trials += 1


def told(error: BaseException) -> str:
    """A failure in one line: what it says, and where it was found."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:400]} ({os.path.basename(place.filename)}:{place.lineno})"


def sample(cases: Sequence[T], share: float) -> list[T]:
    """A share of the cases, at least one, always the same ones; by chance, so that no combination is missed by rule."""
    count = min(len(cases), max(1, round(len(cases) * share)))
    return [cases[i] for i in sorted(random.Random(1).sample(range(len(cases)), count))]


@dataclass
class Clock:
    """The time that all promises share."""

    budget: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until no further case is begun."""
        return self.budget - (time.monotonic() - self.began)


def attempt(
    promise: str, cases: Callable[[], Iterable[Case]], share: float, clock: Clock, out: TextIO | None = None
) -> Result:
    """Try a share of a promise's cases while there is time, and say how far it is."""
    began, out = time.monotonic(), out or sys.stderr
    chosen = sample(list(cases()), share)
    result = Result(promise, len(chosen))
    for done, case in enumerate(chosen):
        if clock.left <= 0:
            break
        seconds = time.monotonic() - began
        left = f", about {seconds / done * (len(chosen) - done):.0f} s left" if done else ""
        print(
            f"{promise}: {done}/{len(chosen)}, {len(result.failures)} failed{left}: {case.name}", file=out, flush=True
        )
        before = len(result.failures)
        result.take(case)
        for failure in result.failures[before:]:
            print(f"FAILED {promise}: {failure}", file=out, flush=True)
    result.seconds = time.monotonic() - began
    return result
