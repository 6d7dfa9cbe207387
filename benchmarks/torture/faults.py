"""A loss that is not finite, signals, and memory that runs out: stated ends, and the same bits afterwards."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.torture.bench import DOORS, KINDS, Bench, ended, figures, good, same, until
from benchmarks.torture.resume import anywhere
from benchmarks.torture.trial import Case
from benchmarks.torture.worlds import TASKS
from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from tests.training.helpers import play, settings, tensors_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
BAD = 4  # the step that is not finite
GAME = ("criterion.adversarial.start=0", "criterion.adversarial.discriminator_start=0")


def spoilt_cases(bench: Bench) -> Iterator[Case]:
    """A loss or a gradient, of one of one or two processes."""
    for kind in KINDS:
        for world, bad in ((1, 0), (2, 0), (2, 1)):
            for what in ("loss", "gradient"):
                name = f"{kind}, {what} of process {bad} of {world} is NaN"
                yield Case(name, lambda a=(kind, world, bad, what): spoilt(bench, *a))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _turns(kind: str, change: Callable[[Tensor, int, int, Any], Tensor]) -> Any:
    """The task's turns, each loss changed by (loss, number of the turn, step from 0, batch)."""
    losses = TASKS[kind].losses

    def changed(self: Any, batch: Any, step: int) -> Iterator[Any]:
        for number, (player, value, logs) in enumerate(losses(self, batch, step)):
            yield player, change(value, number, step, batch), logs

    return patch.object(TASKS[kind], "losses", changed)


def run_into(pictures: Path, kind: str, run: Path, bad: int, what: str) -> str:
    """The sentence with which a run ends that meets a NaN on one process."""

    def change(value: Tensor, number: int, step: int, batch: Any) -> Tensor:
        if _rank() != bad or step + 1 != BAD or number:
            return value
        if what == "loss":
            return value * float("nan")
        value.register_hook(lambda gradient: gradient * float("nan"))
        return value

    with _turns(kind, change):
        try:
            play(settings(KINDS[kind], pictures, run))
        except UserError as error:
            return str(error)
    raise AssertionError("nothing was refused")


def gone_on(pictures: Path, kind: str, run: Path, resume: str | None, *overrides: str) -> list[dict[str, str]]:
    """What a run says to its end."""
    return play(settings(KINDS[kind], pictures, run, *overrides), resume).lines


def spoilt(bench: Bench, kind: str, world: int, bad: int, what: str) -> None:
    """All stop before the update, say the same, and leave the state before it, from which the run goes on."""
    with bench.folder() as folder:
        said = anywhere(bench, world, run_into, kind, folder / "run", bad, what)
        assert len({*said}) == 1, f"processes say different things: {said}"
        assert f"became infinite or NaN at step {BAD}" in said[0], said[0]
        (bundle,) = (folder / "run").glob("fault-*")
        checkpoint.verify(bundle)
        often = f"train.checkpoint_every={BAD - 1}"
        whole = anywhere(bench, world, gone_on, kind, folder / "whole", None, often, "train.keep_last=5")
        same(tensors_of(bundle), tensors_of(folder / "whole" / f"checkpoint-{BAD - 1:08d}"))
        rest = anywhere(bench, world, gone_on, kind, folder / "run", str(bundle))
        assert rest[0] == whole[0][BAD - 1 :], "it does not go on to the same losses"


def asked_cases(bench: Bench) -> Iterator[Case]:
    """Signals to doors at work, and to one of two processes."""
    for number in SIGNALS:
        for kind in KINDS:
            yield Case(f"{kind} door, {number.name}", lambda a=(kind, number): stopped(bench, *a))
        for rank in (0, 1):
            name = f"text, {number.name} to process {rank} of 2"
            yield Case(name, lambda a=(number, rank): stopped_together(bench, *a))


def stopped(bench: Bench, kind: str, number: signal.Signals) -> None:
    """The door saves after its step, leaves with 128 + the signal's number, and goes on to the same bits."""
    rare = ("log.evaluate_every=100000", "train.checkpoint_every=100000")
    with bench.folder() as folder:
        door = bench.door(kind, folder / "run", "train.steps=100000", *rare)
        victim = door.start()
        until((door.run / "metrics.jsonl").exists, victim)
        os.kill(victim.pid or 0, number)
        code = ended(victim)
        assert code == 128 + number, f"ended with {code}: {door.said.read_text()[-600:]}"
        good(door.run, had=True)
        (step,) = checkpoint.steps(door.run)
        door.finish(f"train.steps={step + 2}")
        whole = bench.door(kind, folder / "whole", *rare)
        whole.finish(f"train.steps={step + 2}")
        last = f"checkpoint-{step + 2:08d}"
        same(tensors_of(door.run / last), tensors_of(whole.run / last))
        same({"metrics": figures(door.run)}, {"metrics": figures(whole.run)})


def asked(pictures: Path, kind: str, run: Path, number: int, rank: int) -> object:
    """The exit status of a run of which one process is asked to stop during the third step."""

    def ask(step: int) -> None:
        if step == 2 and _rank() == rank:
            os.kill(os.getpid(), number)

    try:
        play(settings(KINDS[kind], pictures, run), between=ask)
    except SystemExit as error:
        return error.code
    return None


def stopped_together(bench: Bench, number: signal.Signals, rank: int) -> None:
    """One is asked, both leave after the same step, and go on to the same losses."""
    with bench.folder() as folder:
        codes = anywhere(bench, 2, asked, "text", folder / "run", int(number), rank)
        assert codes == [128 + number] * 2, codes
        assert list(checkpoint.steps(folder / "run")) == [3]
        rest = anywhere(bench, 2, gone_on, "text", folder / "run", "latest")
        whole = anywhere(bench, 2, gone_on, "text", folder / "whole", None)
        assert rest[0] == whole[0][3:], "it does not go on to the same losses"


def short_cases(bench: Bench) -> Iterator[Case]:
    """Memory runs out before or in a turn's backward pass, on the only process or on one of two."""
    for kind in KINDS:
        for turn in (0, 1) if DOORS[kind] == "train_ae" else (0,):
            for backward in (False, True):
                for world in (1, 2):
                    where = "in the backward pass of" if backward else "before"
                    name = f"{kind}, out of memory {where} turn {turn + 1}, process {world - 1} of {world}"
                    yield Case(name, lambda a=(kind, turn, backward, world): short(bench, *a))


def _fail(_: Any = None) -> None:
    raise torch.OutOfMemoryError("as if")


def limited(pictures: Path, kind: str, run: Path, turn: int, backward: bool, bad: int, *overrides: str) -> Any:
    """What a run says in which no more than two pictures fit at once, on one process."""

    def change(value: Tensor, number: int, step: int, batch: Any) -> Tensor:
        if number == turn and len(batch["position"]) > 2 and _rank() == bad:
            value.register_hook(_fail) if backward else _fail()
        return value

    with _turns(kind, change):
        return gone_on(pictures, kind, run, None, *overrides)


def short(bench: Bench, kind: str, turn: int, backward: bool, world: int) -> None:
    """The run is bit for bit one whose micro-batch was that small from the start."""
    more = GAME if DOORS[kind] == "train_ae" else ()
    with bench.folder() as folder:
        found = anywhere(bench, world, limited, kind, folder / "run", turn, backward, world - 1, *more)
        expected = anywhere(bench, world, gone_on, kind, folder / "whole", None, "train.micro_batch=2", *more)
        assert found == expected, "the halved run is not the one that was configured so"
        last = "checkpoint-00000008"
        same(tensors_of(folder / "run" / last), tensors_of(folder / "whole" / last))
