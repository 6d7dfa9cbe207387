"""A full disk, at every operation that needs room: the run goes on or ends with a sentence, and loses nothing."""

from collections.abc import Iterator
from typing import Literal

from benchmarks.torture.bench import Bench, ended, good, outcome, same
from benchmarks.torture.boundaries import RUN, operations
from benchmarks.torture.crash import Plan
from benchmarks.torture.trial import Case

Full = Literal["full", "filled"]
MEANT: dict[Full, str] = {"full": "once", "filled": "from then on"}


def cases(bench: Bench) -> Iterator[Case]:
    """Every write, new directory and renaming of a run, refused once, or that and every later one."""
    for number, line in enumerate(operations(bench, "text"), start=1):
        what, writes, path = line.split(" ", 2)
        if writes == "w" or what in ("mkdir", "rename"):
            for mode, meant in MEANT.items():
                name = f"text, no room for operation {number} ({what} {path}), {meant}"
                yield Case(name, lambda a=(number, mode): check(bench, *a))


def check(bench: Bench, number: int, mode: Full) -> None:
    """No traceback, no broken checkpoint, and with room again the same bits."""
    expected = bench.made["boundaries text"][1]
    with bench.folder() as folder:
        door = bench.door("text", folder / "run", *RUN)
        victim = door.start(plan=Plan(door.run, mode, number))
        code, said = ended(victim), door.said.read_text()
        assert code in (0, 2), f"ended with {code}: {said[-600:]}"
        assert "Traceback" not in said, said[-600:]
        if code == 2:
            assert "error: " in said
        good(door.run, had=False)
        door.finish()
        same(outcome(door.run), expected)
