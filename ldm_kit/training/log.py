"""What a run says while it works: progress with an estimate, metrics.jsonl, and any tracker that accelerate knows."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config
from ldm_kit.training.loop import Step


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
        self.main = accelerator.is_main_process
        self.sums: dict[str, tuple[Tensor, int]] = {}  # a player may have had fewer turns than there were steps
        self.count, self.since = 0, time.monotonic()
        self.bar = tqdm(total=total, initial=first, desc=folder.name, unit="step", disable=not self.main, mininterval=2)

    def step(self, step: Step) -> None:
        """Take a step in; every `config.every` steps write the means since the last line."""
        values = {**step.logs, **{f"{player}_grad_norm": norm for player, norm in step.norms.items()}}
        for name, value in values.items():
            total, times = self.sums.get(name, (torch.zeros_like(value), 0))
            self.sums[name] = (total + value, times + 1)
        self.count += 1
        self.bar.update()
        if step.number % self.config.every == 0:
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
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": number, **{k: float(f"{v:.6g}") for k, v in values.items()}}) + "\n")
        self.accelerator.log(dict(values), step=number)
        shown = {k: f"{v:.4g}" for k, v in values.items() if k.endswith(("loss", "psnr"))}
        if shown:
            self.bar.set_postfix(shown, refresh=False)

    def say(self, text: str) -> None:
        """A sentence above the progress bar."""
        if self.main:
            self.bar.write(text)

    def close(self) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        self.accelerator.end_training()
