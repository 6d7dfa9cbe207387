"""The table of trials: counts by promise, kept in a file between calls, and the section of its page."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.tables import markdown, write_section

PAGE = Path("docs/results/stress.md")


@dataclass
class Result:
    """Outcomes of one promise's trials."""

    promise: str
    sentence: str
    planned: int
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, outcome: str, note: str) -> None:
        """Count one trial; `note` says why it failed or was skipped."""
        if outcome == "skipped":
            self.skipped.append(note)
            return
        self.trials += 1
        if outcome == "failed":
            self.failures.append(note)


def merge(file: Path, results: Mapping[str, Result], order: Iterable[str]) -> dict[str, Result]:
    """Replace the promises' results in a file, add those of others that it holds, and write all of them."""
    earlier = [Result(**entry) for entry in json.loads(file.read_text())] if file.exists() else []
    merged = {result.promise: result for result in earlier} | dict(results)
    merged = {name: merged[name] for name in order if name in merged}
    file.write_text(json.dumps([asdict(result) for result in merged.values()], indent=1))
    return merged


def table(results: Iterable[Result]) -> str:
    """Return the table in Markdown; below it what failed and what was not tried."""
    results = list(results)
    rows = [(r.sentence, r.trials, len(r.failures), f"{r.seconds:.0f}") for r in results]
    total = [sum(column) for column in zip(*[(r.trials, len(r.failures), r.seconds) for r in results], strict=True)]
    rows.append(("**all**", total[0], total[1], f"{total[2]:.0f}"))
    notes = [f"- {r.promise}: {failure}" for r in results for failure in r.failures]
    for r in results:
        notes += [f"- {r.promise}: not tried: {reason}" for reason in r.skipped]
        if (tried := r.trials + len(r.skipped)) < r.planned:
            notes.append(f"- {r.promise}: {r.planned - tried} of {r.planned} trials were not begun")
    lines = [markdown(("promise", "trials", "failures", "seconds"), rows, align="left right right right")]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def write_page(results: Iterable[Result], share: float, page: Path = PAGE) -> None:
    """Write the table into its page, with the machine that printed it."""
    amount = "all trials" if share >= 1 else f"{share:.0%} of the trials"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    machine = f"{amount}; {platform.system()}, {os.cpu_count()} CPU cores, {versions}"
    write_section(page, "stress", f"{table(results)}\n\nPrinted by `make torture` ({machine}).")
