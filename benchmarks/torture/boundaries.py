"""Death at every file operation of a run: before it, in the middle of what it writes, and asked to stop there."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

from benchmarks.torture.bench import Bench, Door, ended, good, outcome, same
from benchmarks.torture.crash import Mode, Plan
from benchmarks.torture.trial import Case
from ldm_kit.training import checkpoint

KINDS = ("text", "vq")
RUN = (
    "train.steps=4",
    "train.checkpoint_every=2",
    "train.keep_last=1",
    "log.evaluate_every=100",
)  # two saves, one pruned
_UUID = re.compile(r"\.[0-9a-f]{32}")
ENDS = {"before": {-signal.SIGKILL}, "torn": {-signal.SIGKILL}, "term": {143, 0, -signal.SIGTERM}}


def cases(bench: Bench) -> Iterator[Case]:
    """Every operation that an undisturbed run makes in its folder, in every mode that it has."""
    for kind in KINDS:
        for number, line in enumerate(operations(bench, kind), start=1):
            what, writes, path = line.split(" ", 2)
            modes: tuple[Mode, ...] = ("before", "torn", "term") if writes == "w" else ("before", "term")
            for mode in modes:
                name = f"{kind}, operation {number} ({what} {path}), {mode}"
                yield Case(name, lambda a=(kind, number, mode): check(bench, *a))


def _whole(bench: Bench, kind: str) -> tuple[list[str], dict]:
    with bench.folder() as folder:
        door, log = bench.door(kind, folder / "run", *RUN), folder / "operations.txt"
        victim = door.start(plan=Plan(door.run, "log", log=log))
        assert ended(victim) == 0, door.said.read_text()[-600:]
        return [_UUID.sub("", line) for line in log.read_text().splitlines()], outcome(door.run)


def operations(bench: Bench, kind: str) -> list[str]:
    """What an undisturbed run does to its folder."""
    return bench.once(f"boundaries {kind}", lambda: _whole(bench, kind))[0]


def check(bench: Bench, kind: str, number: int, mode: Mode) -> None:
    """Dead there, the run has a good checkpoint if it had one, and goes on to the same bits."""
    expected = bench.once(f"boundaries {kind}", lambda: _whole(bench, kind))[1]
    with bench.folder() as folder:
        door = bench.door(kind, folder / "run", *RUN)
        victim = door.start(plan=Plan(door.run, mode, number, log=folder / "operations.txt"))
        code = ended(victim)
        assert code in ENDS[mode], f"ended with {code}: {door.said.read_text()[-600:]}"
        good(door.run, _had_one(folder / "operations.txt"))
        go_on(door, mode, code)
        same(outcome(door.run), expected)


def _had_one(log: Path) -> bool:
    """Whether a checkpoint was in place when the run died: something was done after the renaming that puts it there."""
    done = log.read_text().splitlines()
    return any(line.startswith("rename - checkpoint-") for line in done[:-1])


def go_on(door: Door, mode: Mode, code: int | None) -> None:
    """To the end. A run that was asked to stop while it trained left a checkpoint and said so."""
    if mode == "term" and code == 128 + signal.SIGTERM:
        assert checkpoint.latest(door.run) is not None, "stopped without a checkpoint"
    door.finish()
    left = [path.name for path in door.run.iterdir() if path.name.startswith((".tmp-", ".del-"))]
    assert not left, f"left behind: {left}"
