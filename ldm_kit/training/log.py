"""What a run says while it works: progress with an estimate, metrics.jsonl, and any tracker that accelerate knows."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config
from ldm_kit.training.step import TrainStep


class LogConfig(Config):
    """How often a run reports."""

    every: int = Field(default=50, gt=0, description="steps between lines of metrics")
    evaluate_every: int = Field(default=1000, gt=0, description="steps between held-out evaluations and picture grids")
    tensorboard: bool = Field(default=True, description="write TensorBoard events into the run's folder")
    pictures: int = Field(default=16, gt=0, description="pictures in a grid")


class Log:
    """Averages step logs between lines without a device synchronisation each step. Only the main process writes."""

    def __init__(self, accelerator: Accelerator, folder: Path, config: LogConfig, first: int, total: int) -> None:
        self.accelerator, self.folder, self.config = accelerator, folder, config
        self.main, self.last = accelerator.is_main_process, total
        self.sums: dict[str, tuple[Tensor, int]] = {}  # a player may have had fewer turns than there were steps
        self.count, self.since = 0, time.monotonic()
        self.unwritten: list[str] = []  # lines that a full disk has no room for
        self.bar = tqdm(total=total, initial=first, desc=folder.name, unit="step", disable=not self.main, mininterval=2)

    def step(self, step: TrainStep) -> None:
        """Take a step in; every `config.every` steps, and at the last one, write the means since the last line."""
        values = {**step.logs, **{f"{player}_grad_norm": norm for player, norm in step.norms.items()}}
        for name, value in values.items():
            total, times = self.sums.get(name, (torch.zeros_like(value), 0))
            self.sums[name] = (total + value, times + 1)
        self.count += 1
        self.bar.update()
        if step.number % self.config.every == 0 or step.number == self.last:
            means = self.accelerator.reduce(
                {name: total / n for name, (total, n) in self.sums.items()}, reduction="mean"
            )
            assert isinstance(means, dict)
            rate = self.count / (time.monotonic() - self.since)
            self.write(
                step.number, {**{k: float(v) for k, v in means.items()}, "lr": step.lr, "steps_per_second": rate}
            )
            self.sums, self.count, self.since = {}, 0, time.monotonic()

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the trackers."""
        if not self.main:
            return
        line = json.dumps({"step": number, **{k: float(f"{v:.6g}") for k, v in values.items()}})
        self.unwritten.append(f"{line}\n")
        try:
            self._write()
            self.accelerator.log(dict(values), step=number)
        except OSError as error:
            self.say(f"warning: cannot write metrics at step {number}: {error.strerror or error}; training goes on")
        shown = {k: f"{v:.4g}" for k, v in values.items() if k.endswith(("loss", "psnr"))}
        if shown:
            self.bar.set_postfix(shown, refresh=False)

    def evaluated(self, number: int, evaluate: Callable[[int], dict[str, float]]) -> dict[str, float] | None:
        """What an evaluation after step `number` finds, written down; None where the disk cannot take its pictures."""
        try:
            found = evaluate(number)
        except OSError as error:
            self.say(f"warning: no evaluation at step {number}: {error.strerror or error}; training goes on")
            return None
        self.write(number, found)
        return found

    def say(self, text: str) -> None:
        """A sentence above the progress bar."""
        if self.main:
            self.bar.write(text)

    def _write(self) -> None:
        _append(self.folder / "metrics.jsonl", "".join(self.unwritten))
        self.unwritten.clear()

    def flush(self) -> None:
        """After the last step: try once more to write what found no room before."""
        if self.unwritten:
            with suppress(OSError):  # it was said when it happened
                self._write()

    def close(self) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        self.accelerator.end_training()


def _append(path: Path, text: str) -> None:
    """Add text to a file, or nothing: a full disk leaves no half of a line."""
    with path.open("ab", buffering=0) as file:
        end, left = file.tell(), memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise
