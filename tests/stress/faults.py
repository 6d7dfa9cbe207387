"""A loss that is not finite, signals, and memory that runs out: stated ends, and the same bits afterwards."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.training import checkpoint
from tests.stress import victims
from tests.stress.harness import ENDLESS, Harness, Trial, check_checkpoints, check_equal, exit_code, wait_until
from tests.stress.victims import METHODS, SCRIPTS, rank, train_lines
from tests.training.helpers import tensors_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
BAD_STEP = 4  # the step that is not finite
ADVERSARIAL = ("loss.adversarial.start=0", "loss.adversarial.discriminator_start=0")


def nan_trials(harness: Harness) -> Iterator[Trial]:
    """Yield a loss or a gradient that is NaN on one of one or two processes."""
    for kind in victims.KINDS:
        for world, bad in ((1, 0), (2, 0), (2, 1)):
            for what in ("loss", "gradient"):
                name = f"{kind}, {what} of process {bad} of {world} is NaN"
                yield name, partial(check_nan, harness, kind, world, bad, what)


def _change_losses(kind: str, change: Callable[[Tensor, int, int, Any], Tensor]) -> Any:
    """Patch a method so that each loss is changed by (loss, number of the loss term, step from 0, batch)."""
    losses = METHODS[kind].losses

    def changed(self: Any, batch: Any, step: int) -> Iterator[Any]:
        for number, (module, value, logs) in enumerate(losses(self, batch, step)):
            yield module, change(value, number, step, batch), logs

    return patch.object(METHODS[kind], "losses", changed)


def train_into_nan(pictures: Path, kind: str, run: Path, bad: int, what: str) -> str:
    """Return the sentence with which a run ends that meets a NaN on one process."""

    def change(value: Tensor, number: int, step: int, batch: Any) -> Tensor:
        if rank() != bad or step + 1 != BAD_STEP or number:
            return value
        if what == "loss":
            return value * float("nan")
        value.register_hook(lambda gradient: gradient * float("nan"))
        return value

    with _change_losses(kind, change):
        try:
            victims.train(pictures, kind, run)
        except UserError as error:
            return str(error)
    raise AssertionError("nothing was refused")


def check_nan(harness: Harness, kind: str, world: int, bad: int, what: str) -> None:
    """Check that all processes stop before the update with one message, and resume from the state before it."""
    with harness.folder() as folder:
        messages = harness.run(world, train_into_nan, kind, folder / "run", bad, what)
        assert len({*messages}) == 1, f"processes say different things: {messages}"
        assert f"became infinite or NaN at step {BAD_STEP}" in messages[0], messages[0]
        (bundle,) = (folder / "run").glob("fault-*")
        checkpoint.verify(bundle)
        often = f"train.checkpoint_every={BAD_STEP - 1}"
        whole = harness.run(world, train_lines, kind, folder / "whole", None, often, "train.keep_last=5")
        check_equal(tensors_of(bundle), tensors_of(folder / "whole" / f"checkpoint-{BAD_STEP - 1:08d}"))
        rest = harness.run(world, train_lines, kind, folder / "run", str(bundle))
        assert rest[0] == whole[0][BAD_STEP - 1 :], "it does not resume to the same losses"


def signal_trials(harness: Harness) -> Iterator[Trial]:
    """Yield every signal to every kind of script, and to one of two processes."""
    for number in SIGNALS:
        for kind in victims.KINDS:
            yield f"{kind} script, {number.name}", partial(check_signal, harness, kind, number)
        for one in (0, 1):
            name = f"text, {number.name} to process {one} of 2"
            yield name, partial(check_signal_to_rank, harness, number, one)


def check_signal(harness: Harness, kind: str, number: signal.Signals) -> None:
    """Check that the script saves, exits with 128 + the signal's number, and resumes to the same bits."""
    with harness.folder() as folder:
        script = harness.script(kind, folder / "run", *ENDLESS)
        process = script.start()
        wait_until((script.run / "metrics.jsonl").exists, process)
        os.kill(process.pid or 0, number)
        code = exit_code(process)
        assert code == 128 + number, f"ended with {code}: {script.tail}"
        check_checkpoints(script.run, expect_one=True)
        script.check_two_more_steps(folder / "whole")


def train_until_signal(pictures: Path, kind: str, run: Path, number: int, receiver: int) -> object:
    """Return the exit status of a run of which one process gets a signal during the third step."""

    def between(step: int) -> None:
        if step == 2 and rank() == receiver:
            os.kill(os.getpid(), number)

    try:
        victims.train(pictures, kind, run, between=between)
    except SystemExit as error:
        return error.code
    return None


def check_signal_to_rank(harness: Harness, number: signal.Signals, receiver: int) -> None:
    """Check that a signal to one of two processes ends both after the same step, and both resume to the same losses."""
    with harness.folder() as folder:
        codes = harness.run(2, train_until_signal, "text", folder / "run", int(number), receiver)
        assert codes == [128 + number] * 2, codes
        assert list(checkpoint.steps(folder / "run")) == [3]
        rest = harness.run(2, train_lines, "text", folder / "run", "latest")
        whole = harness.run(2, train_lines, "text", folder / "whole", None)
        assert rest[0] == whole[0][3:], "it does not resume to the same losses"


def memory_trials(harness: Harness) -> Iterator[Trial]:
    """Yield memory that runs out before or in a loss term's backward pass, on the only process or on one of two."""
    for kind in victims.KINDS:
        for term in (0, 1) if SCRIPTS[kind] == "train_ae" else (0,):
            for backward in (False, True):
                for world in (1, 2):
                    where = "in the backward pass of" if backward else "before"
                    name = f"{kind}, out of memory {where} loss {term + 1}, process {world - 1} of {world}"
                    yield name, partial(check_memory, harness, kind, term, backward, world)


def _out_of_memory(_: Any = None) -> None:
    raise torch.OutOfMemoryError("simulated")


def train_in_little_memory(
    pictures: Path, kind: str, run: Path, fault: tuple[int, bool, int], *overrides: str
) -> list[dict[str, str]]:
    """Return the lines of a run in which one process has memory for two pictures; fault: (loss, backward?, process)."""
    term, backward, bad = fault

    def change(value: Tensor, number: int, step: int, batch: Any) -> Tensor:
        if number == term and len(batch["position"]) > 2 and rank() == bad:
            value.register_hook(_out_of_memory) if backward else _out_of_memory()
        return value

    with _change_losses(kind, change):
        return train_lines(pictures, kind, run, None, *overrides)


def check_memory(harness: Harness, kind: str, term: int, backward: bool, world: int) -> None:
    """Check that the run equals, bit for bit, one whose micro-batch was that small from the start."""
    overrides = ADVERSARIAL if SCRIPTS[kind] == "train_ae" else ()
    fault = (term, backward, world - 1)
    with harness.folder() as folder:
        lines = harness.run(world, train_in_little_memory, kind, folder / "run", fault, *overrides)
        small = harness.run(world, train_lines, kind, folder / "whole", None, "train.micro_batch=2", *overrides)
        assert lines == small, "the halved run is not the one that was configured so"
        last = "checkpoint-00000008"
        check_equal(tensors_of(folder / "run" / last), tensors_of(folder / "whole" / last))
