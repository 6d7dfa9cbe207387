"""Faults at every file operation of a run: killed before it or halfway through a write, SIGTERM, disk full."""

import re
import signal
from collections.abc import Iterator
from functools import partial

from ldm_kit.training import checkpoint
from tests.stress.fault_injection import Mode, Plan
from tests.stress.harness import Harness, Script, Trial, check_checkpoints, check_equal, exit_code, run_result

KINDS = ("text", "vq")
# two saves, of which one is pruned
RUN = ("train.steps=4", "train.checkpoint_every=2", "train.keep_last=1", "log.evaluate_every=100")
UUID = re.compile(r"\.[0-9a-f]{32}")
EXITS = {"before": {-signal.SIGKILL}, "torn": {-signal.SIGKILL}, "term": {143, 0, -signal.SIGTERM}}
FULL: dict[Mode, str] = {"full": "once", "filled": "from then on"}


def death_trials(harness: Harness) -> Iterator[Trial]:
    """Yield every operation of an uninterrupted run with every way to end there."""
    for kind in KINDS:
        for number, (what, writes, path) in enumerate(operations(harness, kind), start=1):
            modes: tuple[Mode, ...] = ("before", "torn", "term") if writes == "w" else ("before", "term")
            for mode in modes:
                name = f"{kind}, operation {number} ({what} {path}), {mode}"
                yield name, partial(check_death, harness, kind, number, mode)


def full_disk_trials(harness: Harness) -> Iterator[Trial]:
    """Yield every write, new directory and renaming of a run, refused once, or it and every later one."""
    for number, (what, writes, path) in enumerate(operations(harness, "text"), start=1):
        if writes == "w" or what in ("mkdir", "rename"):
            for mode, meaning in FULL.items():
                name = f"text, no room for operation {number} ({what} {path}), {meaning}"
                yield name, partial(check_full_disk, harness, number, mode)


def operations(harness: Harness, kind: str) -> list[list[str]]:
    """Return the file operations of an uninterrupted run: what, "w" if it writes, and the path."""
    lines, _ = _reference(harness, kind)
    return [line.split(" ", 2) for line in lines]


def _reference(harness: Harness, kind: str) -> tuple[list[str], dict[str, object]]:
    def make() -> tuple[list[str], dict[str, object]]:
        with harness.folder() as folder:
            script, log = harness.script(kind, folder / "run", *RUN), folder / "operations.txt"
            process = script.start(plan=Plan(script.run, "log", log=log))
            assert exit_code(process) == 0, script.tail
            return [UUID.sub("", line) for line in log.read_text().splitlines()], run_result(script.run)

    return harness.once(f"operations {kind}", make)


def check_death(harness: Harness, kind: str, number: int, mode: Mode) -> None:
    """Check that the run keeps a whole checkpoint if it had one, and resumes to the same bits."""
    with harness.folder() as folder:
        script, log = harness.script(kind, folder / "run", *RUN), folder / "operations.txt"
        code = exit_code(script.start(plan=Plan(script.run, mode, number, log=log)))
        assert code in EXITS[mode], f"ended with {code}: {script.tail}"
        # a checkpoint was in place if something was done after the renaming that puts it there
        before = log.read_text().splitlines()[:-1]
        check_checkpoints(script.run, any(line.startswith("rename - checkpoint-") for line in before))
        if mode == "term" and code == 128 + signal.SIGTERM:
            assert checkpoint.latest(script.run) is not None, "stopped without a checkpoint"
        _check_resume(script, _reference(harness, kind)[1])
        stale = [path.name for path in script.run.iterdir() if path.name.startswith((".tmp-", ".del-"))]
        assert not stale, f"left behind: {stale}"


def check_full_disk(harness: Harness, number: int, mode: Mode) -> None:
    """Check that a full disk gives no traceback and no broken checkpoint, and with room again the same bits."""
    with harness.folder() as folder:
        script = harness.script("text", folder / "run", *RUN)
        code, output = exit_code(script.start(plan=Plan(script.run, mode, number))), script.output.read_text()
        assert code in (0, 2), f"ended with {code}: {script.tail}"
        assert "Traceback" not in output, script.tail
        assert code == 0 or "error: " in output, script.tail
        check_checkpoints(script.run, expect_one=False)
        _check_resume(script, _reference(harness, "text")[1])


def _check_resume(script: Script, expected: dict[str, object]) -> None:
    script.finish()
    check_equal(run_result(script.run), expected)
